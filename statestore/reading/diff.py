"""What differs between two checkpoints: keys added, removed and changed, state by state.

Invariants:
- states are matched by name, keys by their encoding, values by what they mean: neither the numbers of states, nor schema versions, nor
  times of the last touch make a difference; what had expired, by a checkpoint's own clocks, is not in it;
- both sides are read once, in key order; one block of each open scan and one key's value of each side are in memory.

With d the greatest common divisor of the two numbers of key groups, a key's group is the same modulo d on both sides. So the groups that
leave the same remainder are merged into one stream on each side: one group each where the numbers are equal.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from statestore.errors import IncompatibleStateError, UsageError, did_you_mean
from statestore.reading.reader import StateReader, read
from statestore.reading.records import Record
from statestore.reading.state import StateInfo, StoredState
from statestore.state import ABSENT

ChangeKind = Literal["added", "removed", "changed"]


class Change(NamedTuple):
    """A key of a state that is not the same in both; of timers, a key's timer."""

    state: str
    key: Any
    change: ChangeKind
    before: Any
    """Value on the first side, None where the key is added."""
    after: Any
    """Value on the second side, None where the key is removed."""


class Counts(NamedTuple):
    """How many keys of a state differ."""

    added: int
    removed: int
    changed: int


def diff(before: str | StateReader, after: str | StateReader, *, states: Iterable[str] | None = None) -> Diff:
    """Compare two checkpoints, of the same job or not, made on whatever backends and with whatever number of key groups.

    Parameters
    ----------
    before, after
        As `statestore.read` takes them, or what it has returned.
    states
        Only these.

    Raises
    ------
    UsageError
        Neither has such a state.
    IncompatibleStateError
        A state is of another kind or key type on the other side.
    CheckpointNotFoundError, CorruptionError, UnavailableError
        As from `statestore.read`; also from reading the differences.
    """
    one, other = (read(side) if isinstance(side, str) else side for side in (before, after))
    return Diff(one, other, states)


class Diff:
    """The differences, found while they are asked for. Made by `statestore.diff`; iterating again reads again.

    Attributes
    ----------
    states
        Names of the states that are compared.
    shares
        Into how many pieces the work of each state is divided.
    """

    def __init__(self, before: StateReader, after: StateReader, states: Iterable[str] | None = None):
        self.before, self.after = before, after
        infos = [{info.name: info for info in side.states} for side in (before, after)]
        known = infos[0] | infos[1]
        self.states = list(known) if states is None else list(states)
        for name in self.states:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UsageError(f"there is no state '{name}'{f'; {hint}' if hint else ''}")
            if name in infos[0] and name in infos[1]:
                _check_alike(infos[0][name], infos[1][name])
        self._infos = infos
        self.shares = math.gcd(before.max_parallelism, after.max_parallelism)

    def __iter__(self) -> Iterator[Change]:
        return (
            change for state in self.states for share in range(self.shares) for change in self.changes(state, share)
        )

    def summary(self) -> dict[str, Counts]:
        """How many keys of each state differ, by reading all of it."""
        return {
            state: count(change for share in range(self.shares) for change in self.changes(state, share))
            for state in self.states
        }

    def changes(self, state: str, share: int) -> Iterator[Change]:
        """One piece of a state's differences, 0 <= share < shares."""
        one, other = (
            side.state(state) if state in infos else None
            for side, infos in zip((self.before, self.after), self._infos, strict=True)
        )
        kept = one or other
        assert kept is not None, "a known state is on one side at least"
        decode = kept.key_codec.decode
        may_expire = any(side is not None and side.reader.expires for side in (one, other))
        for mine, theirs in _matched(self._records(one, self.before, share), self._records(other, self.after, share)):
            if mine is not None and theirs is not None and mine.entries == theirs.entries and not may_expire:
                continue
            change = _compared(_value(one, mine), _value(other, theirs))
            if change is not None:
                key = decode((mine or theirs).key)  # type: ignore[union-attr]
                yield Change(state, key, *change)

    def _records(self, state: StoredState | None, side: StateReader, share: int) -> Iterator[Record]:
        if state is None:
            return iter(())
        groups = range(share, side.max_parallelism, self.shares)
        return heapq.merge(*map(state.records, groups), key=lambda record: record.order)


def count(changes: Iterable[Change]) -> Counts:
    """Number of changes of each kind."""
    counts = {"added": 0, "removed": 0, "changed": 0}
    for change in changes:
        counts[change.change] += 1
    return Counts(**counts)


def _check_alike(one: StateInfo, other: StateInfo) -> None:
    kinds = [
        f"{info.kind}{f'[{info.map_key_type}]' if info.map_key_type else ''} state keyed by {info.key_type}"
        for info in (one, other)
    ]
    if kinds[0] != kinds[1]:
        raise IncompatibleStateError(
            f"state '{one.name}' can't be compared: it is {kinds[0]} in the first checkpoint and {kinds[1]} in the second"
        )


def _matched(one: Iterator[Record], other: Iterator[Record]) -> Iterator[tuple[Record | None, Record | None]]:
    """Records of both sides with the same key together, None where one has none."""
    mine, theirs = next(one, None), next(other, None)
    while mine is not None or theirs is not None:
        if theirs is None or (mine is not None and mine.order < theirs.order):
            yield mine, None
            mine = next(one, None)
        elif mine is None or theirs.order < mine.order:
            yield None, theirs
            theirs = next(other, None)
        else:
            yield mine, theirs
            mine, theirs = next(one, None), next(other, None)


def _value(state: StoredState | None, record: Record | None) -> Any:
    return ABSENT if state is None or record is None else state.reader.value(record)


def _compared(old: Any, new: Any) -> tuple[ChangeKind, Any, Any] | None:
    """What has changed, and the values before and after; None when nothing has."""
    if old is ABSENT:
        return None if new is ABSENT else ("added", None, new)
    if new is ABSENT:
        return "removed", old, None
    return None if _is_same(old, new) else ("changed", old, new)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values of builtin types, or arrays, are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if getattr(one, "shape", ()) != getattr(other, "shape", ()):
        return False
    equal = one == other
    return bool(equal.all() if hasattr(equal, "all") else equal)
