"""List and map states: collections stored in pieces, so that a change costs the change and not the collection.

list  head: sub-key empty, value = length (MessagePack)            chunk i: sub-key i as u32 BE, value = array of up to 64 elements
map   entry: sub-key = 00 · encoded map key, value = encoded map value

A stamped chunk has before its array: length varint · array of milliseconds, how much older than the stamp each element is. Of a list that
has, or once had, a time-out the first chunks may be gone.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from statestore.codecs import Codec
from statestore.envelope import open_envelope
from statestore.errors import CorruptionError, UsageError
from statestore.footprint import footprint
from statestore.keys import EntryKeys, KeyCodec, read_varint
from statestore.state import ABSENT, ENTRY_OVERHEAD_BYTES, SAMPLE_WEIGHT, State

if TYPE_CHECKING:
    from statestore.keyed import KeyedState
    from statestore.pending import EpochBatch

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

CHUNK_ELEMENTS = 64

COLLECTION_BYTES = 500.0
"""What a cached collection costs beside its elements."""

SHARES = 8
"""A collection that takes more than one part in so many of the cache is not kept whole."""

_pack = msgspec.msgpack.Encoder().encode
_unpack_length = msgspec.msgpack.Decoder(int).decode
_unpack_ages = msgspec.msgpack.Decoder(list[int]).decode


def _chunks(length: int) -> int:
    return -(-length // CHUNK_ELEMENTS)


def split_chunk(stored: bytes, state: str) -> tuple[list[int], int, bytes]:
    """Ages, if there are any, schema version and payload of a list's chunk. Raises CorruptionError."""
    version, payload = open_envelope(stored, state)
    if not stored[0] & 3:
        return [], version, payload
    try:
        length, offset = read_varint(payload, 0)
        return _unpack_ages(payload[offset : offset + length]), version, payload[offset + length :]
    except (msgspec.MsgspecError, IndexError) as error:
        raise CorruptionError(f"state '{state}'", f"a stored list can't be read: {error}") from error


class _Collections(State[T]):
    """What lists and maps share: they are weighed by their elements, and the large ones are not kept whole."""

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys):
        super().__init__(name, scope, codec, keys)
        self._element_bytes = 200.0  # a moving average
        self._added = 0  # elements since the last commit

    @property
    def dirty_bytes(self) -> int:
        """As `State.dirty_bytes`."""
        return int(len(self._changed) * COLLECTION_BYTES + self._added * self._element_bytes)

    def _weigh(self, cached: CachedList | CachedMap) -> float:
        """About how much memory a collection takes; noted in it."""
        if cached.items:
            element = footprint(cached.newest()) + ENTRY_OVERHEAD_BYTES
            self._element_bytes += (element - self._element_bytes) * SAMPLE_WEIGHT
        cached.weight = COLLECTION_BYTES + len(cached.items) * self._element_bytes
        return cached.weight

    def _has_grown(self, cached: CachedList | CachedMap) -> None:
        """More of a collection has been read: it weighs more, or must shrink again."""
        before = cached.weight
        if self._weigh(cached) * SHARES > self._capacity_bytes:
            cached.shrink()
            self._weigh(cached)
        if self._young.get(self._scope.key, ABSENT) is cached:
            self._young_bytes += cached.weight - before

    def _keep_changed(self, size: int) -> None:
        self._added = 0
        for key, cached in self._changed.items():
            if self._young.get(key, ABSENT) is cached:
                self._young_bytes -= cached.weight
            if self._weigh(cached) * SHARES > self._capacity_bytes:
                cached.shrink()
                self._weigh(cached)
            self._young_bytes += cached.weight
            self._young[key] = cached


class CachedList:
    """Elements of one key from `start` on; what is between `floor` and it has not been read, what is before `floor` is gone."""

    __slots__ = ("changed_from", "floor", "items", "start", "stored", "weight")

    def __init__(self, start: int, items: list[Any], stored: int):
        self.start, self.items, self.stored = start, items, stored
        self.changed_from = stored
        self.floor = 0
        self.weight = 0.0

    def newest(self) -> Any:
        """The last element."""
        return self.items[-1]

    def shrink(self) -> None:
        """Forget all but the tail and what has changed."""
        keep_from = min(self.changed_from, self.stored) // CHUNK_ELEMENTS * CHUNK_ELEMENTS
        if keep_from > self.start:
            del self.items[: keep_from - self.start]
            self.start = keep_from

    @property
    def length(self) -> int:
        """Elements ever appended."""
        return self.start + len(self.items)


class ListState(_Collections[T]):
    """A list per key. Appending reads and writes the tail only."""

    kind = "list"

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys):
        super().__init__(name, scope, codec, keys)
        self._may_lack_chunks = scope.had_ttl(name)

    def _entry(self, key: Any, chunk: int | None = None) -> bytes:
        return self._keys.of(self._scope.encode_key(key), b"" if chunk is None else chunk.to_bytes(4, "big"))

    def _nothing(self) -> tuple[CachedList, float]:
        cached = CachedList(0, [], 0)
        return cached, self._weigh(cached)

    def _fetch(self, key: Any) -> tuple[CachedList, float]:
        head = self._scope.read(self._entry(key))
        if head is None:
            return self._nothing()
        cached = self._fetch_tail(key, head)
        return cached, self._weigh(cached)

    def _fetch_tail(self, key: Any, head: bytes) -> CachedList:
        _, packed = open_envelope(head, self.name)
        length = _unpack_length(packed)
        start = length - length % CHUNK_ELEMENTS
        cached = CachedList(start, [], length)
        if start < length:
            _, cached.items = self._read_chunks(key, range(start // CHUNK_ELEMENTS, _chunks(length)))
        return cached

    def _read_chunks(self, key: Any, chunks: range) -> tuple[int, list[Any]]:
        """How many of the first chunks are gone, and the elements in the others."""
        items: list[Any] = []
        gone = 0
        for chunk, stored in enumerate(self._scope.read_many([self._entry(key, chunk) for chunk in chunks])):
            if stored is not None:
                items += self._decode_chunk(stored)
            elif self._may_lack_chunks and chunk == gone:
                gone += 1
            else:
                raise CorruptionError(f"state '{self.name}'", f"a chunk of the list of key {key!r} is missing")
        return gone, items

    def _decode_chunk(self, stored: bytes) -> list[Any]:
        """What is cached of a chunk's elements. Raises CorruptionError."""
        return self._split_chunk(stored)[1]

    def _split_chunk(self, stored: bytes) -> tuple[list[int], list[Any]]:
        """Ages, if there are any, and elements of a chunk. Raises CorruptionError."""
        ages, version, payload = split_chunk(stored, self.name)
        return ages, self._codec.decode_stored_many(payload, version, self.name)

    def _change(self) -> CachedList:
        """The current key's list, which is going to be changed."""
        cached: CachedList = self._current()
        self._changed[self._scope.key] = cached
        return cached

    def _whole(self) -> CachedList:
        cached: CachedList = self._current()
        if cached.start > cached.floor:
            first = cached.floor // CHUNK_ELEMENTS
            gone, items = self._read_chunks(self._scope.key, range(first, cached.start // CHUNK_ELEMENTS))
            cached.start = cached.floor = (first + gone) * CHUNK_ELEMENTS
            cached.items = items + cached.items
        return cached

    def get(self) -> list[T]:
        """A copy of the current key's list; empty where nothing is stored."""
        cached = self._whole()
        elements = list(cached.items)
        self._has_grown(cached)
        return elements

    def __len__(self) -> int:
        cached: CachedList = self._whole() if self._may_lack_chunks else self._current()
        length = cached.length - cached.floor
        self._has_grown(cached)
        return length

    def add(self, value: T) -> None:
        """Append one element."""
        self._change().items.append(value)
        self._added += 1

    def add_all(self, values: Iterable[T]) -> None:
        """Append several elements."""
        cached = self._change()
        before = len(cached.items)
        cached.items.extend(values)
        self._added += len(cached.items) - before

    def update(self, values: Iterable[T]) -> None:
        """Replace the list."""
        cached = self._change()
        cached.start, cached.floor, cached.items, cached.changed_from = 0, 0, list(values), 0
        self._added += len(cached.items)

    def clear(self) -> None:
        """Remove the current key's list."""
        self.update(())

    def _encode_changes(self, batch: EpochBatch) -> int:
        return sum(self._encode_list(key, cached, batch) for key, cached in self._changed.items())

    def _encode_list(self, key: Any, cached: CachedList, batch: EpochBatch) -> int:
        length, size = cached.length, 0
        for chunk in range(cached.changed_from // CHUNK_ELEMENTS, _chunks(length)):
            first = chunk * CHUNK_ELEMENTS - cached.start
            stored = max(0, cached.changed_from - chunk * CHUNK_ELEMENTS)
            data = self._encode_chunk(cached.items[first : first + CHUNK_ELEMENTS], stored)
            batch.put(self._entry(key, chunk), data)
            size += len(data)
        for chunk in range(_chunks(length), _chunks(cached.stored)):
            batch.put(self._entry(key, chunk), None)
        batch.put(self._entry(key), self._list_head(cached) + _pack(length) if length else None)
        cached.stored = cached.changed_from = length
        return size

    def _list_head(self, cached: CachedList) -> bytes:
        return self._head

    def _encode_chunk(self, items: list[Any], stored: int) -> bytes:
        """A chunk, of which the first `stored` elements have been written before."""
        return self._head + self._codec.checked_many(items, stored, self.name)


class CachedMap:
    """Known entries of one key; all of them when `complete`."""

    __slots__ = ("changed", "complete", "items", "weight")

    def __init__(self) -> None:
        self.items: dict[Any, Any] = {}
        self.complete = False
        self.changed: set[Any] = set()
        self.weight = 0.0

    def newest(self) -> Any:
        """The entry that was read or set last, its key and value."""
        return next(reversed(self.items.items()))

    def shrink(self) -> None:
        """Forget all but what has changed."""
        self.items = {map_key: self.items[map_key] for map_key in self.changed}
        self.complete = False


class MapState(_Collections[V], Generic[K, V]):
    """A map per key. Reading or writing one entry touches that entry only."""

    kind = "map"

    def __init__(self, name: str, scope: KeyedState, codec: Codec, keys: EntryKeys, map_keys: KeyCodec):
        super().__init__(name, scope, codec, keys)
        self._map_keys = map_keys

    def _nothing(self) -> tuple[CachedMap, float]:
        cached = CachedMap()
        cached.complete = True
        return cached, self._weigh(cached)

    def _fetch(self, key: Any) -> tuple[CachedMap, float]:
        cached = CachedMap()
        return cached, self._weigh(cached)

    def _prefix(self, key: Any) -> bytes:
        return self._keys.of(self._scope.encode_key(key), b"\0")

    def _lookup(self, map_key: K) -> Any:
        self._map_keys.check(map_key)
        cached: CachedMap = self._current()
        value = cached.items.get(map_key)
        if value is None:
            if cached.complete:
                return ABSENT
            value = cached.items[map_key] = self._read(map_key)
            self._has_grown(cached)
        return value

    def _read(self, map_key: K) -> Any:
        stored = self._scope.read(self._prefix(self._scope.key) + self._map_keys.encode(map_key))
        return ABSENT if stored is None else self._decode(stored)

    def _entries(self) -> dict[K, V]:
        """All entries, read once."""
        cached: CachedMap = self._current()
        was_complete = cached.complete
        if not was_complete:
            prefix = self._prefix(self._scope.key)
            stored = {
                self._map_keys.decode(entry[len(prefix) :]): value
                for entry, value in self._scope.read_collection(prefix)
            }
            for map_key, value in stored.items():
                if map_key not in cached.items:
                    cached.items[map_key] = self._decode(value)
            cached.complete = True
        entries = {map_key: value for map_key, value in cached.items.items() if value is not ABSENT}
        if not was_complete:
            self._has_grown(cached)
        return entries

    def get(self, map_key: K, default: V | None = None) -> V | None:
        """Value of an entry, or `default`."""
        value = self._lookup(map_key)
        return default if value is ABSENT else value

    def put(self, map_key: K, value: V) -> None:
        """Set an entry. None is no value: remove the entry instead."""
        if value is None:
            raise UsageError(f"state '{self.name}': None can't be a map value; remove the entry instead")
        self._map_keys.check(map_key)
        self._change(map_key, value)

    def _change(self, map_key: K, value: Any) -> None:
        cached: CachedMap = self._current()
        cached.items[map_key] = value
        cached.changed.add(map_key)
        self._changed[self._scope.key] = cached
        self._added += 1

    def put_all(self, entries: dict[K, V]) -> None:
        """Set several entries."""
        for map_key, value in entries.items():
            self.put(map_key, value)

    def remove(self, map_key: K) -> None:
        """Remove an entry, if it is there."""
        self._map_keys.check(map_key)
        self._change(map_key, ABSENT)

    def contains(self, map_key: K) -> bool:
        """Whether there is such an entry."""
        return self._lookup(map_key) is not ABSENT

    def keys(self) -> KeysView[K]:
        """All map keys."""
        return self._entries().keys()

    def values(self) -> ValuesView[V]:
        """All map values."""
        return self._entries().values()

    def items(self) -> ItemsView[K, V]:
        """All entries."""
        return self._entries().items()

    def is_empty(self) -> bool:
        """Whether there is no entry."""
        return not self._entries()

    def clear(self) -> None:
        """Remove all entries of the current key."""
        for map_key in self._entries():
            self._change(map_key, ABSENT)

    def __getitem__(self, map_key: K) -> V:
        value: V = self._lookup(map_key)
        if value is ABSENT:
            raise KeyError(map_key)
        return value

    def __setitem__(self, map_key: K, value: V) -> None:
        self.put(map_key, value)

    def __delitem__(self, map_key: K) -> None:
        if not self.contains(map_key):
            raise KeyError(map_key)
        self.remove(map_key)

    def __contains__(self, map_key: K) -> bool:
        return self.contains(map_key)

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def _encode_changes(self, batch: EpochBatch) -> int:
        return sum(self._encode_map(key, cached, batch) for key, cached in self._changed.items())

    def _encode_map(self, key: Any, cached: CachedMap, batch: EpochBatch) -> int:
        prefix, size = self._prefix(key), 0
        for map_key in cached.changed:
            value = cached.items[map_key]
            data = None if value is ABSENT else self._encode_entry(value)
            size += len(data or b"")
            batch.put_collection(prefix, prefix + self._map_keys.encode(map_key), data)
        cached.changed.clear()
        return size

    def _encode_entry(self, value: Any) -> bytes:
        return self._head + self._codec.checked(value, self.name)
