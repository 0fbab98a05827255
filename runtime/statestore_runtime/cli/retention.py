"""`statestore checkpoint pin|unpin|prune`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from statestore_runtime.cli.find import Dir, Which, checkpoints_folder, find_checkpoint, settings_and_opener
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, print_json

if TYPE_CHECKING:
    from statestore.checkpoint.retention import PruneReport

Job = Annotated[str | None, typer.Argument(metavar="JOB", help="Only this job's; default all.")]
Keep = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="The newest N stay; default checkpointing.num-retained.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and show what would go.")]
OrphanAge = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION",
        help="Files that no checkpoint names go at this age, 0 for never; default checkpointing.orphan-age.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Remove checkpoints also when the job was started and has completed none since.")
]


def pin(
    which: Which,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Keep a checkpoint until it is unpinned, however many come after it."""
    checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
    checkpoints.pin(manifest.checkpoint_id)
    _tell(checkpoints.path_of(manifest.checkpoint_id), pinned=True, json=json)


def unpin(
    which: Which,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let a pinned checkpoint go like any other of its age."""
    from statestore.checkpoint.locating import locate_checkpoint

    if "/chk-" in which:
        _, opener = settings_and_opener(config, overrides)
        checkpoints, number = locate_checkpoint(which, open_storage=opener)  # its manifest need not be readable
    else:
        checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
        number = manifest.checkpoint_id
    checkpoints.unpin(number)
    _tell(checkpoints.path_of(number), pinned=False, json=json)


def _tell(path: str, *, pinned: bool, json: bool) -> None:
    if json:
        print_json({"path": path, "pinned": pinned})
    else:
        sys.stdout.write(f"{path}: {'pinned' if pinned else 'not pinned any more'}\n")


def prune(
    job: Job = None,
    keep: Keep = None,
    dry_run: DryRun = False,
    orphan_age: OrphanAge = None,
    force: Force = False,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove old checkpoints, and files that none names. Nothing goes when a manifest can't be read. The job may run meanwhile."""
    from statestore.checkpoint.retention import prune as prune_job
    from statestore.checkpoint.storage import CheckpointStorage
    from statestore.clock import SystemClock
    from statestore.errors import CheckpointNotFoundError, UsageError
    from statestore.units import parse_duration

    settings, _ = settings_and_opener(config, overrides)
    try:
        age = settings.checkpointing.orphan_age if orphan_age is None else parse_duration(orphan_age)
    except ValueError as error:
        raise UsageError(f"--orphan-age: {error}") from error
    storage, opener = checkpoints_folder(dir, config, overrides)
    jobs = [job] if job is not None else CheckpointStorage.jobs(storage)
    if not jobs:
        raise CheckpointNotFoundError(storage.url, "there are no checkpoints")
    reports = [
        prune_job(
            CheckpointStorage(storage, name, opener),
            keep=keep or settings.checkpointing.num_retained,
            orphan_age_seconds=age,
            clock=SystemClock(),
            dry_run=dry_run,
            force=force,
        )
        for name in jobs
    ]
    if json:
        print_json([msgspec.to_builtins(report) | {"bytes": report.bytes} for report in reports])
        return
    for report in reports:
        _print(report)


def _print(report: PruneReport) -> None:
    from statestore_runtime.cli.display import size

    verb = "would remove" if report.dry_run else "removed"
    lines = [f"keeps   {item.path}  ({item.why})" for item in report.kept]
    lines += [f"{verb} {item.name}  {item.bytes:,} bytes  ({item.why})" for item in report.removed]
    checkpoints = f"{len(report.removed_checkpoints)} checkpoints and " if report.removed_checkpoints else ""
    lines.append(
        f"{report.job}: {verb} {checkpoints}{len(report.removed)} files, {size(sum(item.bytes for item in report.removed))}"
    )
    sys.stdout.writelines(f"{line}\n" for line in lines)
