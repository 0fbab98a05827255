"""Redis backend.

Layout, for job J and key group G (the braces make a cluster keep a group's keys together):

    statestore:{J:G}     hash   entry key -> value, and in fields of their own that no entry key is like, this group's marker:
                                epoch, the attempt that may write the group (owner), and which opening of it
    statestore:{J:G}:s   sorted set of the entry keys that have a sub-key, so that one collection can be read in order

Attempts are counted where the checkpoints are, so two places may count alike: then the later opening owns the state.

A batch is one MULTI/EXEC of one script a group. Every script compares the owner before it writes, and an opening claims all groups at
once, so an older attempt can write none of them. The applied epoch is the least of all groups' markers, and 0 when one is missing: a data
set that was lost or rolled back is noticed at the opening, and the engine restores it.

It is noticed at work, too: whatever is read or written is so together with a look at the markers, and a marker that is not as this
backend left it ends the job before anything read can count. Started again, it restores its state.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import redis as driver
from hiredis import pack_command
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from statestore.backend import Backend, BackendContext, Batch, next_piece
from statestore.config import Section, parse_options
from statestore.errors import ClosedError, ConfigError, FencedError, StateStoreError, UnavailableError
from statestore.io import redacted
from statestore.keys import group_of_entry, prefix_end, split_entry
from statestore.types import Attempt, Epoch
from statestore.units import Duration

DEFAULT_URL = "redis://127.0.0.1:6379/0"
KEYS_PER_READ = 2000
LOAD_ENTRIES = 50_000
LOAD_BYTES = 4 << 20

_MARKER = (b"\xffepoch", b"\xffowner", b"\xffopening")
_END_OF_ENTRIES = b"\xff"

LOST = -1
"""A script's answer when the marker is not as this backend left it."""

# ARGV: attempt, epoch, epoch before, number of (field, value) pairs, of deletions, of index arguments, opening, and then these and what
# leaves the index. The new epoch may be there already: then this is the repetition of a call whose answer was lost.
# Lua can unpack only a few thousand arguments at a time, so everything goes in slices.
_APPLY = """
local epoch, owner, opening = unpack(redis.call('HMGET', KEYS[1], '\\255epoch', '\\255owner', '\\255opening'))
owner = tonumber(owner or '0')
local attempt = tonumber(ARGV[1])
if owner > attempt then return owner end
if owner == attempt and opening ~= ARGV[7] then return owner end
epoch = epoch or '0'
if owner < attempt or (epoch ~= ARGV[3] and epoch ~= ARGV[2]) then return -1 end
local pairs_end = 7 + 2 * tonumber(ARGV[4])
local deleted_end = pairs_end + tonumber(ARGV[5])
local indexed_end = deleted_end + tonumber(ARGV[6])
for i = 8, pairs_end, 1000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 999, pairs_end)))
end
for i = pairs_end + 1, deleted_end, 1000 do
  redis.call('HDEL', KEYS[1], unpack(ARGV, i, math.min(i + 999, deleted_end)))
end
for i = deleted_end + 1, indexed_end, 1000 do
  redis.call('ZADD', KEYS[2], unpack(ARGV, i, math.min(i + 999, indexed_end)))
end
for i = indexed_end + 1, #ARGV, 1000 do
  redis.call('ZREM', KEYS[2], unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
if epoch ~= ARGV[2] then redis.call('HSET', KEYS[1], '\\255epoch', ARGV[2]) end
return 0
"""

# Claims a group without touching its epoch; ARGV: attempt, opening.
_CLAIM = """
local owner = tonumber(redis.call('HGET', KEYS[1], '\\255owner') or '0')
if owner > tonumber(ARGV[1]) then return owner end
redis.call('HSET', KEYS[1], '\\255owner', ARGV[1], '\\255opening', ARGV[2])
return 0
"""

_CLEAR = """
local owner = tonumber(redis.call('HGET', KEYS[1], '\\255owner') or '0')
if owner > tonumber(ARGV[1]) then return owner end
if owner == tonumber(ARGV[1]) and redis.call('HGET', KEYS[1], '\\255opening') ~= ARGV[3] then return owner end
if ARGV[2] == '1' then redis.call('UNLINK', KEYS[1], KEYS[2]) end
redis.call('HSET', KEYS[1], '\\255owner', ARGV[1], '\\255opening', ARGV[3], '\\255epoch', '0')
return 0
"""


class RedisOptions(Section, frozen=True, kw_only=True):
    """`[state.redis]`."""

    url: str = DEFAULT_URL
    socket_timeout: Duration = 5.0


class _Group:
    """Names of one key group's keys, and what a batch does to it."""

    __slots__ = ("data", "deleted", "index", "indexed", "pairs", "unindexed")

    def __init__(self, job: str, group: int):
        self.data = f"statestore:{{{job}:{group}}}"
        self.index = f"{self.data}:s"
        self.reset()

    def reset(self) -> None:
        self.pairs: list[bytes] = []
        self.deleted: list[bytes] = []
        self.indexed: list[bytes] = []
        self.unindexed: list[bytes] = []


class RedisBackend(Backend):
    """State in a Redis server, which several machines can reach."""

    durable = True

    def __init__(self, context: BackendContext, options: RedisOptions):
        self._attempt: Attempt = context.attempt
        self._opening = secrets.token_hex(4)
        self._place = redacted(options.url)
        self._groups = {group: _Group(context.job, group) for group in context.key_groups}
        self._client: Any = None
        try:
            # Commands are retried only after a lost connection and only because all of them are idempotent: whole values, no increments.
            self._client = driver.Redis.from_url(
                options.url,
                socket_timeout=options.socket_timeout,
                socket_connect_timeout=options.socket_timeout,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
                command_packer=_Packer(),
            )
        except ValueError as error:
            raise ConfigError(_without_secret(error, options.url), key="state.redis.url") from None
        try:
            with _Translated(self._place):
                self._refuse_eviction()
                self._run_all(
                    _CLAIM, [([group.data], [self._attempt, self._opening]) for group in self._groups.values()]
                )
                self._epoch = self._next_epoch = self._stored_marker()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, context: BackendContext) -> RedisBackend:
        """Connect, check the server's settings, and take the job's keys over from older attempts."""
        options = parse_options(RedisOptions, context.options, "state.redis")
        if not options.url.startswith(("redis://", "rediss://", "unix://")):
            hint = "use redis://host:6379/0 or rediss://"
            raise ConfigError(f"'{redacted(options.url)}' is no Redis URL", key="state.redis.url", hint=hint)
        return cls(context, options)

    @classmethod
    def options_from_url(cls, url: str) -> dict[str, Any]:
        """The URL is the option."""
        return {"url": url}

    def _refuse_eviction(self) -> None:
        try:
            policy = self._client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
        except driver.ResponseError:
            return  # a managed server that hides its settings
        if policy != "noeviction":
            raise ConfigError(
                f"the server at {self._place} has maxmemory-policy {policy}, which would throw state away",
                key="state.redis.url",
                hint="set maxmemory-policy noeviction on the server",
            )

    def _stored_marker(self) -> Epoch:
        with self._client.pipeline(transaction=False) as pipeline:
            for group in self._groups.values():
                pipeline.hget(group.data, _MARKER[0])
            return Epoch(min(int(epoch or 0) for epoch in pipeline.execute()))

    def _run_all(self, script: str, calls: list[tuple[list[str], list[Any]]]) -> None:
        """Run a script for several groups in one transaction. Raises FencedError when any was refused."""
        sha = self._client.script_load(script)
        with self._client.pipeline(transaction=True) as pipeline:
            for keys, arguments in calls:
                pipeline.evalsha(sha, len(keys), *keys, *arguments)
            answers = pipeline.execute()
        owner = max(answers, default=0)
        if owner > 0:
            raise FencedError(self._place, self._attempt, int(owner))
        if LOST in answers:
            raise self._lost()

    def _lost(self) -> UnavailableError:
        return UnavailableError(
            "redis", self._place, "its data was lost or rolled back; it is restored at the next start"
        )

    def _check_markers(self, markers: list[list[bytes | None]], before: Epoch) -> None:
        """Raise unless owners and epochs are those that this backend has set; `before` is the epoch before they were read."""
        expected = [str(before).encode(), str(self._attempt).encode(), self._opening.encode()]
        for stored_epoch, stored_owner, opening in [marker for marker in markers if marker != expected]:
            epoch, owner = int(stored_epoch or 0), int(stored_owner or 0)
            if owner > self._attempt or (owner == self._attempt and opening != self._opening.encode()):
                raise FencedError(self._place, self._attempt, owner)
            if owner < self._attempt or not before <= epoch <= self._next_epoch:  # an apply may be under way
                raise self._lost()

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One HMGET a group, all in one round trip."""
        client = self._connection()
        before, ordered = self._epoch, sorted(keys)  # by groups
        with _Translated(self._place), client.pipeline(transaction=False) as pipeline:
            for prefix, of_group in groupby(ordered, _group_prefix):
                pipeline.execute_command("HMGET", self._groups[int.from_bytes(prefix, "big")].data, *of_group, *_MARKER)
            answers = pipeline.execute()
        self._check_markers([answer[-len(_MARKER) :] for answer in answers], before)
        found = dict(zip(ordered, chain.from_iterable(answer[: -len(_MARKER)] for answer in answers), strict=True))
        return list(map(found.__getitem__, keys))

    def apply(self, batch: Batch, epoch: Epoch) -> None:
        """All groups in one transaction; those without a change get the marker, when it moves."""
        self._connection()
        groups = self._groups
        for group in groups.values():
            group.reset()
        for key, value in batch.items():
            group = groups[key[0] << 8 | key[1]]
            collection = _has_sub_key(key)
            if value is None:
                group.deleted.append(key)
                if collection:
                    group.unindexed.append(key)
            else:
                group.pairs += (key, value)
                if collection:
                    group.indexed += (b"0", key)
        calls = []
        for group in groups.values():
            if epoch == self._epoch and not (group.pairs or group.deleted):
                continue
            counts = [len(group.pairs) // 2, len(group.deleted), len(group.indexed)]
            head: list[Any] = [self._attempt, epoch, self._epoch, *counts, self._opening]
            arguments = head + group.pairs + group.deleted + group.indexed + group.unindexed
            calls.append(([group.data, group.index], arguments))
            group.reset()
        self._next_epoch = epoch
        with _Translated(self._place):
            self._run_all(_APPLY, calls)
        self._epoch = epoch

    def bulk_load(self, entries: Iterator[tuple[bytes, bytes]]) -> None:
        """Plain writes of one group after the other, many in a transaction that fails when a newer owner has come."""
        self._connection()
        for number, of_group in groupby(entries, key=lambda entry: entry[0][0] << 8 | entry[0][1]):
            while piece := next_piece(of_group, entries_max=LOAD_ENTRIES, bytes_max=LOAD_BYTES):
                with _Translated(self._place):
                    self._load(self._groups[number], piece)

    def _load(self, group: _Group, piece: list[tuple[bytes, bytes]]) -> None:
        indexed = [key for key, _ in piece if _has_sub_key(key)]
        with self._connection().pipeline(transaction=True) as pipeline:
            pipeline.watch(group.data)
            self._check_markers([pipeline.hmget(group.data, *_MARKER)], Epoch(0))
            pipeline.multi()
            for first in range(0, len(piece), KEYS_PER_READ):
                pipeline.execute_command("HSET", group.data, *chain.from_iterable(piece[first : first + KEYS_PER_READ]))
            for first in range(0, len(indexed), KEYS_PER_READ):
                pipeline.zadd(group.index, dict.fromkeys(indexed[first : first + KEYS_PER_READ], 0))
            try:
                pipeline.execute()
            except driver.WatchError:
                self._check_markers([self._connection().hmget(group.data, *_MARKER)], Epoch(0))
                raise

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """One collection through its sorted set, page by page; a wider range group by group, sorted here."""
        self._connection()
        if stop is not None and _within_one_collection(start, stop):
            yield from self._scan_collection(start, stop)
            return
        lowest = group_of_entry(start.ljust(2, b"\0"))
        highest = max(self._groups) if stop is None else group_of_entry(stop.ljust(2, b"\0"))
        for number in self._groups:
            if not lowest <= number <= highest:
                continue
            with _Translated(self._place):
                keys = self._connection().hkeys(self._groups[number].data)
            wanted = sorted(key for key in keys if start <= key < (stop or _END_OF_ENTRIES))
            for first in range(0, max(1, len(wanted)), KEYS_PER_READ):
                yield from self._values(number, wanted[first : first + KEYS_PER_READ])

    def _scan_collection(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        number, low = group_of_entry(start), b"[" + start
        while True:
            with _Translated(self._place):
                keys: list[bytes] = self._connection().zrangebylex(
                    self._groups[number].index, low, b"(" + stop, start=0, num=KEYS_PER_READ
                )
            yield from self._values(number, keys)
            if len(keys) < KEYS_PER_READ:
                return
            low = b"(" + keys[-1]

    def _values(self, number: int, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Entries of some keys, with a look at the group's marker, which was still there after the keys had been read."""
        before = self._epoch
        with _Translated(self._place):
            *values, epoch, owner, opening = self._connection().hmget(self._groups[number].data, *keys, *_MARKER)
        self._check_markers([[epoch, owner, opening]], before)
        yield from ((key, value) for key, value in zip(keys, values, strict=True) if value is not None)

    def applied_epoch(self) -> Epoch:
        """The least marker of all groups, asked from the server: it may have lost its data."""
        self._connection()
        with _Translated(self._place):
            return self._stored_marker()

    def persist(self) -> Epoch:
        """The data survives this process where it is; what the server loses shows in the marker."""
        self._connection()
        return self._epoch

    def clear(self, key_groups: range) -> None:
        """Set all markers to 0 and delete the groups' keys, in one transaction."""
        self._connection()
        calls = [
            ([group.data, group.index], [self._attempt, int(number in key_groups), self._opening])
            for number, group in self._groups.items()
        ]
        with _Translated(self._place):
            self._run_all(_CLEAR, calls)
        self._epoch = self._next_epoch = Epoch(0)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connection(self) -> Any:
        if self._client is None:
            raise ClosedError("the redis backend is closed")
        return self._client


_group_prefix = itemgetter(slice(2))
"""First two bytes of an entry key."""


class _Packer:
    """Packs commands without a look at each argument's type, as the driver's own does: there are thousands, of the types that are taken."""

    def pack(self, *arguments: Any) -> list[bytes]:
        """Bytes of one command."""
        name, *others = arguments
        return [pack_command((*name.split(), *others))]


def _has_sub_key(entry_key: bytes) -> bool:
    length = entry_key[4]
    return len(entry_key) > 5 + length if length < 0x80 else bool(split_entry(entry_key)[3])


def _within_one_collection(start: bytes, stop: bytes) -> bool:
    """Whether all keys of the range are of one key, and have a sub-key."""
    if len(start) < 5 or not _has_sub_key(start):
        return False
    _, _, _, sub_key = split_entry(start)
    end = prefix_end(start[: len(start) - len(sub_key)])
    return end is not None and stop <= end


def _without_secret(error: Exception, url: str) -> str:
    return str(error).replace(url, redacted(url))


class _Translated:
    """`with` block that turns the driver's exceptions into ours."""

    def __init__(self, place: str):
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, driver.RedisError | OSError) or isinstance(error, StateStoreError):
            return
        if isinstance(error, driver.ConnectionError | driver.TimeoutError | OSError):
            hint = "is the server running, and is state.redis.url right?"
            raise UnavailableError("redis", self._place, error, hint=hint) from error
        raise UnavailableError("redis", self._place, error) from error
