"""Brings files into checkpoint storage: the deltas of a checkpoint, and the files of bases and packed deltas.

Names are unique to the attempt that writes them, so an older one can neither overwrite nor collect what a newer one has stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from statestore import crashpoints
from statestore.checkpoint.manifest import INLINE_MAX_BYTES, LogDelta, SegmentEntry
from statestore.checkpoint.storage import CheckpointStorage
from statestore.clock import Clock
from statestore.errors import ClosedError
from statestore.segment import SegmentWriter, in_pieces
from statestore.wal.log import Log, SealedSegment

SEGMENT_BYTES = 32 << 20
SLEEP_SECONDS_MAX = 0.1


class Throttle:
    """Keeps background work to so many bytes a second, and ends it when the store is closed.

    Parameters
    ----------
    bytes_per_second
        0 is unlimited.
    """

    def __init__(self, bytes_per_second: int, clock: Clock):
        self._rate, self._clock = bytes_per_second, clock
        self._free = clock.monotonic()
        self._stopped = False

    def spend(self, size: int) -> None:
        """Wait until `size` bytes more are within the rate. Raises ClosedError after `stop`."""
        now = self._clock.monotonic()
        if self._rate:
            self._free = max(self._free, now) + size / self._rate
        while not self._stopped and now < self._free:
            self._clock.sleep(min(self._free - now, SLEEP_SECONDS_MAX))
            now = self._clock.monotonic()
        if self._stopped:
            raise ClosedError("the store was closed while a base was being made")

    def stop(self) -> None:
        """Let nobody go on."""
        self._stopped = True


class Uploader:
    """Puts files into a checkpoint storage.

    Parameters
    ----------
    inline_bytes
        A file up to this size is left to the manifest.
    throttle
        Of background work; None goes on at once.
    """

    def __init__(self, checkpoints: CheckpointStorage, inline_bytes: int, throttle: Throttle | None = None):
        self._checkpoints, self._inline_bytes, self._throttle = checkpoints, inline_bytes, throttle

    def put(self, path: str, data: bytes, *, room: int = INLINE_MAX_BYTES) -> bytes | None:
        """Store a file; or give it back, when it is small enough to stand in the manifest, where there are `room` bytes left."""
        if len(data) <= min(room, self._inline_bytes):
            return data
        self._checkpoints.storage.write(self._checkpoints.object_name(path), data)
        if self._throttle is not None:
            self._throttle.spend(len(data))
        return None

    def put_sorted(self, entries: Iterable[tuple[bytes, bytes | None]], stem: str) -> list[SegmentEntry]:
        """Store entries (ascending) as sorted segments whose paths begin with `stem`."""
        segments = []
        for entry, data in sorted_segments(entries, stem):
            crashpoints.reach("base.uploading")
            segments.append(replace(entry, data=self.put(entry.path, data)))
        return segments


def sorted_segments(entries: Iterable[tuple[bytes, bytes | None]], stem: str) -> Iterator[tuple[SegmentEntry, bytes]]:
    """Sorted segments of about `SEGMENT_BYTES` that hold `entries` (ascending), each with its description."""
    number, writer = 0, SegmentWriter()
    for piece in in_pieces(entries):
        writer.add(piece)
        if writer.size_bytes >= SEGMENT_BYTES:
            yield _finished(writer, f"{stem}-{number}")
            number, writer = number + 1, SegmentWriter()
    if writer.entries:
        yield _finished(writer, f"{stem}-{number}")


def _finished(writer: SegmentWriter, stem: str) -> tuple[SegmentEntry, bytes]:
    data = writer.finish()
    digest = hashlib.sha256(data).hexdigest()
    entry = SegmentEntry(
        path=f"{stem}-{digest[:16]}.seg",
        size=len(data),
        sha256=digest,
        first_key=writer.first_key,
        last_key=writer.last_key,
        entries=writer.entries,
    )
    return entry, data


def upload_deltas(uploader: Uploader, log: Log, segments: Iterable[SealedSegment], room: int) -> list[LogDelta]:
    """Store sealed segments under names that only this content can have; `room` bytes of small ones may stand in the manifest.

    Raises
    ------
    CorruptionError
        A segment on the local disk is not what was written: nothing refers to it then.
    """
    deltas = []
    for segment in segments:
        data = log.read_sealed(segment)
        path = f"shared/delta-{segment.attempt}-{segment.sequence}-{segment.sha256[:16]}.log"
        crashpoints.reach("checkpoint.uploading")
        inlined = uploader.put(path, data, room=room)
        room -= len(inlined or b"")
        deltas.append(
            LogDelta(
                path=path,
                size=segment.size,
                sha256=segment.sha256,
                data=inlined,
                sequence=segment.sequence,
                first_epoch=segment.first_epoch,
                last_epoch=segment.last_epoch,
            )
        )
    return deltas
