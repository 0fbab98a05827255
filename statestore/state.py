"""State handles: what user code reads and writes, always for the current key of their scope.

A handle keeps decoded objects in two generations of a dictionary. Reading a cached key is one look-up in the young one; a key found in the
old one moves over; when the young one is full it becomes the old one, and what nobody asked for since leaves. Changed entries are pinned
until they are committed. Nothing is encoded or hashed (beyond the dictionary's own hash) before the commit.

An object that a handle hands out belongs to the store: change a copy, or call `update` after changing it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from statestore.codecs import Codec, fresh_value
from statestore.errors import CorruptionError, UsageError
from statestore.keys import EntryKeys

if TYPE_CHECKING:
    from statestore.keyed import KeyedState
    from statestore.pending import EpochBatch

T = TypeVar("T")
A = TypeVar("A")

NO_EXPIRY = b"\x00"
"""First byte of every stored value: the form of its expiry, of which 00 (never) is the only one yet."""

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


def open_envelope(stored: bytes, state: str) -> bytes:
    """Payload of a stored value. Raises CorruptionError when its first byte is unknown."""
    if stored[:1] != NO_EXPIRY:
        raise CorruptionError(f"state '{state}'", f"a stored value has the unknown form {stored[:1].hex() or 'empty'}")
    return stored[1:]


class State(Generic[T]):
    """What all handles share: the two generations, the set of changed keys, and their commit."""

    kind: str

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys):
        self.name = name
        self._scope, self._codec, self._keys = scope, codec, keys
        self._live: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}
        self._dirty: set[Any] = set()
        self._entry_bytes = 256.0  # moving estimate of what a cached entry costs
        self._capacity_bytes = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.name}' of {self._codec.name}>"

    # Cache

    @property
    def dirty_bytes(self) -> int:
        """Estimated memory that is pinned by uncommitted changes."""
        return int(len(self._dirty) * self._entry_bytes)

    def set_capacity(self, capacity_bytes: int) -> None:
        """Bound the memory that clean entries may take."""
        self._capacity_bytes = capacity_bytes

    def _load(self, key: Any) -> Any:
        """Bring `key` into the young generation, from the old one or from the store."""
        found = self._old.pop(key, None)
        if found is None:
            found = self._fetch(key)
        self._shrink()  # before: what is changed next must be in the young generation
        self._live[key] = found
        return found

    def _shrink(self) -> None:
        """Start a new generation when the young one fills half of the capacity; changed entries go along."""
        if len(self._live) * self._entry_bytes * 2 > self._capacity_bytes and len(self._live) > 2 * len(self._dirty):
            live = self._live
            self._old, self._live = live, {key: live[key] for key in self._dirty}

    @abstractmethod
    def _fetch(self, key: Any) -> Any:
        """What the store holds for `key`, as this handle caches it."""

    @abstractmethod
    def _encode_entry(self, key: Any, batch: EpochBatch) -> int:
        """Put the changes of one key into `batch`; returns their size."""

    def prefetch(self, keys: Iterable[Any]) -> None:
        """Load `keys` with one request where that is possible."""

    def flush(self, batch: EpochBatch) -> None:
        """Encode all changes since the last commit into `batch`."""
        if not self._dirty:
            return
        size = self._encode_dirty(batch)
        estimate = OBJECT_FACTOR * size / len(self._dirty) + ENTRY_OVERHEAD_BYTES
        self._entry_bytes += (estimate - self._entry_bytes) / 2
        self._dirty.clear()
        self._shrink()

    def _encode_dirty(self, batch: EpochBatch) -> int:
        return sum(self._encode_entry(key, batch) for key in self._dirty)

    def clear(self) -> None:
        """Remove everything of the current key."""
        key = self._scope.key
        self._live[key] = ABSENT
        self._dirty.add(key)

    def _encode_value(self, value: Any) -> bytes:
        expected = self._codec.value_class
        if expected is not None and not isinstance(value, expected):
            raise UsageError(f"state '{self.name}' holds {self._codec.name}, not {type(value).__name__}: {value!r}")
        try:
            return NO_EXPIRY + self._codec.encode(value)
        except (TypeError, OverflowError, ValueError) as error:
            raise UsageError(
                f"a value of state '{self.name}' can't be encoded as {self._codec.name}: {error}"
            ) from error


class SingleState(State[T]):
    """A state with one value per key."""

    def _fetch(self, key: Any) -> Any:
        stored = self._scope.read(self._keys.of(self._scope.encode_key(key)))
        return ABSENT if stored is None else self._codec.decode_stored(open_envelope(stored, self.name), self.name)

    def prefetch(self, keys: Iterable[Any]) -> None:
        """Load those of `keys` that are not cached, with one request to the backend."""
        self._shrink()
        live, old = self._live, self._old
        missing = set(keys).difference(live)
        if not missing:
            return
        if old:
            for key in missing & old.keys():
                live[key] = old.pop(key)
            missing.difference_update(live)
        encode, entry_key = self._scope.encode_key, self._keys.of
        wanted = list(missing)
        for key, stored in zip(wanted, self._scope.read_many([entry_key(encode(key)) for key in wanted]), strict=True):
            live[key] = (
                ABSENT if stored is None else self._codec.decode_stored(open_envelope(stored, self.name), self.name)
            )

    def _encode_dirty(self, batch: EpochBatch) -> int:
        # The loop that stops the world at a checkpoint: everything it needs is local, the usual case has no call of ours but `of`.
        live, entries, entry_key, encode_key = self._live, batch.entries, self._keys.of, self._scope.encode_key
        encode, expected, size = self._codec.encode, self._codec.value_class, 0
        for key in self._dirty:
            value = live[key]
            if value is ABSENT:
                entries[entry_key(encode_key(key))] = None
            elif expected is not None and value.__class__ is expected:
                try:
                    data = NO_EXPIRY + encode(value)
                except Exception:
                    data = self._encode_value(value)
                size += len(data)
                entries[entry_key(encode_key(key))] = data
            else:
                data = self._encode_value(value)
                size += len(data)
                entries[entry_key(encode_key(key))] = data
        return size

    def _encode_entry(self, key: Any, batch: EpochBatch) -> int:
        raise AssertionError("single states encode in one loop")  # pragma: no cover


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
        try:
            value = self._live[key]
        except KeyError:
            value = self._load(key)
        if value is ABSENT:
            value = self._default if self._fresh is None else self._fresh()
        return value  # type: ignore[no-any-return]

    def update(self, value: T) -> None:
        """Set the current key's value."""
        key = self._scope.key
        self._live[key] = value
        self._dirty.add(key)

    def get_many(self, keys: Sequence[Any]) -> list[T]:
        """Values of `keys` in their order; one request to the backend for those not cached.

        Raises
        ------
        UsageError
            A key is not of the declared type.
        """
        self._scope.check_keys(keys)
        self.prefetch(keys)
        live, default, fresh = self._live, self._default, self._fresh
        values = [live[key] for key in keys]
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
        self._live.update(zip(keys, values, strict=True))
        self._dirty.update(keys)


class ReducingState(SingleState[T]):
    """The values added for a key, combined by a function."""

    kind = "reducing"

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys, function: Callable[[T, T], T]):
        super().__init__(name, scope, codec, keys)
        self._function = function

    def add(self, value: T) -> None:
        """Combine `value` into the current key's."""
        key, live = self._scope.key, self._live
        try:
            current = live[key]
        except KeyError:
            current = self._load(key)
        self._live[key] = value if current is ABSENT else self._function(current, value)
        self._dirty.add(key)

    def get(self) -> T | None:
        """The combined value, None where nothing was added."""
        key = self._scope.key
        current = self._live[key] if key in self._live else self._load(key)
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
        key, function = self._scope.key, self._function
        try:
            current = self._live[key]
        except KeyError:
            current = self._load(key)
        self._live[key] = function.add(value, function.create_accumulator() if current is ABSENT else current)
        self._dirty.add(key)

    def get(self) -> Any:
        """Result for the current key, None where nothing was added."""
        key = self._scope.key
        current = self._live[key] if key in self._live else self._load(key)
        return None if current is ABSENT else self._function.get_result(current)
