"""Transactions in Redis: staged at the barrier, made visible by one script.

Layout, for a sink's target T and job J; the braces keep all keys in one slot of a cluster, the one of T:

    statestore:sink:{T}:J             hash   owner: the attempt that may write; run: its run;
                                             done:<attempt>:<subtask>: number of the last transaction of theirs that is committed;
                                             opening:<subtask>, calls:<subtask>: who writes there now, and how many scripts of its were run
    statestore:sink:{T}:J:staged      set    <attempt>:<subtask>:<number> of each transaction that is staged
    statestore:sink:{T}:J:<member>    what the transaction is to write

Invariants:
- every script compares the owner before it writes, so an older attempt changes nothing;
- scripts that write events are numbered and run once each: one that is sent again because the connection broke, or that a broken connection
  delivers late, behind others, changes nothing;
- a transaction's data is there until the script that makes it visible removes it and notes its number, all at once. So it is either staged,
  or noted, or lost, and a commit that is repeated can tell;
- a commit takes those that the same subtask prepared before, and that are not committed, along: their events are in the same checkpoint. So
  it does not matter which subtask commits which after a restore.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from statestore import crashpoints
from statestore.errors import (
    ClosedError,
    ConfigError,
    CorruptionError,
    FencedError,
    StateStoreError,
    UnavailableError,
)
from statestore.io import redacted
from statestore_runtime.sinks.base import Sink, SinkContext

LOST, GONE = -1, -2
"""Scripts' answers: the owner is not noted any more; a transaction is neither staged nor noted. A positive one is the owner."""

STAGE_ENTRIES = 2000
STAGE_BYTES = 4 << 20

# Begins every script but the claim. KEYS: the job's hash, ... ARGV: attempt, ...
OWNED = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then return -1 end
if owner ~= ARGV[1] then return tonumber(owner) end
"""

# Follows it in scripts that write events. ARGV[2]: subtask, ARGV[3]: how many such scripts of its there are, with this one.
ONCE = """
local calls = 'calls:' .. ARGV[2]
if tonumber(ARGV[3]) <= tonumber(redis.call('HGET', KEYS[1], calls) or '0') then return 0 end
redis.call('HSET', KEYS[1], calls, ARGV[3])
"""

# ARGV: attempt, subtask, run, whether the job starts afresh, what tells this opening from others. A run that starts afresh may have a
# smaller attempt than another run: attempts are counted where the checkpoints are, and those were removed. What it left under numbers
# like ours must not be taken for ours.
_CLAIM = """
local owner = tonumber(redis.call('HGET', KEYS[1], 'owner') or '0')
if owner > tonumber(ARGV[1]) then
  local run = redis.call('HGET', KEYS[1], 'run')
  if ARGV[4] == '0' or (ARGV[3] ~= '' and run == ARGV[3]) then return owner end
end
local opening = 'opening:' .. ARGV[2]
if owner == tonumber(ARGV[1]) and redis.call('HGET', KEYS[1], opening) == ARGV[5] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'run', ARGV[3], opening, ARGV[5], 'calls:' .. ARGV[2], '0')
local mine = ARGV[1] .. ':' .. ARGV[2] .. ':'
redis.call('HDEL', KEYS[1], 'done:' .. ARGV[1] .. ':' .. ARGV[2])
for _, member in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if string.sub(member, 1, #mine) == mine then
    redis.call('UNLINK', KEYS[1] .. ':' .. member)
    redis.call('SREM', KEYS[2], member)
  end
end
return 0
"""

_CLEAN = f"""{OWNED}
local mine = ARGV[1] .. ':'
for _, member in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if string.sub(member, 1, #mine) ~= mine then
    redis.call('UNLINK', KEYS[1] .. ':' .. member)
    redis.call('SREM', KEYS[2], member)
  end
end
return 0
"""

# KEYS: hash, set, target, staged keys; ARGV: attempt, subtask that prepared them with its attempt, their numbers.
_COMMIT = """{owned}
local done = 'done:' .. ARGV[2]
for i = 3, #ARGV do
  if tonumber(ARGV[i]) > tonumber(redis.call('HGET', KEYS[1], done) or '0') then
    local staged = KEYS[i + 1]
    if redis.call('EXISTS', staged) == 0 then return -2 end
    {apply}
    redis.call('UNLINK', staged)
    redis.call('SREM', KEYS[2], ARGV[2] .. ':' .. ARGV[i])
    redis.call('HSET', KEYS[1], done, ARGV[i])
  end
end
return 0
"""


def connect(url: str, socket_timeout: float) -> Any:
    """A client. Raises ConfigError for a bad URL, UnavailableError when a cluster can't be reached."""
    import redis as driver
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry

    cluster_url = url.replace("+cluster://", "://", 1)
    client: Any = driver.RedisCluster if cluster_url != url else driver.Redis
    try:
        # Commands are retried only after a lost connection, and only because none of them changes anything the second time.
        retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 2)
        return client.from_url(
            cluster_url, socket_timeout=socket_timeout, socket_connect_timeout=socket_timeout, retry=retry
        )
    except ValueError as error:
        raise ConfigError(str(error).replace(url, redacted(url)), key="url", hint="use redis://host:6379/0") from None


class RedisStagingSink(Sink):
    """What the Redis sinks have in common; a subclass says what it makes of an event.

    Parameters
    ----------
    target
        Key that it writes to, or what its keys begin with.
    kind
        Type of the key that it writes to, as Redis calls it; None: there is no such key.
    stage
        Lua that adds ARGV[5..] to KEYS[3].
    apply
        Lua that writes what is at the key `staged` to KEYS[3].
    """

    def __init__(self, url: str, target: str, socket_timeout: float, *, kind: str | None, stage: str, apply: str):
        self._url, self._target, self._socket_timeout = url, target, socket_timeout
        member = "table.concat({ARGV[1], ARGV[2], ARGV[4]}, ':')"
        self._stage_script = f"{OWNED}{ONCE}redis.call('SADD', KEYS[2], {member})\n{stage}"
        self._commit_script = _COMMIT.format(owned=OWNED, apply=apply)
        self._place, self._kind = redacted(url), kind
        self._client: Any = None
        self._context = SinkContext("", 0)
        self._base = self._staged = ""
        self._number, self._calls = 1, 0
        self._uncommitted: list[int] = []
        self._has_staged = self._is_cleaning = False

    @property
    def name(self) -> str:
        """The server and what is written there."""
        return f"{self._place} {self._target}"

    @property
    def place(self) -> str | None:
        """The server and what is written there."""
        return self.name

    def open(self, context: SinkContext) -> None:
        """See `Sink.open`. Raises ConfigError when the server throws data away of itself, or the target is something else."""
        self.close()
        self._context = context
        self._base = f"statestore:sink:{{{hash_tag(self._target)}}}:{context.job}"
        if hash_tag(self._target) != self._target:
            self._base += f":{self._target}"
        self._staged = f"{self._base}:staged"
        self._number, self._calls, self._uncommitted = 1, 0, []
        self._has_staged = self._is_cleaning = False
        with Translated(self._place):
            self._client = connect(self._url, self._socket_timeout)
            self._check_server()
            self._check_target()
            arguments = [context.attempt, context.subtask, context.run, int(context.fresh), secrets.token_hex(8)]
            self._run(_CLAIM, [self._base, self._staged], arguments)
        self.commit_restored(context)
        if context.is_first:
            with Translated(self._place):
                own = f"{context.attempt}:".encode()
                members = self._client.smembers(self._staged)
                self._is_cleaning = any(not member.startswith(own) for member in members)

    def _check_server(self) -> None:
        refuse_eviction(self._client, self._place)

    def _check_target(self) -> None:
        found = self._client.type(self._target).decode() if self._kind is not None else "none"
        if found not in ("none", self._kind):
            problem = f"'{self._target}' at {self._place} is a {found}, and no {self._kind}"
            raise ConfigError(problem, key="sink", hint="give the sink another name to write to, or remove it")

    def _run(self, script: str, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> None:
        """Run a script. Raises FencedError when a newer attempt has come."""
        if self._client is None:
            raise ClosedError(f"the sink to {self.name} is closed")
        with Translated(self._place):
            answer = int(self._client.eval(script, len(keys), *keys, *arguments))
        if answer > 0:
            raise FencedError(self.name, self._context.attempt, answer)
        if answer == LOST:
            raise UnavailableError("redis", self._place, "its data was lost, and what was staged there with it")
        if answer == GONE:
            raise CorruptionError(
                self.name,
                "output that the checkpoint counts on is gone from the server",
                hint="restore an older checkpoint, or start over with --restore none",
            )

    def _run_once(self, script: str, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> None:
        """Run a script that has ONCE in it."""
        self._calls += 1
        self._run(script, keys, [self._context.attempt, self._context.subtask, self._calls, *arguments])

    def _stage(self, arguments: list[Any]) -> None:
        """Add to the transaction that is being written."""
        staged = f"{self._base}:{self._context.attempt}:{self._context.subtask}:{self._number}"
        self._has_staged = True
        self._run_once(self._stage_script, [self._base, self._staged, staged], [self._number, *arguments])

    @abstractmethod
    def _flush(self) -> None:
        """Stage what waits in memory."""

    def prepare(self) -> dict[str, Any] | None:
        """Stage the rest; returns who staged it, and the numbers of all that is not committed."""
        crashpoints.reach("sink.before-prepare")
        self._flush()
        transaction: dict[str, Any] = {}
        if self._has_staged:
            self._uncommitted.append(self._number)
            own = {"attempt": self._context.attempt, "subtask": self._context.subtask}
            transaction = own | {"numbers": list(self._uncommitted)}
            self._number, self._has_staged = self._number + 1, False
        if self._is_cleaning:
            # Not before: until this attempt has completed a checkpoint, one of an earlier attempt may still turn up, and need it.
            transaction["cleans"], self._is_cleaning = self._context.attempt, False
        crashpoints.reach("sink.prepared")
        return transaction or None

    def commit(self, transaction: Any) -> None:
        """See `Sink.commit`: one script."""
        crashpoints.reach("sink.before-commit")
        context = self._context
        if "numbers" in transaction:
            by = f"{int(transaction['attempt'])}:{int(transaction['subtask'])}"
            numbers = [int(number) for number in transaction["numbers"]]
            keys = [self._base, self._staged, self._target, *[f"{self._base}:{by}:{number}" for number in numbers]]
            self._run(self._commit_script, keys, [context.attempt, by, *numbers])
            if by == f"{context.attempt}:{context.subtask}":
                self._uncommitted = [number for number in self._uncommitted if number > numbers[-1]]
        crashpoints.reach("sink.committing")
        if transaction.get("cleans") == context.attempt:
            self._run(_CLEAN, [self._base, self._staged], [context.attempt])
        crashpoints.reach("sink.committed")

    def is_own(self, transaction: Any) -> bool:
        """See `Sink.is_own`."""
        return isinstance(transaction, dict) and transaction.keys() <= {"attempt", "subtask", "numbers", "cleans"}

    def close(self) -> None:
        """Close the connections; what is staged is removed by a later attempt."""
        if self._client is not None:
            self._client.close()
            self._client = None


def hash_tag(key: str) -> str:
    """The part of a key that says in which slot of a cluster it is."""
    _, brace, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    return tag if brace and end and tag else key


def refuse_eviction(client: Any, place: str) -> None:
    """Raise ConfigError when the server throws keys away to make room."""
    import redis as driver

    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
    except driver.ResponseError:
        return  # a managed server that hides its settings
    if policy != "noeviction":
        raise ConfigError(
            f"the server at {place} has maxmemory-policy {policy}, which would throw output away before it is committed",
            hint="set maxmemory-policy noeviction on the server",
        )


class Translated:
    """`with` block that turns the driver's exceptions into ours."""

    def __init__(self, place: str):
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, StateStoreError):
            return
        import redis as driver
        from redis.exceptions import RedisClusterException

        if isinstance(error, driver.RedisError | RedisClusterException | OSError):
            is_lost = isinstance(error, driver.ConnectionError | driver.TimeoutError | OSError)
            hint = "is the server running, and is the sink's URL right?" if is_lost else None
            raise UnavailableError("redis", self._place, error, hint=hint) from error
