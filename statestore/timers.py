"""Timers: moments at which a key wants to be called, kept as state.

A key group's timers are one ordered collection, so that the earliest are found without knowing the others:

    entry = key group u16 BE · state id u16 BE · 00 (no key) · 00 · time in ms u64 BE, its sign bit flipped · encoded key

Invariants:
- in memory are the uncommitted changes and, of each key group, the earliest timers only; the rest is where the state is;
- of every key group all stored timers up to its `horizon` are in its buffer: a new one up to there goes in, a later one need not;
- a timer that `due` has handed out is removed with the epoch that it was handed out in, so after a crash it comes again exactly when
  that epoch has not become part of the state.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

from statestore.envelope import plain_head
from statestore.errors import UsageError
from statestore.keys import foreign_key, group_start, key_group_of
from statestore.types import KeyGroup

if TYPE_CHECKING:
    from statestore.keyed import KeyedState
    from statestore.pending import EpochBatch
    from statestore.ttl import TimeDomain

BUFFER_TIMERS = 256
"""Of each key group, after reading; twice as many before some are forgotten again."""

CHANGE_BYTES = 300
"""What an uncommitted change costs in memory."""

_STORED = plain_head(0) + b"\xc0"
_EPOCH_SIGN = 1 << 63
_TIME_BYTES = 8
_PREFIX_BYTES = 6

_time_of = itemgetter(slice(_TIME_BYTES))
"""First bytes of a timer."""


def _milliseconds(at: float) -> int:
    try:
        return round(at * 1000)
    except (OverflowError, ValueError):
        raise _beyond(at) from None


def _time_bytes(time_ms: int) -> bytes:
    try:
        return (time_ms + _EPOCH_SIGN).to_bytes(_TIME_BYTES, "big")
    except OverflowError:
        raise _beyond(time_ms / 1000) from None


def _beyond(at: float) -> UsageError:
    return UsageError(f"no timer can be set for {at}: its milliseconds must fit into 64 bits")


def key_of_timer(entry_key: bytes) -> bytes:
    """Encoded key of a timer's entry."""
    return entry_key[_PREFIX_BYTES + _TIME_BYTES :]


class _Group:
    """The earliest timers of a key group; each is its time and key as bytes, one behind the other."""

    __slots__ = ("buffer", "changes", "horizon", "is_complete", "prefix")

    def __init__(self, prefix: bytes):
        self.prefix = prefix
        self.buffer: list[bytes] = []
        self.horizon = b""
        """All stored timers up to it are in the buffer."""
        self.is_complete = False
        """Whether the buffer has all there are."""
        self.changes: dict[bytes, bool] = {}
        """Timers set (True) and deleted since the last commit."""

    def insert(self, timer: bytes) -> bool:
        """Put a timer into the buffer, if it belongs there and is not there yet; whether it is the first one now."""
        buffer = self.buffer
        if not (self.is_complete or timer <= self.horizon):
            return False
        position = bisect_left(buffer, timer)
        if position < len(buffer) and buffer[position] == timer:
            return False
        buffer.insert(position, timer)
        if len(buffer) > 2 * BUFFER_TIMERS:
            del buffer[BUFFER_TIMERS:]
            self.horizon, self.is_complete = buffer[-1], False
        return position == 0

    def remove(self, timer: bytes) -> bool:
        """Take a timer out of the buffer, if it is there; whether it was the first one."""
        position = bisect_left(self.buffer, timer)
        if position == len(self.buffer) or self.buffer[position] != timer:
            return False
        del self.buffer[position]
        return position == 0

    def take_until(self, time: bytes) -> list[bytes]:
        """Take the timers up to a time out of the buffer."""
        count = bisect_right(self.buffer, time, key=_time_of)
        taken = self.buffer[:count]
        del self.buffer[:count]
        self.changes.update(dict.fromkeys(taken, False))
        return taken


def split_timer(timer: bytes) -> tuple[int, bytes]:
    """Time in milliseconds and encoded key of a timer, which is its time and key as bytes."""
    return int.from_bytes(timer[:_TIME_BYTES], "big") - _EPOCH_SIGN, timer[_TIME_BYTES:]


class Timers:
    """Timers of one operator, set and deleted for the current key. The same time for the same key counts once.

    Made by `timers()` of a store or scope. Times are Unix times in seconds, kept to the millisecond.
    """

    kind = "timers"

    def __init__(
        self,
        name: str,
        scope: KeyedState,
        state_id: int,
        max_parallelism: int,
        key_groups: range,
        time: TimeDomain,
    ):
        self.name, self.time = name, time
        self._scope, self._max_parallelism, self._key_groups = scope, max_parallelism, key_groups
        tail = state_id.to_bytes(2, "big") + b"\0\0"
        self._groups = {group: _Group(group_start(group) + tail) for group in key_groups}
        self._heap: list[tuple[bytes, int]] = []  # the first timer of each group, and some that are it no more
        self._is_loaded = False

    def __repr__(self) -> str:
        return f"<Timers '{self.name}' in {self.time}>"

    def register(self, at: float) -> None:
        """Have the current key called at this time; one that is past is due at once.

        Raises
        ------
        UsageError
            There is no current key, it is of another store's key groups, or the time is beyond 64 bits of milliseconds.
        """
        self._set(_milliseconds(at), [self._scope.encoded_key()])

    def register_many(self, time_ms: int, keys: Sequence[Any]) -> None:
        """Have several keys called at one time, in milliseconds. Raises UsageError as `register` does."""
        self._set(time_ms, self._scope.encode_keys(keys))

    def _set(self, time_ms: int, encoded_keys: list[bytes]) -> None:
        time, groups, max_parallelism = _time_bytes(time_ms), self._groups, self._max_parallelism
        for key in encoded_keys:
            number = xxh3_64_intdigest(key) % max_parallelism
            group = groups.get(number)
            if group is None:
                raise foreign_key(key, KeyGroup(number), self._key_groups)
            timer = time + key
            group.changes[timer] = True
            if group.insert(timer) and self._is_loaded:
                heapq.heappush(self._heap, (timer, number))

    def delete(self, at: float) -> None:
        """Forget the current key's timer for this time, if it is set. Raises UsageError as `register` does."""
        key = self._scope.encoded_key()
        number = key_group_of(key, self._max_parallelism)
        if number not in self._groups:
            raise foreign_key(key, number, self._key_groups)
        group, timer = self._groups[number], _time_bytes(_milliseconds(at)) + key
        group.changes[timer] = False
        if group.remove(timer):
            self._push_first(number)

    def due(self, until: float | None = None) -> Iterator[tuple[float, Any]]:
        """Take out the timers up to a time, in the order of their times; each key is made the current one.

        What is set meanwhile is taken too, if it is due.

        Parameters
        ----------
        until
            Included. By default the present time: by the store's clock, or as far as event time has come.
        """
        until_ms = self._scope.now_ms(self.time) if until is None else _milliseconds(until)
        if until_ms is not None:
            yield from ((time_ms / 1000, key) for time_ms, key in self.take(until_ms))

    def take(self, until_ms: int) -> Iterator[tuple[int, Any]]:
        """As `due`, in milliseconds."""
        scope, end = self._scope, _time_bytes(until_ms)
        while (first := self._first()) is not None and first[0][:_TIME_BYTES] <= end:
            timer, number = first
            group = self._groups[number]
            del group.buffer[0]
            group.changes[timer] = False
            self._replace_first(number)
            time_ms, encoded = split_timer(timer)
            scope.key = key = scope.decode_key(encoded)
            yield time_ms, key

    def take_together(self, until_ms: int, limit: int) -> tuple[int, list[Any]] | None:
        """Take out timers of one time, the earliest up to `until_ms`: that time in milliseconds and about `limit` of its keys.

        None when no timer is due. The current key stays.
        """
        first = self._first()
        if first is None:
            return None
        time_ms, _ = split_timer(first[0])
        if time_ms > until_ms:
            return None
        time, keys, decode = _time_of(first[0]), list[Any](), self._scope.decode_key
        while first is not None and _time_of(first[0]) == time and len(keys) < limit:
            taken = self._groups[first[1]].take_until(time)
            self._replace_first(first[1])
            keys += [decode(timer[_TIME_BYTES:]) for timer in taken]
            first = self._first()
        return time_ms, keys

    def next_time(self) -> float | None:
        """Time of the earliest timer, None when none is set."""
        time_ms = self.next_time_ms()
        return None if time_ms is None else time_ms / 1000

    def next_time_ms(self) -> int | None:
        """The same in milliseconds."""
        first = self._first()
        return None if first is None else split_timer(first[0])[0]

    def _first(self) -> tuple[bytes, int] | None:
        if not self._is_loaded:
            self._is_loaded = True
            for number in self._groups:
                self._push_first(number)
        while self._heap:
            timer, number = self._heap[0]
            buffer = self._groups[number].buffer
            if buffer and buffer[0] == timer:
                return timer, number
            heapq.heappop(self._heap)
        return None

    def _replace_first(self, number: int) -> None:
        """The first timer of all, which was this group's, is taken."""
        group = self._groups[number]
        if not group.buffer and not group.is_complete:
            self._refill(group)
        if group.buffer:
            heapq.heapreplace(self._heap, (group.buffer[0], number))
        else:
            heapq.heappop(self._heap)

    def _push_first(self, number: int) -> None:
        group = self._groups[number]
        if not group.buffer and not group.is_complete and self._is_loaded:
            self._refill(group)
        if group.buffer:
            heapq.heappush(self._heap, (group.buffer[0], number))

    def _refill(self, group: _Group) -> None:
        """Read the timers behind the horizon."""
        length = len(group.prefix)
        changes = {group.prefix + timer: _STORED if is_set else None for timer, is_set in group.changes.items()}
        start = group.prefix + group.horizon + b"\0" if group.horizon else group.prefix
        entries = self._scope.read_first(group.prefix, start, BUFFER_TIMERS, changes)
        group.buffer = [entry[length:] for entry in entries]
        group.is_complete = len(entries) < BUFFER_TIMERS
        if group.buffer:
            group.horizon = group.buffer[-1]

    # What the store asks of every state

    @property
    def dirty_bytes(self) -> int:
        """Estimated memory that is pinned by uncommitted changes."""
        return sum(len(group.changes) for group in self._groups.values()) * CHANGE_BYTES

    def set_capacity(self, capacity_bytes: int) -> None:
        """Nothing to bound: the buffers are small."""

    def flush(self, batch: EpochBatch) -> None:
        """Put all changes since the last commit into `batch`."""
        for group in self._groups.values():
            if group.changes:
                entries = {group.prefix + timer: _STORED if is_set else None for timer, is_set in group.changes.items()}
                batch.put_collection_many(group.prefix, entries)

    def flushed(self) -> None:
        """What was flushed is on its way to the log, or the store fails."""
        for group in self._groups.values():
            group.changes.clear()

    def forget(self) -> None:
        """Drop all changes since the last `flushed`, and read the timers again when they are needed."""
        for group in self._groups.values():
            group.buffer, group.horizon, group.is_complete = [], b"", False
            group.changes.clear()
        self._heap, self._is_loaded = [], False
