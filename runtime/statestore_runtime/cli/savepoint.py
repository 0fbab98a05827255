"""`statestore savepoint`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from statestore_runtime.cli.find import Dir, Which, find_checkpoint
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, print_json


def savepoint(
    which: Which,
    target: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL that becomes the savepoint.")],
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a job's newest (or a given) checkpoint, whole, into a folder of its own, which can be moved and which is never collected.

    The job need not run. Example: statestore savepoint flights s3://backups/flights-1
    """
    from statestore.checkpoint.savepoint import save_checkpoint
    from statestore.clock import SystemClock
    from statestore_runtime.cli.display import CopyBar, size

    checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
    with CopyBar(show=not json) as bar:
        info = save_checkpoint(checkpoints, manifest, target, SystemClock(), bar.show)
    if json:
        print_json(
            {"path": info.path, "epoch": info.epoch, "entries": info.entries, "total_bytes": info.total_bytes}
            | {"source": checkpoints.path_of(manifest.checkpoint_id)}
        )
        return
    source = checkpoints.path_of(manifest.checkpoint_id)
    sys.stdout.write(f"{info.path}: {info.entries:,} entries of {source}, {size(info.total_bytes)}\n")
