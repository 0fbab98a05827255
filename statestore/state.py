"""State handles: what user code reads and writes, always for the current key of their scope.

A handle keeps decoded objects in dictionaries: those changed since the last commit, and two generations of unchanged ones. A key is
looked up in this order; one found in the old generation moves to the young one; when that is full it becomes the old one, and what nobody
asked for since leaves. So what is not committed stays, and a key that is updated again and again costs the look-ups of one dictionary.
Nothing is encoded or hashed (beyond the dictionary's own hash) before the commit.

An object that a handle hands out belongs to the store: change a copy, or call `update` after changing it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import filterfalse
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

import msgspec

from statestore.codecs import Codec, fresh_value
from statestore.envelope import open_envelope, plain_head
from statestore.errors import UsageError
from statestore.keys import EntryKeys

if TYPE_CHECKING:
    from statestore.keyed import KeyedState
    from statestore.pending import EpochBatch

T = TypeVar("T")
A = TypeVar("A")

ENTRY_OVERHEAD_BYTES = 150
"""What a cached entry costs beside its encoded size: dictionary slots, key and value objects."""

OBJECT_FACTOR = 3
"""How much larger a decoded value is than its encoding, roughly."""


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
        self._head = plain_head(0)
        self._changed: dict[Any, Any] = {}
        self._young: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}
        self._entry_bytes = 256.0  # moving estimate of what a cached entry costs
        self._capacity_bytes = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.name}' of {self._codec.name}>"

    # Cache

    @property
    def dirty_bytes(self) -> int:
        """Estimated memory that is pinned by uncommitted changes."""
        return int(len(self._changed) * self._entry_bytes)

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
            found = self._fetch(key)
        self._shrink()
        self._young[key] = found
        return found

    def _shrink(self) -> bool:
        """Start a new generation if the young one fills half of the capacity."""
        is_full = len(self._young) * self._entry_bytes * 2 > self._capacity_bytes
        if is_full:
            self._old, self._young = self._young, {}
        return is_full

    @abstractmethod
    def _fetch(self, key: Any) -> Any:
        """What the store holds for `key`, as this handle caches it."""

    @abstractmethod
    def _encode_changes(self, batch: EpochBatch) -> int:
        """Put all that has changed into `batch`; returns its size."""

    def flush(self, batch: EpochBatch) -> None:
        """Encode all changes since the last commit into `batch`."""
        if not self._changed:
            return
        size = self._encode_changes(batch)
        estimate = OBJECT_FACTOR * size / len(self._changed) + ENTRY_OVERHEAD_BYTES
        self._entry_bytes += (estimate - self._entry_bytes) / 2
        self._shrink()
        self._young.update(self._changed)
        self._changed.clear()

    def clear(self) -> None:
        """Remove everything of the current key."""
        self._changed[self._scope.key] = ABSENT

    def _encode_value(self, value: Any) -> bytes:
        """Payload of a value. Raises UsageError when it is not of the declared type."""
        expected = self._codec.value_class
        if expected is not None and not isinstance(value, expected):
            raise UsageError(f"state '{self.name}' holds {self._codec.name}, not {type(value).__name__}: {value!r}")
        try:
            data = self._codec.encode(value)
            if value.__class__ is not expected:
                # True passes for an int, and list[int] can't be asked: what could not be read again must not be written.
                self._codec.decode(data)
        except (TypeError, OverflowError, ValueError, msgspec.MsgspecError) as error:
            raise UsageError(
                f"a value of state '{self.name}' can't be encoded as {self._codec.name}: {error}"
            ) from error
        return data

    def _decode(self, stored: bytes) -> Any:
        """What is cached of a stored value. Raises CorruptionError."""
        _, payload = open_envelope(stored, self.name)
        return self._codec.decode_stored(payload, self.name)


class SingleState(State[T]):
    """A state with one value per key."""

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys):
        super().__init__(name, scope, codec, keys)
        self._loaded_batch: Sequence[Any] = scope.batch

    def _fetch(self, key: Any) -> Any:
        stored = self._scope.read(self._keys.of(self._scope.encode_key(key)))
        return ABSENT if stored is None else self._decode(stored)

    def _put(self, value: Any) -> None:
        """Set the current key's value."""
        self._changed[self._scope.key] = value

    def _load(self, key: Any) -> Any:
        """Bring `key`, and with it all other keys of the scope's batch, into the young generation."""
        batch = self._scope.batch
        if batch is not self._loaded_batch:
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
            for key in missing & old.keys():
                young[key] = old.pop(key)
            missing.difference_update(young)
        if not self._scope.holds_entries:
            young.update(dict.fromkeys(missing, ABSENT))
            return
        encode, entry_key = self._scope.encode_key, self._keys.of
        wanted = list(missing)
        for key, stored in zip(wanted, self._scope.read_many([entry_key(encode(key)) for key in wanted]), strict=True):
            young[key] = ABSENT if stored is None else self._decode(stored)

    def _encode_changes(self, batch: EpochBatch) -> int:
        # The loop that stops the world at a checkpoint: everything it needs is local, the usual case has no call of ours but `of`.
        entries, entry_key, encode_key = batch.entries, self._keys.of, self._scope.encode_key
        encode, expected, head, size = self._codec.encode, self._codec.value_class, self._head, 0
        for key, value in self._changed.items():
            if value is ABSENT:
                entries[entry_key(encode_key(key))] = None
            elif expected is not None and value.__class__ is expected:
                try:
                    data = head + encode(value)
                except Exception:
                    data = head + self._encode_value(value)
                size += len(data)
                entries[entry_key(encode_key(key))] = data
            else:
                data = head + self._encode_value(value)
                size += len(data)
                entries[entry_key(encode_key(key))] = data
        return size


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
        self._load_many(keys)
        changed, young, default, fresh = self._changed, self._young, self._default, self._fresh
        values = [changed[key] if key in changed else young[key] for key in keys]
        if ABSENT in values:
            values = [(default if fresh is None else fresh()) if value is ABSENT else value for value in values]
        return values

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
