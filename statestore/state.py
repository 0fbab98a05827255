"""State handles: what user code reads and writes, always for the current key of their scope.

A handle keeps decoded objects in dictionaries: those changed since the last commit, and two generations of unchanged ones. A key is
looked up in this order; one found in the old generation moves to the young one; when that fills half of the memory allowed it becomes
the old one, and what nobody asked for since leaves. How much an entry takes is known from its encoding, and from measuring one now and
then. So what is not committed stays, and a key that is updated again and again costs the look-ups of one dictionary. Nothing is
encoded or hashed (beyond the dictionary's own hash) before the commit.

An object that a handle hands out belongs to the store: change a copy, or call `update` after changing it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import filterfalse, repeat
from operator import is_
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from statestore.codecs import Codec
from statestore.defaults import fresh_value
from statestore.envelope import open_envelope, plain_head
from statestore.errors import UsageError
from statestore.footprint import footprint
from statestore.keys import EntryKeys

if TYPE_CHECKING:
    from statestore.keyed import KeyedState
    from statestore.pending import EpochBatch

T = TypeVar("T")
A = TypeVar("A")

ENTRY_OVERHEAD_BYTES = 150
"""What a cached entry costs beside its encoded size: dictionary slots, key and value objects."""

OBJECT_FACTOR = 3.0
"""How much larger a decoded value is than its encoding, before it is measured."""

ENCODED_TOGETHER = 1024
"""Values that are encoded together: few enough to stay in the processor's cache for all that is done to them."""

SAMPLE_WEIGHT = 1 / 4
"""Of one more measurement in a moving average."""


class _Absent:
    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""In a cache: it is known that nothing is stored."""

UNKNOWN: Any = object()
"""Of a cache: it has nothing about a key."""


class State(Generic[T]):
    """What all handles share: the changed entries, the two generations of unchanged ones, and the commit."""

    kind: str

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys):
        self.name = name
        self._scope, self._codec, self._keys = scope, codec, keys
        self._head = plain_head(codec.version)
        self._changed: dict[Any, Any] = {}
        self._young: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}
        self._young_bytes = self._old_bytes = 0.0
        self._capacity_bytes = self._flushed_bytes = 0
        self._holds_all = not scope.holds_entries
        """Whether nothing is stored but what is cached: so it was at the beginning, and nothing has left the cache since."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.name}' of {self._codec.name}>"

    # Cache

    @property
    @abstractmethod
    def dirty_bytes(self) -> int:
        """Estimated memory that is pinned by uncommitted changes."""

    @property
    def cached_bytes(self) -> int:
        """Estimated memory of the clean entries."""
        return int(self._young_bytes + self._old_bytes)

    def set_capacity(self, capacity_bytes: int) -> None:
        """Bound the memory that clean entries may take."""
        self._capacity_bytes = capacity_bytes

    def _current(self) -> Any:
        """What is cached for the current key, loaded if need be."""
        key = self._scope.key
        found = self._changed.get(key, UNKNOWN)
        if found is UNKNOWN:
            found = self._young.get(key, UNKNOWN)
            if found is UNKNOWN:
                found = self._load(key)
        return found

    def _load(self, key: Any) -> Any:
        """Bring `key` into the young generation, from the old one or from the store."""
        found = self._old.pop(key, UNKNOWN)
        if found is UNKNOWN:
            found, size = self._fetch_nothing(key) if self._holds_all else self._fetch(key)
        else:
            size = self._old_bytes / (len(self._old) + 1)
            self._old_bytes -= size
        self._shrink()
        self._young[key] = found
        self._young_bytes += size
        return found

    def _shrink(self) -> bool:
        """Start a new generation if the young one fills half of the capacity."""
        is_full = self._young_bytes * 2 > self._capacity_bytes
        if is_full:
            self._drop_old()
            self._old, self._young = self._young, {}
            self._old_bytes, self._young_bytes = self._young_bytes, 0.0
        return is_full

    def _drop_old(self) -> None:
        if self._old:
            self._old, self._old_bytes, self._holds_all = {}, 0.0, False

    def _fetch_nothing(self, key: Any) -> tuple[Any, float]:
        if self._keys.are_shared:
            self._keys.of(self._scope.encode_key(key))  # which raises where the key is another store's
        return self._nothing()

    @abstractmethod
    def _nothing(self) -> tuple[Any, float]:
        """As `_fetch`, where nothing is stored."""

    @abstractmethod
    def _fetch(self, key: Any) -> tuple[Any, float]:
        """What the store holds for `key`, as this handle caches it, and about how much memory that takes."""

    @abstractmethod
    def _encode_changes(self, batch: EpochBatch) -> int:
        """Put all that has changed into `batch`; returns its size."""

    @abstractmethod
    def _keep_changed(self, size: int) -> None:
        """What has changed, `size` bytes encoded, is clean now: put it into the young generation."""

    def flush(self, batch: EpochBatch) -> None:
        """Encode all changes since the last commit into `batch`."""
        if self._changed:
            self._flushed_bytes = self._encode_changes(batch)
            batch.value_bytes += self._flushed_bytes

    def flushed(self) -> None:
        """What was flushed is on its way to the log, in the draft of an epoch, or the store fails: it is clean now."""
        if self._changed:
            self._shrink()
            self._keep_changed(self._flushed_bytes)
            self._changed.clear()
            if self.cached_bytes > self._capacity_bytes:
                self._drop_old()

    def forget(self) -> None:
        """Drop all changes since the last `flushed`, and all that is cached: what was handed out may have been changed as well."""
        self._changed.clear()
        self._young, self._old = {}, {}
        self._young_bytes = self._old_bytes = 0.0
        self._holds_all = not self._scope.holds_entries

    def clear(self) -> None:
        """Remove everything of the current key."""
        self._changed[self._scope.key] = ABSENT

    def _decode(self, stored: bytes) -> Any:
        """What is cached of a stored value. Raises CorruptionError."""
        version, payload = open_envelope(stored, self.name)
        return self._codec.decode_stored(payload, version, self.name)

    def _decode_each(self, stored: list[bytes]) -> list[Any]:
        """The same of several."""
        if all(map(bytes.startswith, stored, repeat(self._head))):
            return self._codec.decode_stored_each([data[1:] for data in stored], self._codec.version, self.name)
        return list(map(self._decode, stored))


class SingleState(State[T]):
    """A state with one value per key."""

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys):
        super().__init__(name, scope, codec, keys)
        self._loaded_batch: Sequence[Any] = scope.batch
        self._object_factor = OBJECT_FACTOR
        self._value_bytes = 100.0  # of a changed value, a moving average

    @property
    def dirty_bytes(self) -> int:
        """As `State.dirty_bytes`; looks at the newest change, so that large values are noticed before they are encoded."""
        if not self._changed:
            return 0
        newest = next(reversed(self._changed.values()))
        self._value_bytes += (footprint(newest) - self._value_bytes) * SAMPLE_WEIGHT
        return int(len(self._changed) * (self._value_bytes + ENTRY_OVERHEAD_BYTES))

    def _measure(self, value: Any, size: int) -> None:
        """Learn from a value and the size of its encoding."""
        if size:
            self._object_factor += (footprint(value) / size - self._object_factor) * SAMPLE_WEIGHT

    def _cost(self, count: int, size: float) -> float:
        """Memory of `count` entries of `size` encoded bytes."""
        return count * ENTRY_OVERHEAD_BYTES + self._object_factor * size

    def _keep_changed(self, size: int) -> None:
        young, changed = self._young, self._changed
        before, average = len(young), self._young_bytes / (len(young) or 1)
        young.update(changed)
        replaced = len(changed) - (len(young) - before)
        self._measure(next(reversed(changed.values())), size // len(changed))
        self._young_bytes += self._cost(len(changed), size) - replaced * average

    def _nothing(self) -> tuple[Any, float]:
        return ABSENT, ENTRY_OVERHEAD_BYTES

    def _fetch(self, key: Any) -> tuple[Any, float]:
        stored = self._scope.read(self._keys.of(self._scope.encode_key(key)))
        if stored is None:
            return self._nothing()
        value = self._decode(stored)
        self._measure(value, len(stored))
        return value, self._cost(1, len(stored))

    def _put(self, value: Any) -> None:
        """Set the current key's value."""
        self._changed[self._scope.key] = value

    def _load(self, key: Any) -> Any:
        """Bring `key`, and with it all other keys of the scope's batch, into the young generation."""
        batch = self._scope.batch
        if batch is not self._loaded_batch and not self._holds_all:
            self._loaded_batch = batch
            self._load_many(batch)
            found = self._young.get(key, UNKNOWN)
            if found is not UNKNOWN:
                return found
        return super()._load(key)

    def _load_many(self, keys: Iterable[Any]) -> None:
        """Load those of `keys` that are not cached, with one request to the backend."""
        unchanged = filterfalse(self._changed.__contains__, keys)
        missing = set(filterfalse(self._young.__contains__, unchanged))
        if not missing:
            return
        if self._shrink():
            missing = set(keys).difference(self._changed)
        young, old = self._young, self._old
        if old:
            held = missing & old.keys()
            moved = len(held) * self._old_bytes / len(old)
            for key in held:
                young[key] = old.pop(key)
            self._old_bytes -= moved
            self._young_bytes += moved
            missing -= held
        if self._holds_all:
            young.update(dict.fromkeys(missing, ABSENT))
            self._young_bytes += self._cost(len(missing), 0)
            return
        wanted = list(missing)
        found = self._scope.read_many(self._entry_keys(wanted))
        if None in found:
            young.update(dict.fromkeys(wanted, ABSENT))
            wanted = [key for key, stored in zip(wanted, found, strict=True) if stored is not None]
        there = [stored for stored in found if stored is not None]
        values = self._decode_each(there)
        young.update(zip(wanted, values, strict=True))
        size = sum(map(len, there))
        if values:
            self._measure(values[-1], len(there[-1]))
        self._young_bytes += self._cost(len(missing), size)

    def _encode_changes(self, batch: EpochBatch) -> int:
        # What stops the world at a checkpoint: it has no line of ours to run for each entry.
        keys, values = list(self._changed), list(self._changed.values())
        stored: list[bytes | None] = []
        for start in range(0, len(values), ENCODED_TOGETHER):
            stored += self._stored(values[start : start + ENCODED_TOGETHER])
        batch.put_later(keys, self._entry_keys, stored)
        return sum(map(len, filter(None, stored)))

    def _stored(self, values: list[Any]) -> Sequence[bytes | None]:
        """What is stored of cached values, None of those that are not there any more."""
        if type(ABSENT) not in set(map(type, values)):
            return self._to_store(values)
        kept = iter(self._to_store([value for value in values if value is not ABSENT]))
        return [None if value is ABSENT else next(kept) for value in values]

    def _entry_keys(self, keys: list[Any]) -> list[bytes]:
        return self._keys.of_many(self._scope.encode_keys(keys))

    def _to_store(self, values: list[Any]) -> list[bytes]:
        """What is stored of cached values."""
        return self._codec.checked_each(values, self._head, self.name)


class ValueState(SingleState[T]):
    """One value per key.

    `value()` gives the default (None unless declared) where nothing is stored; a default that can be changed in place is copied each time.
    """

    kind = "value"

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys, default: Any = None):
        super().__init__(name, scope, codec, keys)
        self._default = default
        self._fresh = fresh_value(default)

    def value(self) -> T:
        """The current key's value."""
        key = self._scope.key
        value = self._changed.get(key, UNKNOWN)  # `_current`, written out: this is the hottest line of all
        if value is UNKNOWN:
            value = self._young.get(key, UNKNOWN)
            if value is UNKNOWN:
                value = self._load(key)
        if value is ABSENT:
            value = self._default if self._fresh is None else self._fresh()
        return value  # type: ignore[no-any-return]

    def update(self, value: T) -> None:
        """Set the current key's value."""
        self._changed[self._scope.key] = value

    def get_many(self, keys: Sequence[Any]) -> list[T]:
        """Values of `keys` in their order; one request to the backend for those not cached.

        Raises
        ------
        UsageError
            A key is not of the declared type.
        """
        self._scope.check_keys(keys)
        values = self._cached(keys)
        if any(map(is_, values, repeat(UNKNOWN))):  # not `UNKNOWN in values`: arrays can't be compared
            self._load_many(keys)
            values = self._cached(keys)
        default, fresh = self._default, self._fresh
        return [(default if fresh is None else fresh()) if value is ABSENT else value for value in values]

    def _cached(self, keys: Sequence[Any]) -> list[Any]:
        """What is cached of `keys`, UNKNOWN of those that have to be loaded."""
        changed, young = self._changed, self._young
        return [
            value if (value := changed.get(key, UNKNOWN)) is not UNKNOWN else young.get(key, UNKNOWN) for key in keys
        ]

    def update_many(self, keys: Sequence[Any], values: Sequence[T]) -> None:
        """Set the values of `keys`; of a key given twice, the last one stays.

        Raises
        ------
        UsageError
            A key is not of the declared type, or there are not as many values as keys.
        """
        if len(keys) != len(values):
            raise UsageError(f"state '{self.name}': {len(keys)} keys and {len(values)} values")
        self._scope.check_keys(keys)
        self._changed.update(zip(keys, values, strict=True))

    def clear_many(self, keys: Sequence[Any]) -> None:
        """Remove the values of `keys`. Raises UsageError when one is not of the declared type."""
        self._scope.check_keys(keys)
        self._changed.update(dict.fromkeys(keys, ABSENT))


class ReducingState(SingleState[T]):
    """The values added for a key, combined by a function."""

    kind = "reducing"

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys, function: Callable[[T, T], T]):
        super().__init__(name, scope, codec, keys)
        self._function = function

    def add(self, value: T) -> None:
        """Combine `value` into the current key's."""
        current = self._current()
        self._put(value if current is ABSENT else self._function(current, value))

    def get(self) -> T | None:
        """The combined value, None where nothing was added."""
        current = self._current()
        return None if current is ABSENT else current


@runtime_checkable
class AggregateFunction(Protocol):
    """Combines inputs into an accumulator and that into a result."""

    def create_accumulator(self) -> Any:
        """A new accumulator."""
        ...

    def add(self, value: Any, accumulator: Any) -> Any:
        """Accumulator with `value` in it; may change and return the one given."""
        ...

    def get_result(self, accumulator: Any) -> Any:
        """Result of an accumulator."""
        ...

    def merge(self, one: Any, other: Any) -> Any:
        """Accumulator of all that is in both."""
        ...


class AggregatingState(SingleState[A]):
    """The values added for a key, kept as the accumulator of an `AggregateFunction`."""

    kind = "aggregating"

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys, function: AggregateFunction):
        super().__init__(name, scope, codec, keys)
        self._function = function

    def add(self, value: Any) -> None:
        """Add `value` to the current key's accumulator."""
        current, function = self._current(), self._function
        before = function.create_accumulator() if current is ABSENT else current
        self._put(function.add(value, before))

    def get(self) -> Any:
        """Result for the current key, None where nothing was added."""
        current = self._current()
        return None if current is ABSENT else self._function.get_result(current)
