"""Which checkpoint is meant: by its path, by its job's, or by the store that makes it."""

from __future__ import annotations

import re
from pathlib import Path

from statestore.backend import backend_names
from statestore.checkpoint.locating import locate_checkpoint
from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.storage import METADATA, CheckpointStorage
from statestore.errors import CheckpointNotFoundError, UsageError
from statestore.io import OpenStorage, local_path, open_storage, redacted
from statestore.opening import resolved

_checkpoint_path = re.compile(r".*/chk-[0-9]+(/_metadata)?/?")


def find_checkpoint(
    where: str,
    *,
    job: str = "store",
    checkpoint_dir: str | None = None,
    dir: str | None = None,
    open_storage: OpenStorage = open_storage,
) -> tuple[CheckpointStorage, Manifest]:
    """Storage and manifest of a checkpoint; nothing is written, claimed or locked.

    Parameters
    ----------
    where
        `<dir>/<job>/chk-<n>`, a savepoint's folder, `<dir>/<job>` for the job's newest, or a store's URL for its newest.
    job, checkpoint_dir, dir
        As given to `statestore.open`, where `where` is a store's URL.
    open_storage
        Opens places, with the keys that go with them.

    Raises
    ------
    UsageError
        It can be none of these.
    CheckpointNotFoundError
        Nothing is there.
    CorruptionError
        The manifest is damaged.
    """
    if _checkpoint_path.fullmatch(where):
        checkpoints, number = locate_checkpoint(where, open_storage=open_storage)
        return checkpoints, checkpoints.load(number)
    if _is_store_url(where):
        _, folder = resolved(where, job=job, dir=dir)
        place = checkpoint_dir or (None if folder is None else str(Path(folder, "checkpoints")))
        if place is None:
            raise UsageError(
                f"'{redacted(where)}' keeps everything in its own process's memory: there is nothing to read"
            )
    else:
        where = where.rstrip("/").removesuffix(f"/{METADATA}")
        place, _, job = where.rpartition("/")
        if not place:
            raise UsageError(
                f"'{redacted(where)}' is no checkpoint: expected <dir>/<job>/chk-<n>, <dir>/<job>, or a store's URL"
            )
    path = local_path(place)
    if path is not None and not Path(path, job).is_dir():
        raise CheckpointNotFoundError(redacted(where), f"there is no folder {Path(path, job)}")
    storage = open_storage(place)
    if storage.exists(f"{job}/{METADATA}"):
        savepoint, number = locate_checkpoint(where, open_storage=open_storage)
        return savepoint, savepoint.load(number)
    return newest_checkpoint(CheckpointStorage(storage, job, open_storage))


def _is_store_url(where: str) -> bool:
    scheme, separator, path = where.partition("://")
    if not separator or scheme.partition("+")[0] not in backend_names():
        return False
    return scheme != "file" or Path(path, "checkpoints").is_dir()  # else it is the URL of a checkpoint directory


def newest_checkpoint(checkpoints: CheckpointStorage) -> tuple[CheckpointStorage, Manifest]:
    """The newest one, though the job may go on meanwhile. Raises CheckpointNotFoundError."""
    number = checkpoints.latest()
    while number is not None:
        try:
            return checkpoints, checkpoints.load(number)
        except CheckpointNotFoundError:
            before, number = number, checkpoints.latest()
            if number == before:
                raise
    raise CheckpointNotFoundError(checkpoints.url, "there is no checkpoint")
