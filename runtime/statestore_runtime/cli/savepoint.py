"""`statestore savepoint`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statestore_runtime.cli.find import Dir, Which, find_checkpoint
from statestore_runtime.cli.jobs import absolute, named_job
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, print_json

if TYPE_CHECKING:
    from statestore.checkpoint.manifest import Manifest


def savepoint(
    which: Which,
    target: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL that becomes the savepoint.")],
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a savepoint: the whole state in a folder of its own, which can be moved and which is never collected.

    Of a job that runs, as it is now; else of its newest checkpoint, or of the one that is given.
    Example: statestore savepoint flights s3://backups/flights-1
    """
    name = None if dir is not None else _job_name(which, config, overrides)
    made = None if name is None else _of_running(which, target, config, overrides)
    if made is None:
        made = _copied(name or which, target, dir, config, overrides, show=not json)
    if json:
        print_json(made)
        return
    from statestore_runtime.cli.display import size

    of = made.get("source") or f"job {made['job']}"
    sys.stdout.write(f"{made['path']}: {made['entries']:,} entries of {of}, {size(made['total_bytes'])}\n")


def _job_name(which: str, config: str | None, overrides: list[str] | None) -> str | None:
    """Name of the job that is meant, if one is."""
    is_file = which.endswith(".py") or ".py:" in which
    return named_job(which, config, overrides)[0] if is_file or "/" not in which else None


def _of_running(job: str, target: str, config: str | None, overrides: list[str] | None) -> dict[str, Any] | None:
    """A savepoint that the running job makes; None when it does not run here."""
    from statestore_runtime.cli.jobs import client_of
    from statestore_runtime.control.messages import JobNotRunningError, MakeSavepoint

    try:
        client = client_of(job, config, overrides)
        answer = client.request(MakeSavepoint(dir=absolute(target)))
    except JobNotRunningError:
        return None
    _, manifest = find_checkpoint(answer["savepoint"], None, config, overrides)
    return {"job": client.job} | _figures(answer["savepoint"], manifest)


def _copied(
    which: str, target: str, dir: str | None, config: str | None, overrides: list[str] | None, *, show: bool
) -> dict[str, Any]:
    from statestore.checkpoint.savepoint import save_checkpoint
    from statestore.clock import SystemClock
    from statestore_runtime.cli.display import CopyBar

    checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
    with CopyBar(show=show) as bar:
        info = save_checkpoint(checkpoints, manifest, target, SystemClock(), bar.show)
    return _figures(info.path, info.manifest) | {"source": checkpoints.path_of(manifest.checkpoint_id)}


def _figures(path: str, manifest: Manifest) -> dict[str, Any]:
    entries = sum(part.base.entries for part in manifest.parts if part.base is not None)
    return {"path": path, "epoch": manifest.epoch, "entries": entries, "total_bytes": manifest.total_bytes}
