"""Finds the checkpoint that a command is about."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from statestore_runtime.cli.options import config_file_or_default

if TYPE_CHECKING:
    from statestore.checkpoint.manifest import Manifest
    from statestore.checkpoint.storage import CheckpointStorage
    from statestore.config import Config
    from statestore.io import OpenStorage, Storage
    from statestore.reading.reader import StateReader

Dir = Annotated[
    str | None,
    typer.Option("--dir", metavar="URL", help="Folder or URL of the checkpoints; default as the configuration says."),
]
Which = Annotated[
    str,
    typer.Argument(
        metavar="PATH|JOB|URL",
        help="A checkpoint's path <dir>/<job>/chk-<n>, or a savepoint's folder; a job, <dir>/<job> or a store's URL, for its newest.",
    ),
]


def settings_and_opener(config: str | None, overrides: list[str] | None) -> tuple[Config, OpenStorage]:
    """The configuration, and what opens places with its keys."""
    from statestore.config import load_config
    from statestore.io import open_storage
    from statestore.opening import keyring

    settings = load_config(file=config_file_or_default(config), overrides=overrides or (), environ=os.environ)
    return settings, partial(open_storage, keys=keyring(settings))


def checkpoints_folder(dir: str | None, config: str | None, overrides: list[str] | None) -> tuple[Storage, OpenStorage]:
    """Storage with the jobs' checkpoints (the one named, or the configuration's), and what opens others. Raises CheckpointNotFoundError."""
    from statestore.errors import CheckpointNotFoundError
    from statestore.io import local_path
    from statestore.opening import checkpoint_dir

    settings, opener = settings_and_opener(config, overrides)
    place = dir or checkpoint_dir(settings)
    folder = local_path(place)
    if folder is not None and not Path(folder).is_dir():
        raise CheckpointNotFoundError(place, "there is no such folder", hint="say where with --dir")
    return opener(place), opener


def find_checkpoint(
    which: str, dir: str | None, config: str | None, overrides: list[str] | None
) -> tuple[CheckpointStorage, Manifest]:
    """The checkpoint that a path names, or the newest one of a job or store. Raises CheckpointNotFoundError."""
    from statestore.checkpoint.storage import CheckpointStorage
    from statestore.reading import where

    if "/" in which:
        _, opener = settings_and_opener(config, overrides)
        return where.find_checkpoint(which, checkpoint_dir=dir, open_storage=opener)
    storage, opener = checkpoints_folder(dir, config, overrides)
    return where.newest_checkpoint(CheckpointStorage(storage, which, opener))


def open_reader(which: str, dir: str | None, config: str | None, overrides: list[str] | None) -> StateReader:
    """Reader of that checkpoint. Raises CheckpointNotFoundError."""
    from statestore.reading.reader import StateReader

    return StateReader(*find_checkpoint(which, dir, config, overrides))
