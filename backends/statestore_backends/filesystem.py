"""Filesystem backend: sorted segments and a manifest, on the local disk or any fsspec file system.

Invariants:
- segments are immutable, and their names are never used again;
- the manifest is replaced whole, and writing it is the one commit point of every change, so entries and marker change together;
- a segment file goes only when no manifest names it and no scan uses it;
- the manifest carries its writer's attempt: an older attempt that looks before it writes finds itself fenced.

Layout: `MANIFEST` (MessagePack, preceded by its CRC-32C) · `segments/<attempt>-<opening>-<number>.seg`, newest last in the manifest.
"""

from __future__ import annotations

import logging
import secrets
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby
from typing import Any

import google_crc32c
import msgspec

from statestore.backend import Backend, BackendContext, Batch
from statestore.config import Section, parse_options
from statestore.errors import ClosedError, ConfigError, CorruptionError, FencedError
from statestore.io import Storage
from statestore.keys import group_start
from statestore.segment import BlockCache, SegmentReader, SegmentWriter, in_pieces, merged
from statestore.types import Attempt, Epoch
from statestore.units import Size

logger = logging.getLogger("statestore.backends.filesystem")

MANIFEST = "MANIFEST"
FORMAT = 1
SEGMENT_TARGET_BYTES = 64 << 20
BLOCK_BYTES = 16 << 10
"""Small, since a look-up that the cache can't serve reads, checks and unpacks a whole block."""

_crc = struct.Struct("<I")


class FilesystemOptions(Section, frozen=True, kw_only=True):
    """`[state.filesystem]`."""

    url: str | None = None
    """Path or fsspec URL; default: the job's local folder."""
    block_cache: Size = 32 << 20
    segments_max: int = 8
    """Segments written together count as one; more than this are merged."""


class _SegmentEntry(msgspec.Struct, frozen=True):
    name: str
    size: int
    entries: int
    run: str
    """The same for all that were written together, whose key ranges do not overlap."""


class _Manifest(msgspec.Struct, frozen=True):
    format: int
    attempt: Attempt
    opening: str
    """Tells openings with the same attempt apart, as those whose checkpoints lie in different places: the later one owns the state."""
    epoch: Epoch
    segments: list[_SegmentEntry]


_decode_manifest = msgspec.msgpack.Decoder(_Manifest).decode


class FilesystemBackend(Backend):
    """Log-structured merge tree whose every write is a new file."""

    durable = True

    def __init__(self, storage: Storage, attempt: Attempt, max_parallelism: int, options: FilesystemOptions):
        self._storage, self._attempt, self._options = storage, attempt, options
        self._max_parallelism = max_parallelism
        self._cache = BlockCache(options.block_cache)
        self._lock = threading.Lock()
        self._scans = 0
        self._garbage: list[str] = []
        self._closed = False
        self._numbers, self._opening = count(1), secrets.token_hex(4)
        found = self._read_manifest()
        if found.attempt > attempt:
            raise FencedError(storage.url, attempt, found.attempt)
        self._epoch = found.epoch
        self._segments: list[tuple[_SegmentEntry, SegmentReader | None]] = [(entry, None) for entry in found.segments]
        self._write_manifest(self._segments, self._epoch, own_already=False)
        self._remove_leftovers()

    @classmethod
    def open(cls, context: BackendContext) -> FilesystemBackend:
        """Open the place and take it over from older attempts."""
        options = parse_options(FilesystemOptions, context.options, "state.filesystem")
        if options.segments_max < 2:
            raise ConfigError(f"{options.segments_max} is less than 2", key="state.filesystem.segments-max")
        if options.url is not None:
            storage = context.open_storage(f"{options.url.rstrip('/')}/{context.job}/{_folder_of(context)}")
        elif context.directory is not None:
            storage = context.open_storage(context.directory)
        else:
            raise ConfigError(
                "the filesystem backend needs a place", key="state.filesystem.url", hint="give a path or fsspec URL"
            )
        return cls(storage, context.attempt, context.max_parallelism, options)

    @classmethod
    def options_from_url(cls, url: str) -> dict[str, Any]:
        """`filesystem+s3://bucket/prefix` is at `s3://bucket/prefix`."""
        return {"url": url.removeprefix("filesystem+")}

    # Manifest

    def _read_manifest(self) -> _Manifest:
        """The manifest; an empty one where there is none or a damaged one, which is kept aside."""
        empty = _Manifest(FORMAT, Attempt(0), "", Epoch(0), [])
        try:
            data = self._storage.read(MANIFEST)
        except FileNotFoundError:
            return empty
        except CorruptionError as error:  # it can't even be decrypted
            logger.error("%s; the state has to be restored", error)
            return empty
        try:
            if len(data) < _crc.size or google_crc32c.value(data[_crc.size :]) != _crc.unpack_from(data)[0]:
                raise CorruptionError(f"{self._storage.url}/{MANIFEST}", "it does not match its checksum")
            manifest = _decode_manifest(data[_crc.size :])
            if manifest.format != FORMAT:
                raise CorruptionError(f"{self._storage.url}/{MANIFEST}", f"format {manifest.format} is not supported")
        except (msgspec.MsgspecError, CorruptionError) as error:
            # Marker 0 makes the engine rebuild this place from log or checkpoint, or fail loudly.
            logger.error("%s; kept as %s.damaged, the state has to be restored", error, MANIFEST)
            self._storage.write(f"{MANIFEST}.damaged", data)
            return empty
        return manifest

    def _write_manifest(
        self, segments: list[tuple[_SegmentEntry, SegmentReader | None]], epoch: Epoch, *, own_already: bool = True
    ) -> None:
        """Commit a change; then what the old manifest named and the new does not is garbage."""
        if own_already:
            found = self._read_manifest()
            if found.attempt > self._attempt or (found.attempt == self._attempt and found.opening != self._opening):
                raise FencedError(self._storage.url, self._attempt, found.attempt)
        entries = [entry for entry, _ in segments]
        body = msgspec.msgpack.encode(_Manifest(FORMAT, self._attempt, self._opening, epoch, entries))
        self._storage.write(MANIFEST, _crc.pack(google_crc32c.value(body)) + body)
        with self._lock:
            named = {entry.name for entry, _ in segments}
            self._garbage += [entry.name for entry, _ in self._segments if entry.name not in named]
            self._segments, self._epoch = segments, epoch
        self._remove_garbage()

    def _remove_garbage(self) -> None:
        with self._lock:
            if self._scans:
                return
            garbage, self._garbage = self._garbage, []
        for name in garbage:
            self._storage.delete(name)

    def _remove_leftovers(self) -> None:
        """Files of writes that were interrupted before their manifest."""
        named = {entry.name for entry, _ in self._segments}
        for name in self._storage.list("segments"):
            if name not in named:
                self._storage.delete(name)

    # Reading

    def _readers(self) -> list[SegmentReader]:
        """Readers of all segments, newest first."""
        with self._lock:
            for index, (entry, reader) in enumerate(self._segments):
                if reader is None:
                    opened = SegmentReader(self._storage, entry.name, size=entry.size, cache=self._cache)
                    self._segments[index] = (entry, opened)
            return [reader for _, reader in reversed(self._segments) if reader is not None]

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Ask the segments from the newest on, each only for what is not known yet."""
        self._check_open()
        with self._using_files():
            found: dict[bytes, bytes | None] = {}
            missing: Iterable[bytes] = keys
            for reader in self._readers():
                found.update(reader.get_many(missing))
                missing = [key for key in missing if key not in found]
                if not missing:
                    break
        return [found.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Merge the segments as they are now; later batches are not seen."""
        self._check_open()
        with self._using_files():
            for key, value in merged([reader.scan(start, stop) for reader in self._readers()]):
                if value is not None:
                    yield key, value

    def _using_files(self) -> _Use:
        return _Use(self)

    def begin_use(self) -> None:
        """Keep the files of the current segments until `end_use`."""
        with self._lock:
            self._scans += 1

    def end_use(self) -> None:
        """Let files go that nobody reads any more."""
        with self._lock:
            self._scans -= 1
        if not self._closed:
            self._remove_garbage()

    def applied_epoch(self) -> Epoch:
        """The manifest's marker."""
        self._check_open()
        return self._epoch

    # Writing

    def apply(self, batch: Batch, epoch: Epoch) -> None:
        """Write the batch as one more segment, then the manifest; merge segments when there are many."""
        self._check_open()
        segments = list(self._segments)
        if batch:
            segments += self._store(sorted(batch.items()))
        self._write_manifest(segments, epoch)
        while len(self._runs()) > self._options.segments_max:
            self._merge_some()

    def bulk_load(self, entries: Iterator[tuple[bytes, bytes]]) -> None:
        """Write one run of segments, however many they are."""
        self._check_open()
        self._write_manifest([*self._segments, *self._store(entries)], self._epoch)

    def _runs(self) -> list[list[tuple[_SegmentEntry, SegmentReader | None]]]:
        """The segments, those together that were written together: a large state is many segments however it is merged."""
        return [list(run) for _, run in groupby(self._segments, key=lambda segment: segment[0].run)]

    def _store(self, entries: Iterable[tuple[bytes, bytes | None]]) -> list[tuple[_SegmentEntry, SegmentReader | None]]:
        """Write entries in key order as one or, when they are many, several segments."""
        stored: list[tuple[_SegmentEntry, SegmentReader | None]] = []
        writer, run = SegmentWriter(block_bytes=BLOCK_BYTES), f"{self._opening}-{next(self._numbers)}"
        for piece in in_pieces(entries):
            writer.add(piece)
            if writer.size_bytes >= SEGMENT_TARGET_BYTES:
                stored.append(self._store_one(writer, run))
                writer = SegmentWriter(block_bytes=BLOCK_BYTES)
        if writer.entries:
            stored.append(self._store_one(writer, run))
        return stored

    def _store_one(self, writer: SegmentWriter, run: str) -> tuple[_SegmentEntry, SegmentReader | None]:
        data, entries = writer.finish(), writer.entries
        name = f"segments/{self._attempt:08d}-{self._opening}-{next(self._numbers):08d}.seg"
        self._storage.write(name, data)
        return _SegmentEntry(name, len(data), entries, run), None

    def _merge_some(self) -> None:
        """Merge the newest runs, and older ones as long as they are not much larger than what is merged already.

        Sizes then grow from the newest to the oldest by a factor, so an entry is written again about as often as the state has doubled.
        """
        runs = self._runs()
        sizes = [sum(entry.size for entry, _ in run) for run in runs]
        first = len(sizes) - 2
        total = sum(sizes[first:])
        while first > 0 and sizes[first - 1] <= 2 * total:
            first -= 1
            total += sizes[first]
        kept = [segment for run in runs[:first] for segment in run]
        readers = self._readers()[: len(self._segments) - len(kept)]
        entries = merged([reader.scan(b"", None) for reader in readers])
        if first == 0:  # nothing older is below: deleted keys need no mark any more
            entries = ((key, value) for key, value in entries if value is not None)
        self._write_manifest([*kept, *self._store(entries)], self._epoch)

    def persist(self) -> Epoch:
        """Every apply is durable when it returns."""
        self._check_open()
        return self._epoch

    def clear(self, key_groups: range) -> None:
        """Set the marker to 0, then write what remains anew; what is cleared is not read."""
        self._check_open()
        self._write_manifest(list(self._segments), Epoch(0))
        try:
            kept = (range(key_groups.start), range(key_groups.stop, self._max_parallelism))
            remaining = self._store(
                entry
                for groups in kept
                if groups
                for entry in self.scan(group_start(groups.start), group_start(groups.stop))
            )
        except CorruptionError as error:
            # Only what is to be cleared may be unreadable; with all of it cleared, nothing is lost.
            logger.error("%s; dropped with the rest of the state, which is about to be restored", error)
            remaining = []
        self._write_manifest(remaining, Epoch(0))

    def close(self) -> None:
        """Forget the place."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the filesystem backend is closed")


def _folder_of(context: BackendContext) -> str:
    """Folder below the job's: the backends of several workers don't share one."""
    own = context.key_groups
    return "state" if len(own) == context.max_parallelism else f"state-{own.start}-{own.stop - 1}"


class _Use:
    """`with` block in which the backend's files stay."""

    def __init__(self, backend: FilesystemBackend):
        self._backend = backend

    def __enter__(self) -> None:
        self._backend.begin_use()

    def __exit__(self, *exc_info: object) -> None:
        self._backend.end_use()
