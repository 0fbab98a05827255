"""The entries of a checkpoint, read where it lies.

Invariants:
- a look-up costs the footer and one block of each segment whose range holds the key, however large the state is; nothing is read before it
  is needed;
- newer layers hide older ones, a deletion included; what comes out is exactly the state at the checkpoint's epoch;
- log deltas are the only thing held in memory as a whole, which packing keeps small;
- `stream` reads whole files, checked against their hashes, a fixed number of them ahead of use: its memory does not grow with the state.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from statestore.checkpoint.manifest import FileEntry, InheritedBase, LogDelta, Manifest, PackedDelta, Part, SegmentEntry
from statestore.checkpoint.storage import CheckpointStorage
from statestore.io import MemoryStorage
from statestore.keys import group_start
from statestore.segment import BlockCache, SegmentReader, merged
from statestore.types import Epoch
from statestore.wal.reader import read_segment

CACHE_BYTES = 32 << 20
PARALLELISM = 4

Entry = tuple[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class _Files:
    """What all layers of a view read with."""

    checkpoints: CheckpointStorage
    cache: BlockCache
    pool: ThreadPoolExecutor
    ahead: int
    """How many files `stream` reads before they are used."""

    def begin_read(self, entry: FileEntry) -> Future[bytes]:
        """Read a file whole, and check it."""
        return self.pool.submit(self.checkpoints.read_file, entry)


class _Layer(Protocol):
    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Those of `keys` that the layer knows, None for deleted ones."""
        ...

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """Entries with start <= key < stop, ascending, deleted ones included."""
        ...

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """The same, for who reads all of a large range: see `CheckpointView.stream`."""
        ...


class _LogLayer:
    """Log segments that follow each other."""

    def __init__(self, files: _Files, deltas: list[LogDelta], after: Epoch):
        self._files, self._deltas, self._after = files, deltas, after
        self._lock = threading.Lock()
        self._read: tuple[dict[bytes, bytes | None], list[bytes]] | None = None

    def _content(self) -> tuple[dict[bytes, bytes | None], list[bytes]]:
        """Entries, and their keys in order."""
        with self._lock:
            if self._read is None:
                entries = self._entries()
                self._read = entries, sorted(entries)
            return self._read

    def _entries(self) -> dict[bytes, bytes | None]:
        entries: dict[bytes, bytes | None] = {}
        reads = [self._files.begin_read(delta) for delta in self._deltas]
        for delta, read in zip(self._deltas, reads, strict=True):
            file = f"{self._files.checkpoints.url}/{delta.path}"
            content = read_segment(read.result(), file, tail_may_be_torn=False)
            assert content is not None
            for group in content.groups:
                if group.epoch > self._after:
                    for part in group.entries():
                        entries.update(part)
        return entries

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        entries, _ = self._content()
        return {key: entries[key] for key in keys if key in entries}

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        entries, keys = self._content()
        last = len(keys) if stop is None else bisect_left(keys, stop)
        return ((key, entries[key]) for key in keys[bisect_left(keys, start) : last])

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        return self.scan(start, stop)


class _SegmentsLayer:
    """Sorted segments whose key ranges follow each other."""

    def __init__(self, files: _Files, segments: list[SegmentEntry]):
        self._files, self._segments = files, segments
        self._first_keys = [segment.first_key for segment in segments]
        self._readers: dict[int, SegmentReader] = {}

    def _reader(self, index: int) -> SegmentReader:
        reader = self._readers.get(index)
        if reader is None:
            entry = self._segments[index]
            checkpoints = self._files.checkpoints
            name = checkpoints.object_name(entry.path)
            reader = SegmentReader(checkpoints.storage, name, size=entry.size, cache=self._files.cache)
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
        for index in self._within(start, stop):
            yield from self._reader(index).scan(start, stop)

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        checkpoints = self._files.checkpoints
        waiting = deque(self._segments[index] for index in self._within(start, stop))
        reads: deque[tuple[str, Future[bytes]]] = deque()
        try:
            while waiting or reads:
                while waiting and len(reads) < self._files.ahead:
                    entry = waiting.popleft()
                    reads.append((checkpoints.object_name(entry.path), self._files.begin_read(entry)))
                name, read = reads.popleft()
                held = MemoryStorage(checkpoints.storage.url)
                held.write(name, read.result())
                yield from SegmentReader(held, name).scan(start, stop)
        finally:  # also when whoever reads stops early
            for _, read in reads:
                read.cancel()

    def _within(self, start: bytes, stop: bytes | None) -> range:
        """Indexes of the segments that may have something of a range."""
        end = len(self._segments) if stop is None else bisect_left(self._first_keys, stop)
        return range(max(0, bisect_right(self._first_keys, start) - 1), end)


class _PartView:
    """One part's layers, newest first."""

    def __init__(self, files: _Files, part: Part):
        self._layers: list[_Layer] = []
        for is_log, some in groupby(part.deltas, lambda delta: isinstance(delta, LogDelta)):
            if is_log:
                logs = [delta for delta in some if isinstance(delta, LogDelta)]
                self._layers.insert(0, _LogLayer(files, logs, part.base_epoch))
            else:
                for packed in some:
                    assert isinstance(packed, PackedDelta)
                    self._layers.insert(0, _SegmentsLayer(files, packed.segments))
        if isinstance(part.base, InheritedBase):
            self._layers.append(_PartsLayer(files, part.base.parts))
        elif part.base is not None:
            self._layers.append(_SegmentsLayer(files, part.base.segments))

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
        return _existing([layer.scan(start, stop) for layer in self._layers])

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return _existing([layer.stream(start, stop) for layer in self._layers])


def _existing(layers: list[Iterator[Entry]]) -> Iterator[tuple[bytes, bytes]]:
    return (entry for entry in merged(layers) if entry[1] is not None)  # type: ignore[misc]  # so none of them is deleted


class _PartsLayer:
    """Parts whose key groups follow each other; of each only what is of its own key groups."""

    def __init__(self, files: _Files, parts: list[Part]):
        self._parts = [
            (group_start(part.first_key_group), group_start(part.last_key_group + 1), _PartView(files, part))
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
        for view, first, end in self._within(start, stop):
            yield from view.scan(first, end)

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        for view, first, end in self._within(start, stop):
            yield from view.stream(first, end)

    def _within(self, start: bytes, stop: bytes | None) -> Iterator[tuple[_PartView, bytes, bytes]]:
        for first, end, view in self._parts:
            begin, until = max(start, first), end if stop is None else min(stop, end)
            if begin < until:
                yield view, begin, until


class CheckpointView:
    """Read-only map of a checkpoint's entries. All methods but `close` may be called from several threads.

    Parameters
    ----------
    cache_bytes
        Memory for decoded blocks.
    parallelism
        How many files are read at a time.

    Raises
    ------
    CorruptionError
        From any read: a file that is needed is missing or damaged.
    UnavailableError
        From any read: the storage does not answer.
    """

    def __init__(
        self,
        checkpoints: CheckpointStorage,
        manifest: Manifest,
        *,
        cache_bytes: int = CACHE_BYTES,
        parallelism: int = PARALLELISM,
    ):
        self._pool = ThreadPoolExecutor(parallelism, thread_name_prefix="statestore-read")
        files = _Files(checkpoints, BlockCache(cache_bytes), self._pool, ahead=parallelism)
        self._parts = _PartsLayer(files, manifest.parts)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys` in their order, None where there is none."""
        found = self._parts.get_many(keys)
        return [found.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Entries with start <= key < stop (to the end when `stop` is None), ascending."""
        return self._parts.scan(start, stop)

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """As `scan`, for who needs all of a large range: it reads whole files, several at a time and ahead of use."""
        return self._parts.stream(start, stop)

    def close(self) -> None:
        """End the threads that read; idempotent. What has been begun can't be read to its end then."""
        self._pool.shutdown(wait=True, cancel_futures=True)
