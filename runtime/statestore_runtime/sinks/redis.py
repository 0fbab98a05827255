"""Results in Redis: the newest value of each key, or entries of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from statestore.errors import UsageError
from statestore_runtime.sinks.redis_staging import ONCE, OWNED, STAGE_BYTES, STAGE_ENTRIES, RedisStagingSink, hash_tag
from statestore_runtime.sinks.values import check_callable, key_bytes, seconds_of, value_bytes

Text = str | bytes

_SET, _DELETE = b"=", b"-"  # begin what is staged for a key

# KEYS: the job's hash, and the target hash or the keys to write; ARGV: attempt, subtask, call, 1 when the target is a hash, number of keys
# and values to set, these, and the keys to remove. Lua can unpack only a few thousand arguments at a time, so everything goes in slices.
_UPSERT = f"""{OWNED}{ONCE}
local set_end = 5 + tonumber(ARGV[5])
for i = 6, set_end, 2000 do
  local last = math.min(i + 1999, set_end)
  if ARGV[4] == '1' then redis.call('HSET', KEYS[2], unpack(ARGV, i, last)) else redis.call('MSET', unpack(ARGV, i, last)) end
end
for i = set_end + 1, #ARGV, 2000 do
  local last = math.min(i + 1999, #ARGV)
  if ARGV[4] == '1' then redis.call('HDEL', KEYS[2], unpack(ARGV, i, last)) else redis.call('DEL', unpack(ARGV, i, last)) end
end
return 0
"""

_STAGE_UPSERTS = """
for i = 5, #ARGV, 2000 do redis.call('HSET', KEYS[3], unpack(ARGV, i, math.min(i + 1999, #ARGV))) end
return 0
"""

_APPLY_UPSERTS = """
    local entries, put, removed = redis.call('HGETALL', staged), {{}}, {{}}
    for j = 1, #entries, 2 do
      local value = entries[j + 1]
      if string.byte(value) == 61 then
        put[#put + 1] = entries[j]
        put[#put + 1] = string.sub(value, 2)
      else
        removed[#removed + 1] = entries[j]
      end
    end
    for j = 1, #put, 2000 do redis.call({put}, unpack(put, j, math.min(j + 1999, #put))) end
    for j = 1, #removed, 2000 do redis.call({remove}, unpack(removed, j, math.min(j + 1999, #removed))) end
"""

_APPLY_TO_HASH = _APPLY_UPSERTS.format(put="'HSET', KEYS[3]", remove="'HDEL', KEYS[3]")
_APPLY_TO_KEYS = _APPLY_UPSERTS.format(put="'MSET'", remove="'DEL'")


class RedisSink(RedisStagingSink):
    """Keeps the newest value of each key in Redis.

    Parameters
    ----------
    url
        Of the server, such as "redis://host:6379/0", "rediss://..." or "redis+cluster://host:6379".
    key
        Makes an event's key: text, bytes, or a number.
    value
        Makes its value: text or bytes as they are, anything else as JSON; None removes the key. Without it, the event as JSON.
    mode
        "idempotent": values are written as they come, at the latest before a checkpoint. After a crash they are written again, so that each
        key ends with its newest value; in between, a reader may see values go back. "transactional": those of a checkpoint become visible
        together, in one step, when it is complete.
    hash
        Keys are fields of the hash of this name; otherwise they are keys of the server.
    prefix
        What their names begin with, without `hash`. On a cluster they need one slot: a prefix with braces, such as "{counts}:".
    socket_timeout
        How long to wait for an answer.

    Raises
    ------
    UsageError
        An argument can't be served.
    """

    def __init__(
        self,
        url: str,
        *,
        key: Callable[[Any], Text | int | float],
        value: Callable[[Any], Any] | None = None,
        mode: Literal["idempotent", "transactional"] = "idempotent",
        hash: str | None = None,
        prefix: str = "",
        socket_timeout: str = "5s",
    ):
        check_callable("RedisSink", "key", key)
        check_callable("RedisSink", "value", value, optional=True)
        if mode not in ("idempotent", "transactional"):
            raise UsageError(f"RedisSink mode is '{mode}'; known: idempotent, transactional")
        if hash is not None and prefix:
            raise UsageError("RedisSink takes a hash or a prefix, not both")
        if "+cluster://" in url and hash is None and hash_tag(prefix) == prefix:
            raise UsageError("RedisSink on a cluster takes a hash, or a prefix with braces, such as '{counts}:'")
        self._key, self._value = key, value
        self._is_hash, self._prefix = hash is not None, prefix.encode()
        self._is_transactional = mode == "transactional"
        super().__init__(
            url,
            hash or prefix or "*",
            seconds_of("RedisSink", "socket_timeout", socket_timeout),
            kind="hash" if self._is_hash else None,
            stage=_STAGE_UPSERTS,
            apply=_APPLY_TO_HASH if self._is_hash else _APPLY_TO_KEYS,
        )
        self._waiting: dict[bytes, bytes] = {}
        self._waiting_bytes = 0

    def _check_server(self) -> None:
        if self._is_transactional:  # a cache may throw values away that are visible
            super()._check_server()

    def write(self, batch: list[Any]) -> None:
        """Keep the newest values; write or stage them when they are many."""
        for event in batch:
            key = self._prefix + key_bytes(self.name, self._key(event))
            data = self._data_of(event)
            self._waiting[key] = data
            self._waiting_bytes += len(key) + len(data)
            if len(self._waiting) >= STAGE_ENTRIES or self._waiting_bytes >= STAGE_BYTES:
                self._flush()

    def _data_of(self, event: Any) -> bytes:
        if self._value is None:
            return _SET + value_bytes(self.name, event, is_json=True)
        value = self._value(event)
        return _DELETE if value is None else _SET + value_bytes(self.name, value)

    def _flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        if not waiting:
            return
        if self._is_transactional:
            self._stage([part for entry in waiting.items() for part in entry])
            return
        pairs = [part for key, data in waiting.items() if data != _DELETE for part in (key, data[1:])]
        removed = [key for key, data in waiting.items() if data == _DELETE]
        keys: list[Text] = [self._base, self._target] if self._is_hash else [self._base, *waiting]
        self._run_once(_UPSERT, keys, [int(self._is_hash), len(pairs), *pairs, *removed])

    def close(self) -> None:
        """Give up what waits in memory."""
        super().close()
        self._waiting, self._waiting_bytes = {}, 0


_STAGE_ENTRIES_OF_STREAM = """
local i = 5
while i <= #ARGV do
  local last = i + tonumber(ARGV[i])
  redis.call('XADD', KEYS[3], '*', unpack(ARGV, i + 1, last))
  i = last + 1
end
return 0
"""

# A page of the staged stream after the other.
_APPLY_TO_STREAM = """
    local from = '-'
    while from do
      local page = redis.call('XRANGE', staged, from, '+', 'COUNT', 1000)
      for _, entry in ipairs(page) do redis.call('XADD', KEYS[3], {trim} '*', unpack(entry[2])) end
      from = #page == 1000 and '(' .. page[1000][1] or nil
    end
"""

FIELDS_MAX = 1000
"""Lua can unpack only a few thousand arguments at a time."""


class RedisStreamSink(RedisStagingSink):
    """Adds an entry to a Redis stream for each event, exactly once, when its checkpoint is complete.

    Parameters
    ----------
    url
        Of the server, such as "redis://host:6379/0", "rediss://..." or "redis+cluster://host:6379".
    stream
        Name of the stream.
    fields
        Makes an event's fields: a dict whose values are text or bytes, or anything else, as JSON. Without it, they are "data", the event as
        JSON.
    maxlen
        About how many entries to keep; the oldest go.
    socket_timeout
        How long to wait for an answer.

    Raises
    ------
    UsageError
        An argument can't be served.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        *,
        fields: Callable[[Any], Mapping[str, Any]] | None = None,
        maxlen: int | None = None,
        socket_timeout: str = "5s",
    ):
        check_callable("RedisStreamSink", "fields", fields, optional=True)
        if maxlen is not None and (not isinstance(maxlen, int) or maxlen <= 0):
            raise UsageError(f"RedisStreamSink maxlen is {maxlen!r}; it must be a number of entries")
        trim = "" if maxlen is None else f"'MAXLEN', '~', {maxlen},"
        super().__init__(
            url,
            stream,
            seconds_of("RedisStreamSink", "socket_timeout", socket_timeout),
            kind="stream",
            stage=_STAGE_ENTRIES_OF_STREAM,
            apply=_APPLY_TO_STREAM.format(trim=trim),
        )
        self._fields = fields
        self._waiting: list[Any] = []
        self._waiting_entries = self._waiting_bytes = 0

    def write(self, batch: list[Any]) -> None:
        """Keep the entries; stage them when they are many."""
        for event in batch:
            fields = self._entry_of(event)
            self._waiting += [len(fields), *fields]
            self._waiting_entries += 1
            self._waiting_bytes += sum(map(len, fields))
            if self._waiting_entries >= STAGE_ENTRIES or self._waiting_bytes >= STAGE_BYTES:
                self._flush()

    def _entry_of(self, event: Any) -> list[bytes]:
        if self._fields is None:
            return [b"data", value_bytes(self.name, event, is_json=True)]
        fields = self._fields(event)
        if not isinstance(fields, Mapping) or not 0 < len(fields) <= FIELDS_MAX:
            raise UsageError(f"{self.name}: an entry's fields must be a dict of 1 to {FIELDS_MAX}, not {fields!r:.80}")
        return [
            part
            for name, value in fields.items()
            for part in (key_bytes(self.name, name), value_bytes(self.name, value))
        ]

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._waiting_entries = self._waiting_bytes = 0
        if waiting:
            self._stage(waiting)

    def close(self) -> None:
        """Give up what waits in memory."""
        super().close()
        self._waiting = []
        self._waiting_entries = self._waiting_bytes = 0
