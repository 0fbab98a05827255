"""Where a job's checkpoints are: finding, completing, verifying and collecting them.

    <dir>/<job>/attempts/<n>          attempt n was begun by whoever made this file (create-if-absent: the fencing token)
    <dir>/<job>/chk-<n>/_metadata     the manifest, see `manifest.py`
    <dir>/<job>/shared/...            bases and deltas, with names unique to the attempt
    <dir>/<job>/_latest               hint: a checkpoint number near the newest, so that not all need be probed

A savepoint is a folder of its own, `<anywhere>/_metadata` beside its files, see `savepoint.py`.

Invariants:
- checkpoint and attempt numbers have no gaps, so the newest is found by asking for the next until there is none: a stale listing or hint
  can cost time, never a decision;
- a checkpoint number is taken only by completing it; a failed checkpoint leaves no number behind;
- collecting goes from the oldest up and removes a manifest last, so what it interrupts can be finished by the next.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from statestore import crashpoints
from statestore.checkpoint.manifest import (
    FileEntry,
    Manifest,
    SegmentEntry,
    decode_manifest,
    encode_manifest,
)
from statestore.errors import (
    CheckpointNotFoundError,
    CorruptionError,
    EncryptionKeyError,
    FencedError,
    StateStoreError,
    UnavailableError,
    UsageError,
)
from statestore.io import EncryptedStorage, MemoryStorage, OpenStorage, Storage, local_path, open_storage
from statestore.segment import BlockCache, SegmentReader
from statestore.types import Attempt, CheckpointId

logger = logging.getLogger("statestore.checkpoint")

METADATA = "_metadata"
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


def locate_checkpoint(
    path: str, own: CheckpointStorage | None = None, open_storage: OpenStorage = open_storage
) -> tuple[CheckpointStorage, CheckpointId]:
    """Storage and number of the checkpoint (`<dir>/<job>/chk-<n>`) or savepoint (its folder) that `path` names.

    Parameters
    ----------
    own
        Returned itself when the checkpoint lies there; else its opener is used.
    open_storage
        Opens the place, where there is no `own`.

    Raises
    ------
    UsageError
        It is no path of either, or leads to a checkpoint that was taken out of its job's folder.
    CheckpointNotFoundError
        Nothing is there.
    """
    opener = own.open_storage if own is not None else open_storage
    match = re.fullmatch(r"(?P<dir>.+)/(?P<job>[^/]+)/chk-(?P<number>[0-9]+)(/_metadata)?/?", path)
    if not match:
        savepoint = _open_savepoint(path, opener)
        return savepoint, savepoint.checkpoint_id
    number = CheckpointId(int(match["number"]))
    folder = local_path(match["dir"])
    if folder is not None and not Path(folder, match["job"]).is_dir():
        raise CheckpointNotFoundError(path, "there is no such folder")
    storage = opener(match["dir"])
    if own is not None and (storage.url, match["job"]) == (own.storage.url, own.job):
        return own, number
    return CheckpointStorage(storage, match["job"], opener), number


def _open_savepoint(path: str, opener: OpenStorage) -> SavepointStorage:
    path = path.rstrip("/").removesuffix(f"/{METADATA}")
    folder = local_path(path)
    if folder is not None and not Path(folder).is_dir():
        if "/" not in path:
            raise UsageError(
                f"'{path}' is no checkpoint's path: expected <dir>/<job>/chk-<number>, a savepoint's folder, latest, or none"
            )
        raise CheckpointNotFoundError(path, "there is no such folder")
    storage = opener(path)
    try:
        data = storage.read(METADATA)
    except FileNotFoundError:
        problem = f"it has no {METADATA}: it is no savepoint, or one that was not completed"
        raise CheckpointNotFoundError(storage.url, problem) from None
    manifest = decode_manifest(data, f"{storage.url}/{METADATA}")
    if manifest.kind != "savepoint":
        raise UsageError(f"{storage.url} is checkpoint {manifest.checkpoint_id} of job '{manifest.job}', {MOVED}")
    return SavepointStorage(storage, manifest, opener)


def stored_paths(manifest: Manifest) -> list[str]:
    """Paths of a checkpoint's files, those left out that stand in the manifest itself."""
    return [entry.path for entry in manifest.files() if entry.data is None]


class CheckpointStorage:
    """Checkpoints of one job in a `Storage`."""

    def __init__(self, storage: Storage, job: str, open_storage: OpenStorage = open_storage):
        self.storage, self.job = storage, checked_job_name(job)
        self.open_storage = open_storage
        """Opens places of other checkpoints, with the same keys."""
        self.url = f"{storage.url.rstrip('/')}/{job}"
        self._collecting, self._holds = threading.Lock(), 0

    @staticmethod
    def jobs(storage: Storage) -> list[str]:
        """Names of the jobs with checkpoints below `storage`; a listing."""
        found = (re.fullmatch(rf"([^/]+)/chk-[0-9]+/{METADATA}", name) for name in storage.list())
        return sorted({match[1] for match in found if match})

    def path_of(self, checkpoint_id: CheckpointId) -> str:
        """Full path of a checkpoint, as `restore` takes it."""
        return f"{self.url}/chk-{checkpoint_id}"

    def _manifest_name(self, checkpoint_id: int) -> str:
        return f"{self.job}/chk-{checkpoint_id}/{METADATA}"

    def object_name(self, path: str) -> str:
        """Name in the storage of a manifest's path."""
        return f"{self.job}/{path}"

    # Attempts

    def claim_attempt(self, above: int = 0) -> Attempt:
        """Begin a new attempt: its number is greater than `above` and than that of every attempt before, and nobody else's."""
        claim = (
            secrets.token_hex(16).encode() + b"\n"
        )  # so that a storage can tell our claim from another's, when a reply is lost
        number = self._probe_up("attempts/", self._hint("attempt"), self._attempt_name)
        while True:
            number += 1
            try:
                self.storage.create(self._attempt_name(number), claim)
            except FileExistsError:
                continue
            if number > above:
                self._write_hint(attempt=number)
                return Attempt(number)

    def has_attempt(self, attempt: int) -> bool:
        """Whether this attempt was begun here."""
        return self.storage.exists(self._attempt_name(attempt))

    def _attempt_name(self, number: int) -> str:
        return f"{self.job}/attempts/{number}"

    def check_owner(self, attempt: Attempt) -> None:
        """Raise FencedError when a newer attempt has begun."""
        if self.storage.exists(self._attempt_name(attempt + 1)):
            raise FencedError(self.url, attempt)

    # Finding

    def latest(self) -> CheckpointId | None:
        """Number of the newest complete checkpoint, None when there is none."""
        newest = self._probe_up("chk-", self._hint("checkpoint"), self._manifest_name)
        return CheckpointId(newest) if newest else None

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
        name = self._manifest_name(checkpoint_id)
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
        return self.storage.exists(self._manifest_name(checkpoint_id))

    def retained(self) -> list[CheckpointId]:
        """Numbers of the complete checkpoints, ascending."""
        newest = self.latest()
        if newest is None:
            return []
        oldest: int = newest
        while oldest > 1 and self.storage.exists(self._manifest_name(oldest - 1)):
            oldest -= 1
        return [CheckpointId(number) for number in range(oldest, newest + 1)]

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
        name, data = self._manifest_name(manifest.checkpoint_id), encode_manifest(manifest)
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

    # Verifying

    def read_file(self, entry: FileEntry) -> bytes:
        """A file of a checkpoint, checked.

        Raises
        ------
        CorruptionError
            The file is missing, or is not what the manifest says.
        """
        name = self.object_name(entry.path)
        try:
            data = self.storage.read(name) if entry.data is None else entry.data
        except FileNotFoundError:
            raise CorruptionError(f"{self.storage.url}/{name}", "the file is missing") from None
        if len(data) != entry.size:
            raise CorruptionError(f"{self.storage.url}/{name}", f"it has {len(data)} bytes instead of {entry.size}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptionError(f"{self.storage.url}/{name}", "it does not match its hash in the manifest")
        return data

    def open_segment(self, entry: SegmentEntry, cache: BlockCache | None = None) -> SegmentReader:
        """Reader of a sorted segment. Raises CorruptionError."""
        storage, name = self.storage, self.object_name(entry.path)
        if entry.data is not None:
            storage = MemoryStorage(self.storage.url)
            storage.write(name, entry.data)
        return SegmentReader(storage, name, size=entry.size, cache=cache)

    def verify(self, manifest: Manifest) -> list[str]:
        """Read and hash every file; one line for each that is damaged or missing."""
        problems = []
        for entry in manifest.files():
            try:
                self.read_file(entry)
            except CorruptionError as error:
                problems.append(str(error))
        return problems

    def key_ids(self, manifest: Manifest) -> dict[str, str | None]:
        """For the manifest and every file of a checkpoint, the id of the key it is encrypted with, None where it is not encrypted.

        Raises
        ------
        CorruptionError
            A file is missing.
        """
        found: dict[str, str | None] = {}
        for path in [f"chk-{manifest.checkpoint_id}/_metadata", *stored_paths(manifest)]:
            name = self.object_name(path)
            try:
                found[path] = self.storage.key_id(name) if isinstance(self.storage, EncryptedStorage) else None
            except FileNotFoundError:
                raise CorruptionError(f"{self.storage.url}/{name}", "the file is missing") from None
        return found

    # Collecting

    def collect(self, keep: int) -> int:
        """Remove all but the newest `keep` checkpoints and the files only they name; returns the number of files removed.

        A file goes only if no retained manifest names it. When any manifest concerned can't be read, nothing is removed.
        """
        with self._collecting:
            if self._holds > 0:
                return 0
            numbers = self.retained()
            return self.remove(numbers[:-keep], numbers[-keep:])

    def hold(self) -> None:
        """Let `collect` remove nothing until `let_go` is called; waits for one that is at work."""
        with self._collecting:
            self._holds += 1

    def let_go(self) -> None:
        """Take one `hold` back."""
        with self._collecting:
            self._holds -= 1

    def remove(self, doomed: Sequence[CheckpointId], kept: Sequence[CheckpointId]) -> int:
        """Remove checkpoints (ascending) and the files that none of `kept` names; see `collect`."""
        if not doomed:
            return 0
        try:
            needed = {path for number in kept for path in self._stored_paths(number)}
            garbage = {number: self._stored_paths(number) - needed for number in doomed}
        except StateStoreError as error:
            logger.warning("no checkpoint is removed, because one can't be read: %s", error)
            return 0
        removed: set[str] = set()
        for number in doomed:
            for path in sorted(garbage[number] - removed):
                self.storage.delete(self.object_name(path))
            removed |= garbage[number]
            self.storage.delete(self._manifest_name(number))
        crashpoints.reach("checkpoint.collected")
        return len(removed)

    def collect_quietly(self, keep: int) -> None:
        """As `collect`, where the storage may fail: what is left then is collected after the next checkpoint."""
        try:
            self.collect(keep)
        except UnavailableError as error:
            logger.warning("old checkpoints at %s were not removed: %s", self.url, error)

    def _stored_paths(self, number: CheckpointId) -> set[str]:
        return set(stored_paths(self.load(number)))


class SavepointStorage(CheckpointStorage):
    """A savepoint's folder, read as a job's folder that has just this one checkpoint."""

    def __init__(self, storage: Storage, manifest: Manifest, open_storage: OpenStorage = open_storage):
        super().__init__(storage, manifest.job, open_storage)
        self.url, self.checkpoint_id = storage.url, manifest.checkpoint_id

    def latest(self) -> CheckpointId:
        """The number that the savepoint's manifest has."""
        return self.checkpoint_id

    def retained(self) -> list[CheckpointId]:
        """Just that number."""
        return [self.checkpoint_id]

    def path_of(self, checkpoint_id: CheckpointId) -> str:
        """The folder."""
        return self.url

    def object_name(self, path: str) -> str:
        """The path itself: it is relative to the folder."""
        return path

    def _manifest_name(self, checkpoint_id: int) -> str:
        return METADATA
