"""Savepoints: whole copies of a state in a folder of their own, which belong to the user.

    <folder>/_metadata              the manifest, of kind "savepoint"; see `manifest.py`
    <folder>/<n>-<hash>.seg         sorted segments, in key order; see `segment.py`
    <folder>/_progress              while it is being made: how far it has come

Invariants:
- a savepoint names nothing outside its folder, and only by relative paths: the folder can be moved, copied and renamed;
- it is the state at exactly one epoch, in the format that every backend reads;
- `_metadata` is written last, by create-if-absent: a folder without it is no savepoint, and the next one made there replaces it;
- segments have names that only their content can have, so two that write into one folder can't mix: one completes, the other fails;
- nobody but the user removes one, unless a store was told to claim it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import msgspec

from statestore import crashpoints
from statestore.checkpoint.locating import SavepointStorage, locate_checkpoint
from statestore.checkpoint.manifest import BaseEntry, Manifest, Part, SegmentEntry, encode_manifest
from statestore.checkpoint.retention import remove_up_to
from statestore.checkpoint.storage import METADATA, CheckpointStorage
from statestore.checkpoint.view import CheckpointView
from statestore.clock import Clock
from statestore.copying import Entry, Progress, Show, Source, copy_entries, source_of
from statestore.errors import AlreadyExistsError, CheckpointNotFoundError, CorruptionError, UnavailableError, UsageError
from statestore.io import OpenStorage, Storage, open_storage
from statestore.segment import SegmentWriter
from statestore.types import Epoch

PROGRESS = "_progress"


@dataclass(frozen=True, slots=True)
class SavepointInfo:
    """A complete savepoint."""

    path: str
    """Its folder, as `restore` takes it."""
    epoch: Epoch
    entries: int
    total_bytes: int
    manifest: Manifest


class PendingSavepoint:
    """A savepoint that has been begun. `finish` may run in another thread; the checkpoint it is made of stays until it has ended."""

    def __init__(self, checkpoints: CheckpointStorage, manifest: Manifest, dir: str, clock: Clock):
        self._checkpoints, self._manifest, self._dir, self._clock = checkpoints, manifest, dir, clock
        checkpoints.held[manifest.checkpoint_id] += 1

    def finish(self) -> SavepointInfo:
        """Copy the checkpoint. Raises as `save_checkpoint` does; to try again, begin another."""
        try:
            return save_checkpoint(self._checkpoints, self._manifest, self._dir, self._clock)
        finally:
            self._checkpoints.held[self._manifest.checkpoint_id] -= 1


def save_checkpoint(
    checkpoints: CheckpointStorage, manifest: Manifest, dir: str, clock: Clock, show: Show | None = None
) -> SavepointInfo:
    """Copy a checkpoint into a folder as a savepoint.

    Raises
    ------
    AlreadyExistsError
        A savepoint is there already.
    UsageError
        The folder is called like a checkpoint.
    UnavailableError
        A storage does not answer, or the checkpoint was removed meanwhile.
    CorruptionError
        A file of the checkpoint is damaged.
    """
    source = source_of(checkpoints, manifest)
    writer = SavepointWriter(dir, source, clock, checkpoints.open_storage)
    try:
        copy_entries(source, writer, show)
    except CorruptionError:
        try:
            checkpoints.load(manifest.checkpoint_id)
        except CheckpointNotFoundError:
            place = checkpoints.path_of(manifest.checkpoint_id)
            reason = "its job has removed it meanwhile"
            raise UnavailableError("checkpoint", place, reason, hint="run it again, for a newer one") from None
        raise
    return writer.complete()


class _Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `_progress`."""

    progress: Progress
    segments: list[SegmentEntry] = []
    leftovers: list[str] = []
    """Files of copies that were given up."""


class SavepointWriter:
    """Target of a copy that ends as a savepoint.

    Parameters
    ----------
    open_storage
        Opens the folder, with the keys that go with it.
    taken
        Places that must stay as they are.
    overwrite
        Whether a savepoint that is there is removed.

    Raises
    ------
    AlreadyExistsError
        From the constructor or `complete`: a savepoint is there already.
    UsageError
        The folder is called like a checkpoint, or is one of `taken`.
    UnavailableError
        The storage does not answer.
    """

    def __init__(
        self,
        dir: str,
        source: Source,
        clock: Clock,
        open_storage: OpenStorage = open_storage,
        *,
        taken: Collection[str] = (),
        overwrite: bool = False,
    ):
        if re.fullmatch(r"chk-[0-9]+", dir.rstrip("/").rpartition("/")[2]):
            raise UsageError(f"a savepoint's folder can't be called like a checkpoint: '{dir}'")
        self._storage = storage = open_storage(dir)
        self._source, self._clock, self.where = source, clock, storage.url
        if storage.url in taken:
            raise UsageError(f"source and target are one: {storage.url}")
        if storage.exists(METADATA):
            if not overwrite:
                raise self._taken()
            savepoint, number = locate_checkpoint(dir, open_storage=open_storage)
            remove_up_to(savepoint, number)
        found = _read_progress(storage)
        if found is not None and found.progress.source == source.identity and _are_there(storage, found.segments):
            self._unfinished = found
        else:
            given_up = [*found.leftovers, *(segment.path for segment in found.segments)] if found else []
            self._unfinished = _Unfinished(progress=Progress(source=source.identity), leftovers=given_up)
        self.progress = self._unfinished.progress

    def _taken(self) -> AlreadyExistsError:
        return AlreadyExistsError(self.where, "there is a savepoint", hint="choose another folder")

    def write(self, piece: list[Entry], progress: Progress) -> None:
        """Store the piece as one more segment."""
        segments = self._unfinished.segments
        writer = SegmentWriter()
        writer.add(piece)
        data = writer.finish()
        digest = hashlib.sha256(data).hexdigest()
        entry = SegmentEntry(
            path=f"{len(segments)}-{digest[:16]}.seg",
            size=len(data),
            sha256=digest,
            first_key=writer.first_key,
            last_key=writer.last_key,
            entries=writer.entries,
        )
        self._storage.write(entry.path, data)
        self._note(msgspec.structs.replace(self._unfinished, progress=progress, segments=[*segments, entry]))
        crashpoints.reach("savepoint.copying")

    def _note(self, unfinished: _Unfinished) -> None:
        self._unfinished, self.progress = unfinished, unfinished.progress
        self._storage.write(PROGRESS, msgspec.json.encode(unfinished))

    def scan(self) -> Iterator[Entry]:
        """What is there."""
        manifest = self._manifest()
        return CheckpointView(SavepointStorage(self._storage, manifest), manifest).scan(b"", None)

    def give_up(self) -> None:
        """Whoever comes next begins anew."""
        self._note(msgspec.structs.replace(self._unfinished, progress=Progress(source="")))

    def _manifest(self) -> Manifest:
        """Of the savepoint that the segments make."""
        origin, segments = self._source.manifest, self._unfinished.segments
        part = Part(
            first_key_group=0,
            last_key_group=origin.max_parallelism - 1,
            epoch=origin.epoch,
            base=BaseEntry(epoch=origin.epoch, created=self._clock.time(), segments=segments),
            deltas=[],
            log_sequence=0,  # no log continues it: whoever restores it begins one
            log_sha256="",
            uploaded_bytes=sum(segment.size for segment in segments),
        )
        return msgspec.structs.replace(
            origin,
            kind="savepoint",
            created=self._clock.time(),
            run="",
            parts=[part],
            claimed=None,
        )

    def complete(self) -> SavepointInfo:
        """Write `_metadata`: from here on the savepoint exists."""
        manifest = self._manifest()
        try:
            self._storage.create(METADATA, encode_manifest(manifest))
        except FileExistsError:
            raise self._taken() from None
        crashpoints.reach("savepoint.completed")
        for name in {*self._unfinished.leftovers} - {segment.path for segment in self._unfinished.segments}:
            self._storage.delete(name)
        self._storage.delete(PROGRESS)
        return SavepointInfo(self._storage.url, manifest.epoch, self.progress.entries, manifest.total_bytes, manifest)


def _read_progress(storage: Storage) -> _Unfinished | None:
    try:
        return msgspec.json.decode(storage.read(PROGRESS), type=_Unfinished)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _are_there(storage: Storage, segments: list[SegmentEntry]) -> bool:
    return all(storage.exists(entry.path) and storage.size(entry.path) == entry.size for entry in segments)
