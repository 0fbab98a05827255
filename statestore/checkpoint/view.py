"""The entries of a checkpoint, read where it lies.

Invariants:
- a look-up costs the footer and one block of each segment whose range holds the key, however large the state is; nothing is read before it
  is needed;
- newer layers hide older ones, a deletion included; what comes out is exactly the state at the checkpoint's epoch;
- log deltas are the only thing held in memory as a whole, which packing keeps small.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Protocol

from statestore.checkpoint.manifest import InheritedBase, LogDelta, Manifest, PackedDelta, Part, SegmentEntry
from statestore.checkpoint.storage import CheckpointStorage
from statestore.keys import group_start
from statestore.segment import BlockCache, SegmentReader, merged
from statestore.types import Epoch
from statestore.wal.reader import read_segment

CACHE_BYTES = 32 << 20

Entry = tuple[bytes, bytes | None]


class _Layer(Protocol):
    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Those of `keys` that the layer knows, None for deleted ones."""
        ...

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """Entries with start <= key < stop, ascending, deleted ones included."""
        ...


class _LogLayer:
    """Log segments that follow each other."""

    def __init__(self, checkpoints: CheckpointStorage, deltas: list[LogDelta], after: Epoch):
        self._checkpoints, self._deltas, self._after = checkpoints, deltas, after

    @cached_property
    def _entries(self) -> dict[bytes, bytes | None]:
        entries: dict[bytes, bytes | None] = {}
        for delta in self._deltas:
            file = f"{self._checkpoints.url}/{delta.path}"
            content = read_segment(self._checkpoints.read_file(delta), file, tail_may_be_torn=False)
            assert content is not None
            for group in content.groups:
                if group.epoch > self._after:
                    for part in group.entries():
                        entries.update(part)
        return entries

    @cached_property
    def _keys(self) -> list[bytes]:
        return sorted(self._entries)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        entries = self._entries
        return {key: entries[key] for key in keys if key in entries}

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        keys = self._keys
        last = len(keys) if stop is None else bisect_left(keys, stop)
        return ((key, self._entries[key]) for key in keys[bisect_left(keys, start) : last])


class _SegmentsLayer:
    """Sorted segments whose key ranges follow each other."""

    def __init__(self, checkpoints: CheckpointStorage, segments: list[SegmentEntry], cache: BlockCache):
        self._checkpoints, self._segments, self._cache = checkpoints, segments, cache
        self._first_keys = [segment.first_key for segment in segments]
        self._readers: dict[int, SegmentReader] = {}

    def _reader(self, index: int) -> SegmentReader:
        reader = self._readers.get(index)
        if reader is None:
            entry = self._segments[index]
            name = self._checkpoints.object_name(entry.path)
            reader = SegmentReader(self._checkpoints.storage, name, size=entry.size, cache=self._cache)
            self._readers[index] = reader
        return reader

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        wanted: dict[int, list[bytes]] = {}
        for key in keys:
            index = bisect_right(self._first_keys, key) - 1
            if index >= 0 and key <= self._segments[index].last_key:
                wanted.setdefault(index, []).append(key)
        found: dict[bytes, bytes | None] = {}
        for index, some in wanted.items():
            found.update(self._reader(index).get_many(some))
        return found

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        for index in range(max(0, bisect_right(self._first_keys, start) - 1), len(self._segments)):
            if stop is not None and self._first_keys[index] >= stop:
                return
            yield from self._reader(index).scan(start, stop)


class _PartView:
    """One part's layers, newest first."""

    def __init__(self, checkpoints: CheckpointStorage, part: Part, cache: BlockCache):
        self._layers: list[_Layer] = []
        for is_log, some in groupby(part.deltas, lambda delta: isinstance(delta, LogDelta)):
            if is_log:
                logs = [delta for delta in some if isinstance(delta, LogDelta)]
                self._layers.insert(0, _LogLayer(checkpoints, logs, part.base_epoch))
            else:
                for packed in some:
                    assert isinstance(packed, PackedDelta)
                    self._layers.insert(0, _SegmentsLayer(checkpoints, packed.segments, cache))
        if isinstance(part.base, InheritedBase):
            self._layers.append(_PartsLayer(checkpoints, part.base.parts, cache))
        elif part.base is not None:
            self._layers.append(_SegmentsLayer(checkpoints, part.base.segments, cache))

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
        found: dict[bytes, bytes | None] = {}
        missing: Sequence[bytes] = keys
        for layer in self._layers:
            found.update(layer.get_many(missing))
            missing = [key for key in missing if key not in found]
            if not missing:
                break
        return found

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        for key, value in merged([layer.scan(start, stop) for layer in self._layers]):
            if value is not None:
                yield key, value


class _PartsLayer:
    """Parts whose key groups follow each other; of each only what is of its own key groups."""

    def __init__(self, checkpoints: CheckpointStorage, parts: list[Part], cache: BlockCache):
        self._parts = [
            (
                group_start(part.first_key_group),
                group_start(part.last_key_group + 1),
                _PartView(checkpoints, part, cache),
            )
            for part in parts
        ]

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        found: dict[bytes, bytes | None] = {}
        keys = list(keys)
        for first, end, view in self._parts:
            own = [key for key in keys if first <= key < end]
            if own:
                found.update(view.get_many(own))
        return found

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        for first, end, view in self._parts:
            begin, until = max(start, first), end if stop is None else min(stop, end)
            if begin < until:
                yield from view.scan(begin, until)


class CheckpointView:
    """Read-only map of a checkpoint's entries. `get_many` and `scan` may be called from several threads.

    Raises
    ------
    CorruptionError
        From any read: a file that is needed is missing or damaged.
    UnavailableError
        From any read: the storage does not answer.
    """

    def __init__(self, checkpoints: CheckpointStorage, manifest: Manifest, *, cache_bytes: int = CACHE_BYTES):
        self._parts = _PartsLayer(checkpoints, manifest.parts, BlockCache(cache_bytes))

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys` in their order, None where there is none."""
        found = self._parts.get_many(keys)
        return [found.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Entries with start <= key < stop (to the end when `stop` is None), ascending."""
        return self._parts.scan(start, stop)
