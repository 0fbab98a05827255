"""State handles with a time-out. They cache with every value when it was last touched, and never hand out an expired one.

Single values and map entries expire one by one; so do the elements of a list, whose first ones are always the oldest. What is found
expired when it is asked for is removed with the next commit; the rest is swept away (`statestore.sweep`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from statestore.collection_state import CHUNK_ELEMENTS, CachedList, ListState, MapState
from statestore.envelope import plain_head, stamped_head
from statestore.keys import length_prefix
from statestore.state import ABSENT, AggregatingState, ReducingState, SingleState, State, ValueState
from statestore.ttl import Expiry

if TYPE_CHECKING:
    from statestore.pending import EpochBatch

T = TypeVar("T")

_pack = msgspec.msgpack.Encoder().encode


class _Expiring(State[T]):
    """Cached values are pairs of value and time of the last touch, which is None while the time is not known."""

    expiry: Expiry

    def _decode(self, stored: bytes) -> Any:
        return super()._decode(stored), self.expiry.touched(stored)

    def _decode_each(self, stored: list[bytes]) -> list[Any]:
        return list(map(self._decode, stored))

    def _is_expired(self, touched: int | None) -> bool:
        return self.expiry.has_passed(touched, self.expiry.now())

    def _head_at(self, touched: int | None) -> bytes:
        version = self._head[0] >> 2
        return plain_head(version) if touched is None else stamped_head(version, self.expiry.domain, touched)


class _ExpiringSingle(_Expiring[T], SingleState[T]):
    def _current(self) -> Any:
        return self._live(self._scope.key, super()._current())

    def _live(self, key: Any, found: Any) -> Any:
        """Value of a cached pair, or ABSENT."""
        if found is ABSENT:
            return ABSENT
        value, touched = found
        if self._is_expired(touched):
            self._changed[key] = ABSENT
            return ABSENT
        if self.expiry.touches_on_read:
            self._changed[key] = value, self.expiry.now()
        return value

    def _put(self, value: Any) -> None:
        self._changed[self._scope.key] = value, self.expiry.now()

    def _to_store(self, values: list[Any]) -> list[bytes]:
        heads = {touched: self._head_at(touched) for touched in {touched for _, touched in values}}
        encoded = self._codec.checked_each([value for value, _ in values], b"", self.name)
        return [heads[touched] + data for (_, touched), data in zip(values, encoded, strict=True)]


class ExpiringValueState(_ExpiringSingle[T], ValueState[T]):
    """`ValueState` with a time-out."""

    def value(self) -> T:
        """The current key's value; the default where there is none or it has expired."""
        return self._or_default(self._current())

    def _or_default(self, found: Any) -> T:
        if found is ABSENT:
            found = self._default if self._fresh is None else self._fresh()
        return found  # type: ignore[no-any-return]

    def update(self, value: T) -> None:
        """Set the current key's value."""
        self._put(value)

    def get_many(self, keys: Sequence[Any]) -> list[T]:
        """As `ValueState.get_many`; what has expired is not there."""
        self._scope.check_keys(keys)
        self._load_many(keys)
        changed, young = self._changed, self._young
        found = [self._live(key, changed[key] if key in changed else young[key]) for key in keys]
        return [self._or_default(value) for value in found]

    def update_many(self, keys: Sequence[Any], values: Sequence[T]) -> None:
        """As `ValueState.update_many`."""
        now = self.expiry.now()
        super().update_many(keys, [(value, now) for value in values])  # type: ignore[misc]


class ExpiringReducingState(_ExpiringSingle[T], ReducingState[T]):
    """`ReducingState` with a time-out."""


class ExpiringAggregatingState(_ExpiringSingle[T], AggregatingState[T]):
    """`AggregatingState` with a time-out."""


class ExpiringListState(_Expiring[T], ListState[T]):
    """`ListState` whose elements have a time-out, each its own."""

    def _fetch_tail(self, key: Any, head: bytes) -> CachedList:
        cached = super()._fetch_tail(key, head)
        if self._is_expired(
            self.expiry.touched(head)
        ):  # of its newest element: begin anew, and overwrite or drop what is there
            cached.start, cached.items, cached.changed_from = 0, [], 0
        return cached

    def _decode_chunk(self, stored: bytes) -> list[Any]:
        ages, elements = self._split_chunk(stored)
        return list(zip(elements, self.expiry.touched_each(stored, ages, len(elements)), strict=True))

    def _live_from(self, cached: CachedList) -> int:
        """Index in `items` of the first element that has not expired."""
        now, passed = self.expiry.now(), self.expiry.has_passed
        return next((n for n, (_, touched) in enumerate(cached.items) if not passed(touched, now)), len(cached.items))

    def get(self) -> list[T]:
        """A copy of what has not expired of the current key's list."""
        cached = self._whole()
        live = cached.items[self._live_from(cached) :]
        elements = [element for element, _ in live]
        if self.expiry.touches_on_read and elements:
            now = self.expiry.now()
            cached.items[len(cached.items) - len(live) :] = [(element, now) for element in elements]
            cached.changed_from = min(cached.changed_from, cached.length - len(live))
            self._changed[self._scope.key] = cached
            self._added += len(elements)
        self._has_grown(cached)
        return elements

    def __len__(self) -> int:
        cached = self._whole()
        length = len(cached.items) - self._live_from(cached)
        self._has_grown(cached)
        return length

    def add(self, value: T) -> None:
        """Append one element."""
        super().add((value, self.expiry.now()))  # type: ignore[arg-type]

    def add_all(self, values: Iterable[T]) -> None:
        """Append several elements."""
        now = self.expiry.now()
        super().add_all([(value, now) for value in values])  # type: ignore[misc]

    def update(self, values: Iterable[T]) -> None:
        """Replace the list."""
        now = self.expiry.now()
        super().update([(value, now) for value in values])  # type: ignore[misc]

    def _encode_list(self, key: Any, cached: CachedList, batch: EpochBatch) -> int:
        size = super()._encode_list(key, cached, batch)
        gone = self._live_from(cached) // CHUNK_ELEMENTS
        if gone and cached.start == cached.floor:  # else it is not known what is before
            first = cached.start // CHUNK_ELEMENTS
            for chunk in range(first, first + gone):
                batch.put(self._entry(key, chunk), None)
            del cached.items[: gone * CHUNK_ELEMENTS]
            cached.start = cached.floor = (first + gone) * CHUNK_ELEMENTS
        return size

    def _list_head(self, cached: CachedList) -> bytes:
        return self._head_at(cached.items[-1][1] if cached.items else self.expiry.now())

    def _encode_chunk(self, items: list[Any], stored: int) -> bytes:
        elements = self._codec.checked_many([element for element, _ in items], stored, self.name)
        newest = items[-1][1]
        if newest is None:
            return self._head_at(None) + elements
        ages = _pack([0 if touched is None else newest - touched for _, touched in items])
        return self._head_at(newest) + length_prefix(ages) + ages + elements


class ExpiringMapState(_Expiring[T], MapState[Any, T]):
    """`MapState` whose entries have a time-out, each its own."""

    def _lookup(self, map_key: Any) -> Any:
        return self._live(map_key, super()._lookup(map_key))

    def _live(self, map_key: Any, found: Any) -> Any:
        if found is ABSENT:
            return ABSENT
        value, touched = found
        if self._is_expired(touched):
            super()._change(map_key, ABSENT)
            return ABSENT
        if self.expiry.touches_on_read:
            self._change(map_key, value)
        return value

    def _entries(self) -> dict[Any, T]:
        live = {map_key: self._live(map_key, found) for map_key, found in super()._entries().items()}
        return {map_key: value for map_key, value in live.items() if value is not ABSENT}

    def _change(self, map_key: Any, value: Any) -> None:
        super()._change(map_key, value if value is ABSENT else (value, self.expiry.now()))

    def _encode_entry(self, value: Any) -> bytes:
        return self._head_at(value[1]) + self._codec.checked(value[0], self.name)


EXPIRING: dict[type[State[Any]], type[_Expiring[Any]]] = {
    ValueState: ExpiringValueState,
    ReducingState: ExpiringReducingState,
    AggregatingState: ExpiringAggregatingState,
    ListState: ExpiringListState,
    MapState: ExpiringMapState,
}
"""The form with a time-out of each kind of state."""
