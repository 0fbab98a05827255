"""Where a job's checkpoints are: finding, pinning and completing them.

    <dir>/<job>/attempts/<n>          attempt n was begun by whoever made this file (create-if-absent: the fencing token)
    <dir>/<job>/chk-<n>/_metadata     the manifest, see `manifest.py`
    <dir>/<job>/chk-<n>/_removing     what was the manifest, while the checkpoint is being removed, see `retention.py`
    <dir>/<job>/pins/<n>              what is pinned, see `pins.py`
    <dir>/<job>/shared/...            bases and deltas; their names hold the number of the attempt that made them
    <dir>/<job>/_latest               hint: a checkpoint number near the newest, so that not all need be probed

A savepoint is a folder of its own, `<anywhere>/_metadata` beside its files, see `savepoint.py`.

Invariants:
- checkpoint and attempt numbers have no gaps, so the newest is found by asking for the next until there is none: a stale listing or hint
  can cost time, never a decision;
- a checkpoint number is taken only by completing it; a failed checkpoint leaves no number behind;
- an attempt's own object goes only after a newer attempt has completed a checkpoint, oldest first: whoever misses his own is fenced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Callable

from msgspec.structs import replace

from statestore import crashpoints
from statestore.checkpoint.manifest import (
    FileEntry,
    Manifest,
    SegmentEntry,
    decode_manifest,
    encode_manifest,
)
from statestore.checkpoint.pins import Pins
from statestore.errors import (
    CheckpointNotFoundError,
    CorruptionError,
    EncryptionKeyError,
    FencedError,
    UnavailableError,
    UsageError,
)
from statestore.io import EncryptedStorage, MemoryStorage, OpenStorage, Storage, open_storage
from statestore.segment import BlockCache, SegmentReader
from statestore.types import Attempt, CheckpointId

logger = logging.getLogger("statestore.checkpoint")

METADATA = "_metadata"
REMOVING = "_removing"
MOVED = (
    "which shares files with the others there, so it can't be moved or copied alone: "
    "copy the job's whole folder under its own name, or make a savepoint"
)

_job_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def checked_job_name(job: str) -> str:
    """`job` itself. Raises UsageError unless it can be a folder's name everywhere."""
    if not _job_name.fullmatch(job):
        raise UsageError(
            f"job name {job!r} must be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return job


class CheckpointStorage:
    """Checkpoints of one job in a `Storage`."""

    def __init__(self, storage: Storage, job: str, open_storage: OpenStorage = open_storage):
        self.storage, self.job = storage, checked_job_name(job)
        self.open_storage = open_storage
        """Opens places of other checkpoints, with the same keys."""
        self.url = f"{storage.url.rstrip('/')}/{job}"
        self.pins = Pins(storage, f"{job}/pins")
        self.held: Counter[CheckpointId] = Counter()
        """Checkpoints that this process reads for a while, and removes only after that; how many times each."""

    @staticmethod
    def jobs(storage: Storage) -> list[str]:
        """Names of the jobs with checkpoints below `storage`; a listing."""
        found = (re.fullmatch(rf"([^/]+)/chk-[0-9]+/{METADATA}", name) for name in storage.list())
        return sorted({match[1] for match in found if match})

    def path_of(self, checkpoint_id: CheckpointId) -> str:
        """Full path of a checkpoint, as `restore` takes it."""
        return f"{self.url}/chk-{checkpoint_id}"

    def manifest_name(self, checkpoint_id: int) -> str:
        """Name in the storage of a checkpoint's manifest."""
        return f"{self.job}/chk-{checkpoint_id}/{METADATA}"

    def removing_name(self, checkpoint_id: int) -> str:
        """Name in the storage of what says that a checkpoint is being removed."""
        return f"{self.job}/chk-{checkpoint_id}/{REMOVING}"

    def is_file_of_one(self, path: str) -> bool:
        """Whether this can be the path of a checkpoint's file: no manifest makes anything else go."""
        return path.startswith("shared/")

    def object_name(self, path: str) -> str:
        """Name in the storage of a manifest's path."""
        return f"{self.job}/{path}"

    # Attempts

    def claim_attempt(self, above: int = 0) -> Attempt:
        """Begin a new attempt: its number is greater than `above` and than that of every attempt before, and nobody else's."""
        claim = (
            secrets.token_hex(16).encode() + b"\n"
        )  # so that a storage can tell our claim from another's, when a reply is lost
        number: int = self.newest_attempt()
        while True:
            number += 1
            try:
                self.storage.create(self._attempt_name(number), claim)
            except FileExistsError:
                continue
            if number > above:
                self._write_hint(attempt=number)
                return Attempt(number)

    def newest_attempt(self) -> Attempt:
        """Number of the attempt begun last, 0 when there was none."""
        hint = floor = self._hint("attempt")
        if not hint or not self.has_attempt(hint):
            hint = floor = self._attempt_of_newest_checkpoint()
        return Attempt(max(floor, self._probe_up("attempts/", hint, self._attempt_name)))

    def _attempt_of_newest_checkpoint(self) -> int:
        for number in reversed(self.retained()):
            try:
                return self.load(number).attempt
            except CorruptionError:
                continue
        return 0

    def has_attempt(self, attempt: int) -> bool:
        """Whether this attempt was begun here."""
        return self.storage.exists(self._attempt_name(attempt))

    def _attempt_name(self, number: int) -> str:
        return f"{self.job}/attempts/{number}"

    def check_owner(self, attempt: Attempt) -> None:
        """Make sure that this attempt owns the job still.

        Raises
        ------
        FencedError
            A newer attempt has begun.
        UnavailableError
            The folder was emptied.
        """
        if self.storage.exists(self._attempt_name(attempt + 1)):
            raise FencedError(self.url, attempt)
        if not self.storage.exists(self._attempt_name(attempt)):
            newest = self.newest_attempt()
            if newest > attempt:
                raise FencedError(self.url, attempt, newest)
            reason = f"attempt {attempt} was begun there, and nothing of it is left"
            raise UnavailableError("checkpoint folder", self.url, reason, hint="was it emptied or moved?")

    # Finding

    def latest(self) -> CheckpointId | None:
        """Number of the newest complete checkpoint, None when there is none."""
        newest = self._probe_up("chk-", self._hint("checkpoint"), self.manifest_name)
        return CheckpointId(newest) if newest else None

    def newest_told(self) -> int:
        """Number of the newest checkpoint as the hint has it, 0 when it tells none; it may be gone, or not the newest any more."""
        return self._hint("checkpoint")

    def _probe_up(self, folder_prefix: str, hint: int, name_of: Callable[[int], str]) -> int:
        """Greatest existing number, found from a hint by asking for the next one until there is none."""
        number = hint
        if number == 0 or not self.storage.exists(name_of(number)):
            pattern = re.compile(rf"{re.escape(self.job)}/{re.escape(folder_prefix)}(\d+)(/_metadata)?")
            listed = (pattern.fullmatch(name) for name in self.storage.list(self.job))
            number = max((int(match[1]) for match in listed if match), default=0)
        while self.storage.exists(name_of(number + 1)):
            number += 1
        return number

    def _hint(self, key: str) -> int:
        return self._hints().get(key, 0)

    def _hints(self) -> dict[str, int]:
        try:
            hints = json.loads(self.storage.read(f"{self.job}/_latest"))
            return {key: int(hints[key]) for key in ("checkpoint", "attempt") if key in hints}
        except EncryptionKeyError:  # before anything is written with another key
            raise
        except (FileNotFoundError, CorruptionError, ValueError, TypeError):
            return {}

    def _write_hint(self, **changes: int) -> None:
        hints = {**self._hints(), **changes}
        self.storage.write(f"{self.job}/_latest", json.dumps(hints, sort_keys=True).encode() + b"\n")

    def load(self, checkpoint_id: CheckpointId) -> Manifest:
        """Manifest of a checkpoint.

        Raises
        ------
        CheckpointNotFoundError
            There is no such checkpoint.
        CorruptionError
            Its manifest is damaged, or is not that checkpoint's.
        """
        name = self.manifest_name(checkpoint_id)
        try:
            data = self.storage.read(name)
        except FileNotFoundError:
            raise CheckpointNotFoundError(self.path_of(checkpoint_id), "there is no such checkpoint") from None
        manifest = decode_manifest(data, f"{self.storage.url}/{name}")
        if manifest.job != self.job or manifest.checkpoint_id != checkpoint_id:
            found = f"checkpoint {manifest.checkpoint_id} of job '{manifest.job}'"
            raise CorruptionError(f"{self.storage.url}/{name}", f"it is the manifest of {found}, {MOVED}")
        return manifest

    def exists(self, checkpoint_id: CheckpointId) -> bool:
        """Whether there is such a checkpoint."""
        return self.storage.exists(self.manifest_name(checkpoint_id))

    def retained(self) -> list[CheckpointId]:
        """Numbers of the newest complete checkpoints down to the first gap, ascending."""
        newest = self.latest()
        if newest is None:
            return []
        oldest: int = newest
        while oldest > 1 and self.storage.exists(self.manifest_name(oldest - 1)):
            oldest -= 1
        return [CheckpointId(number) for number in range(oldest, newest + 1)]

    # Pinning

    def pin(self, checkpoint_id: CheckpointId) -> None:
        """Keep a checkpoint until `unpin`, whatever is collected.

        Raises
        ------
        CheckpointNotFoundError, CorruptionError
            There is none of this number, or it can't be read.
        UnavailableError
            It is just being removed.
        """
        self.load(checkpoint_id)
        self.pins.add(checkpoint_id)
        # Whoever removes it says so first, and looks at the pins after that: one of the two sees the other.
        names = self.removing_name(checkpoint_id), self.manifest_name(checkpoint_id)
        if self.storage.exists(names[0]) or not self.storage.exists(names[1]):
            self.pins.remove(checkpoint_id)
            raise UnavailableError("checkpoint", self.path_of(checkpoint_id), "it is just being removed")

    def unpin(self, checkpoint_id: CheckpointId) -> None:
        """Let the checkpoint go like any other of its age. Raises UsageError when it is not pinned."""
        if checkpoint_id not in self.pins.numbers():
            raise UsageError(f"checkpoint {self.path_of(checkpoint_id)} is not pinned")
        self.pins.remove(checkpoint_id)

    def restorable(self) -> list[CheckpointId]:
        """Numbers of the retained and of the pinned checkpoints, ascending."""
        return sorted({*self.retained(), *self.pins.numbers()})

    # Completing

    def complete(self, manifest: Manifest) -> None:
        """Write the manifest: from here on the checkpoint exists.

        Raises
        ------
        FencedError
            A newer attempt has taken over.
        UnavailableError
            An older attempt has completed this number, after this one had looked for the newest: what was done since does not continue it.
        FileExistsError
            This attempt has completed this number before, though that was reported as a failure.
        """
        self.check_owner(manifest.attempt)
        name, data = self.manifest_name(manifest.checkpoint_id), encode_manifest(manifest)
        try:
            self.storage.create(name, data)
        except FileExistsError:
            existing = self.load(manifest.checkpoint_id)
            place = self.path_of(manifest.checkpoint_id)
            if existing.attempt > manifest.attempt:
                raise FencedError(place, manifest.attempt, existing.attempt) from None
            if existing.attempt < manifest.attempt:
                reason = f"attempt {existing.attempt} completed it when attempt {manifest.attempt} had begun already"
                raise UnavailableError("checkpoint", place, reason, hint="start again from it") from None
            if self.storage.read(name) != data:
                raise
        crashpoints.reach("checkpoint.manifest-written")
        try:
            self._write_hint(checkpoint=manifest.checkpoint_id)
        except UnavailableError as error:  # the checkpoint stands without it
            logger.warning("the hint at %s was not written: %s", self.url, error)

    def complete_next(self, manifest: Manifest) -> Manifest:
        """Complete the checkpoint with the next free number; the manifest with this number. Raises as `complete` does."""
        while True:
            try:
                self.complete(manifest)
            except FileExistsError:  # ours, and part of what this one continues: its reply was lost
                manifest = replace(manifest, checkpoint_id=CheckpointId(manifest.checkpoint_id + 1))
            else:
                return manifest

    def time(self) -> float:
        """When the hint was written last, which each checkpoint does, by the storage's own clock: not after now. 0 when not known."""
        try:
            return self.storage.modified(f"{self.job}/_latest")
        except (FileNotFoundError, UnavailableError):
            return 0.0

    def touch(self) -> float:
        """The storage's time now. Writes the hint again."""
        self._write_hint()
        return self.time()

    # Reading

    @staticmethod
    def stored_files(manifest: Manifest) -> dict[str, FileEntry]:
        """Files of a checkpoint that lie in the storage, and don't stand in the manifest itself, by their paths."""
        return {entry.path: entry for entry in manifest.files() if entry.data is None}

    def place_of(self, entry: FileEntry) -> str:
        """Where a file of a checkpoint lies, for messages."""
        return f"{self.storage.url}/{self.object_name(entry.path)}"

    def read_bytes(self, entry: FileEntry) -> bytes:
        """A file of a checkpoint as it is. Raises CorruptionError when it is missing."""
        if entry.data is not None:
            return entry.data
        try:
            return self.storage.read(self.object_name(entry.path))
        except FileNotFoundError:
            raise CorruptionError(self.place_of(entry), "the file is missing") from None

    def read_file(self, entry: FileEntry) -> bytes:
        """A file of a checkpoint, checked, whole in memory: writers keep files to 64 MiB or so.

        Raises
        ------
        CorruptionError
            The file is missing, or is not what the manifest says.
        """
        data = self.read_bytes(entry)
        if len(data) != entry.size:
            raise CorruptionError(self.place_of(entry), f"it has {len(data)} bytes instead of {entry.size}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptionError(self.place_of(entry), "it does not match its hash in the manifest")
        return data

    def open_segment(self, entry: SegmentEntry, cache: BlockCache | None = None) -> SegmentReader:
        """Reader of a sorted segment. Raises CorruptionError."""
        storage, name = self.storage, self.object_name(entry.path)
        if entry.data is not None:
            storage = MemoryStorage(self.storage.url)
            storage.write(name, entry.data)
        return SegmentReader(storage, name, size=entry.size, cache=cache)

    def key_ids(self, manifest: Manifest) -> dict[str, str | None]:
        """For the manifest and every file of a checkpoint, the id of the key it is encrypted with, None where it is not encrypted.

        Raises
        ------
        CorruptionError
            A file is missing.
        """
        found: dict[str, str | None] = {}
        for path in [f"chk-{manifest.checkpoint_id}/_metadata", *self.stored_files(manifest)]:
            name = self.object_name(path)
            try:
                found[path] = self.storage.key_id(name) if isinstance(self.storage, EncryptedStorage) else None
            except FileNotFoundError:
                raise CorruptionError(f"{self.storage.url}/{name}", "the file is missing") from None
        return found
