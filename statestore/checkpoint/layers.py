"""What a checkpoint's entries are looked up in, layer by layer.

Invariants:
- a look-up in sorted segments costs the footer and one block of each segment whose range holds the key;
- log deltas are read as a whole when they are first needed; what of them is more than `LOG_MEMORY_BYTES` goes to temporary sorted
  segments on the local disk;
- `stream` reads whole files, checked against their hashes, a fixed number of them ahead of use: its memory does not grow with the state.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Protocol, TypeVar

from statestore.checkpoint.manifest import FileEntry, LogDelta, SegmentEntry
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.upload import sorted_segments
from statestore.io import MemoryStorage, Storage, TemporaryFolder
from statestore.segment import BlockCache, SegmentReader, merged
from statestore.types import Epoch
from statestore.wal.reader import read_segment

LOG_MEMORY_BYTES = 64 << 20
ENTRY_OVERHEAD_BYTES = 150
SPILL_CACHE_BYTES = 8 << 20

Entry = tuple[bytes, bytes | None]
F = TypeVar("F", bound=FileEntry)


class Files:
    """What all layers of a view read with.

    Parameters
    ----------
    parallelism
        How many files are read at a time.
    folder
        Where temporary files may lie; None: where the machine keeps such.
    """

    def __init__(self, checkpoints: CheckpointStorage, cache_bytes: int, parallelism: int, folder: str | None):
        self.checkpoints, self.folder, self._cache = checkpoints, folder, BlockCache(cache_bytes)
        self._pool = ThreadPoolExecutor(parallelism, thread_name_prefix="statestore-read")
        self._ahead = parallelism

    def open_segment(self, entry: SegmentEntry) -> SegmentReader:
        """Reader of a segment where it lies."""
        return self.checkpoints.open_segment(entry, self._cache)

    def read_in_turn(self, entries: Iterable[F]) -> Iterator[tuple[F, bytes]]:
        """Files as a whole, checked, in their order; a fixed number of them is read ahead of use."""
        waiting = deque(entries)
        reads: deque[tuple[F, Future[bytes]]] = deque()
        try:
            while waiting or reads:
                while waiting and len(reads) < self._ahead:
                    entry = waiting.popleft()
                    reads.append((entry, self._pool.submit(self.checkpoints.read_file, entry)))
                entry, read = reads.popleft()
                yield entry, read.result()
        finally:  # also when whoever reads stops early
            for _, read in reads:
                read.cancel()

    def close(self) -> None:
        """End the threads; idempotent."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class Layer(Protocol):
    """Entries, deleted ones included."""

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Those of `keys` that the layer knows, None for deleted ones."""
        ...

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """Entries with start <= key < stop, ascending."""
        ...

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """The same, for who reads all of a large range: see `CheckpointView.stream`."""
        ...


def look_up(layers: Sequence[Layer], keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
    """Those of `keys` that any layer knows, as the first that does has it."""
    found: dict[bytes, bytes | None] = {}
    missing: Sequence[bytes] = keys
    for layer in layers:
        found.update(layer.get_many(missing))
        missing = [key for key in missing if key not in found]
        if not missing:
            break
    return found


class SegmentsLayer:
    """Sorted segments whose key ranges follow each other."""

    def __init__(self, files: Files, segments: Sequence[SegmentEntry]):
        self._files, self._segments = files, segments
        self._first_keys = [segment.first_key for segment in segments]
        self._readers: dict[int, SegmentReader] = {}

    def _reader(self, index: int) -> SegmentReader:
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = self._open(self._segments[index])
        return reader

    def _open(self, entry: SegmentEntry) -> SegmentReader:
        return self._files.open_segment(entry)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """One look-up in each segment whose range holds some of the keys."""
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
        """One segment after the other."""
        return chain.from_iterable(self._reader(index).scan(start, stop) for index in self._within(start, stop))

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """Segments as a whole."""
        read = self._files.read_in_turn(self._segments[index] for index in self._within(start, stop))
        return chain.from_iterable(self._held(entry, data).scan(start, stop) for entry, data in read)

    def _held(self, entry: SegmentEntry, data: bytes) -> SegmentReader:
        held = MemoryStorage(self._files.checkpoints.url)
        held.write(entry.path, data)
        return SegmentReader(held, entry.path)

    def _within(self, start: bytes, stop: bytes | None) -> range:
        """Indexes of the segments that may have something of a range."""
        end = len(self._segments) if stop is None else bisect_left(self._first_keys, stop)
        return range(max(0, bisect_right(self._first_keys, start) - 1), end)


class _SpilledLayer(SegmentsLayer):
    """Segments in a temporary folder."""

    def __init__(self, files: Files, segments: Sequence[SegmentEntry], storage: Storage):
        super().__init__(files, segments)
        self._storage, self._cache = storage, BlockCache(SPILL_CACHE_BYTES)

    def _open(self, entry: SegmentEntry) -> SegmentReader:
        return SegmentReader(self._storage, entry.path, size=entry.size, cache=self._cache)

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        return self.scan(start, stop)


class _MemoryLayer:
    def __init__(self, entries: dict[bytes, bytes | None]):
        self._entries, self._keys = entries, sorted(entries)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        return {key: self._entries[key] for key in keys if key in self._entries}

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        last = len(self._keys) if stop is None else bisect_left(self._keys, stop)
        return ((key, self._entries[key]) for key in self._keys[bisect_left(self._keys, start) : last])

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        return self.scan(start, stop)


class LogLayer:
    """Log segments that follow each other, from behind the epoch `after` on. Thread-safe."""

    def __init__(self, files: Files, deltas: Sequence[LogDelta], after: Epoch):
        self._files, self._deltas, self._after = files, deltas, after
        self._lock = threading.Lock()
        self._layers: list[Layer] = []
        self._folder: TemporaryFolder | None = None

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Look in memory, then in what did not fit there."""
        return look_up(self._read(), list(keys))

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """All pieces merged."""
        return merged([layer.scan(start, stop) for layer in self._read()])

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """The same: they are read already."""
        return self.scan(start, stop)

    def close(self) -> None:
        """Forget what was read."""
        with self._lock:
            self._layers = []
            if self._folder is not None:
                self._folder.close()
                self._folder = None

    def _read(self) -> list[Layer]:
        """The log's entries in pieces, newest first."""
        with self._lock:
            if not self._layers:
                entries: dict[bytes, bytes | None] = {}
                read = read_bytes = 0
                for some in self._batches():
                    entries.update(some)
                    read += len(some)
                    read_bytes += sum(map(len, some)) + sum(map(len, filter(None, some.values())))
                    # Not what was read: that is mostly the same few keys again and again, where there is much of it.
                    if entries and len(entries) * (ENTRY_OVERHEAD_BYTES + read_bytes // read) >= LOG_MEMORY_BYTES:
                        self._layers.insert(0, self._spilled(entries))
                        entries, read, read_bytes = {}, 0, 0
                self._layers.insert(0, _MemoryLayer(entries))
            return self._layers

    def _batches(self) -> Iterator[dict[bytes, bytes | None]]:
        for delta, data in self._files.read_in_turn(self._deltas):
            content = read_segment(data, f"{self._files.checkpoints.url}/{delta.path}", tail_may_be_torn=False)
            assert content is not None
            for group in content.groups:
                if group.epoch > self._after:
                    yield from group.entries()

    def _spilled(self, entries: dict[bytes, bytes | None]) -> Layer:
        if self._folder is None:
            self._folder = TemporaryFolder(self._files.folder)
        storage, segments = self._files.checkpoints.open_storage(str(self._folder.path)), []  # with its keys
        ordered = ((key, entries[key]) for key in sorted(entries))
        for entry, data in sorted_segments(ordered, str(len(self._layers))):
            storage.write(entry.path, data)
            segments.append(entry)
        return _SpilledLayer(self._files, segments, storage)
