"""`statestore checkpoint check`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from statestore_runtime.cli.find import Dir, Which, find_checkpoint
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, config_file_or_default, print_json

if TYPE_CHECKING:
    from statestore.compatibility import StateReport


def check(
    which: Which,
    target: Annotated[str, typer.Argument(metavar="FILE[:VARIABLE]", help="Python file with a Job, and its name.")],
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell which states of a checkpoint a job can go on from; exit code 5 when it can't from all.

    Each state is one of: same, compatible (values are read as they are), upcast (some go through the state's upcast function),
    incompatible, unread (the job does not declare it), new (the checkpoint does not have it). The job's functions are opened, and nothing
    is changed.
    """
    from statestore.config import load_config
    from statestore_runtime.checking import check_job, raise_misfits
    from statestore_runtime.loading import load_job

    job = load_job(target)
    settings = load_config(
        file=config_file_or_default(config), overrides=overrides or (), environ=os.environ, defaults=job.defaults
    )
    checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
    path = checkpoints.path_of(manifest.checkpoint_id)
    opener = checkpoints.open_storage
    reports = check_job(job, path, allow_pickle=settings.state.allow_pickle, open_storage=opener)
    if json:
        print_json({"path": path, "job": job.name, "states": reports})
    else:
        _print(reports)
    raise_misfits(reports, path, job)


def _print(reports: list[StateReport]) -> None:
    names = max((len(report.name) for report in reports), default=0)
    for report in reports:
        types = report.declared or report.stored or ""
        if report.stored is not None and report.declared not in (None, report.stored):
            types = f"{report.stored}, now {report.declared}"
        sys.stdout.write(f"{report.name:{names}}  {report.status:12}  {types}\n")
        sys.stdout.writelines(f"{'':{names}}  {'':12}  {note}\n" for note in report.notes)
