"""Brings the state of one store into checkpoint storage: deltas at every checkpoint, a base now and then."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from statestore import crashpoints
from statestore.checkpoint.manifest import BaseEntry, LogDelta, SegmentEntry
from statestore.checkpoint.storage import CheckpointStorage
from statestore.segment import SegmentWriter
from statestore.types import Attempt, Epoch
from statestore.wal.log import Log, SealedSegment

BASE_FILE_BYTES = 32 << 20


def upload_deltas(checkpoints: CheckpointStorage, log: Log, segments: Iterable[SealedSegment]) -> list[LogDelta]:
    """Store sealed segments under names that only this content can have.

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
        checkpoints.storage.write(checkpoints.object_name(path), data)
        deltas.append(
            LogDelta(
                path=path,
                size=segment.size,
                sha256=segment.sha256,
                sequence=segment.sequence,
                first_epoch=segment.first_epoch,
                last_epoch=segment.last_epoch,
            )
        )
    return deltas


def upload_base(
    checkpoints: CheckpointStorage, entries: Iterable[tuple[bytes, bytes]], epoch: Epoch, attempt: Attempt
) -> BaseEntry:
    """Store `entries` (ascending) as sorted segments: a base at `epoch`, which may already hold later values of some entries."""
    segments: list[SegmentEntry] = []
    writer = SegmentWriter()
    for key, value in entries:
        writer.add(key, value)
        if writer.size_bytes >= BASE_FILE_BYTES:
            segments.append(_store(checkpoints, writer, f"shared/base-{attempt}-{epoch}-{len(segments)}"))
            writer = SegmentWriter()
    if writer.entries:
        segments.append(_store(checkpoints, writer, f"shared/base-{attempt}-{epoch}-{len(segments)}"))
    return BaseEntry(epoch=epoch, segments=segments)


def _store(checkpoints: CheckpointStorage, writer: SegmentWriter, stem: str) -> SegmentEntry:
    data = writer.finish()
    digest = hashlib.sha256(data).hexdigest()
    path = f"{stem}-{digest[:16]}.seg"
    checkpoints.storage.write(checkpoints.object_name(path), data)
    return SegmentEntry(
        path=path,
        size=len(data),
        sha256=digest,
        first_key=writer.first_key,
        last_key=writer.last_key,
        entries=writer.entries,
    )
