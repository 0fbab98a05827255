"""Where the checkpoint or savepoint is that a path names."""

from __future__ import annotations

import re
from pathlib import Path

from statestore.checkpoint.manifest import Manifest, decode_manifest
from statestore.checkpoint.storage import METADATA, MOVED, REMOVING, CheckpointStorage
from statestore.errors import CheckpointNotFoundError, UsageError
from statestore.io import OpenStorage, Storage, local_path, open_storage
from statestore.types import CheckpointId


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

    def manifest_name(self, checkpoint_id: int) -> str:
        """Beside the files."""
        return METADATA

    def removing_name(self, checkpoint_id: int) -> str:
        """Beside the files."""
        return REMOVING

    def is_file_of_one(self, path: str) -> bool:
        """It lies in the folder, and is not what `statestore` knows it by."""
        return "/" not in path and not path.startswith("_")

    def pin(self, checkpoint_id: CheckpointId) -> None:
        """Raise UsageError."""
        raise UsageError(f"{self.url} is a savepoint, which stays anyhow")
