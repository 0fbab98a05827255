"""`statestore checkpoint list|show|verify|keys`."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from statestore_runtime.cli.find import Dir, Which, checkpoints_folder, find_checkpoint
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, print_json

if TYPE_CHECKING:
    from statestore.checkpoint.storage import CheckpointStorage

app = typer.Typer(
    help="Look at checkpoints, and check them.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

UNLIMITED_WIDTH = 100_000
"""Of lines that no terminal cuts: each row stays one line."""


@app.command("list")
def list_(
    job: Annotated[str | None, typer.Argument(help="Only this job's.")] = None,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the checkpoints that can be restored."""
    from statestore.checkpoint.storage import CheckpointStorage
    from statestore.errors import CheckpointNotFoundError

    storage, _ = checkpoints_folder(dir, config, overrides)
    jobs = [job] if job is not None else CheckpointStorage.jobs(storage)
    rows: list[dict[str, Any]] = []
    for name in jobs:
        checkpoints = CheckpointStorage(storage, name)
        rows += [_row(checkpoints, number) for number in checkpoints.retained()]
    if not rows:
        raise CheckpointNotFoundError(storage.url, f"there are no checkpoints{f' of job {job}' if job else ''}")
    if json:
        print_json(rows)
    else:
        _print_table(rows)


@app.command()
def show(
    which: Which,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a checkpoint consists of."""
    checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
    if json:
        sums = {"epoch": manifest.epoch, "uploaded_bytes": manifest.uploaded_bytes, "total_bytes": manifest.total_bytes}
        print_json({"path": checkpoints.path_of(manifest.checkpoint_id), **sums, **msgspec.to_builtins(manifest)})
        return
    facts = [
        ("path", checkpoints.path_of(manifest.checkpoint_id)),
        ("job", f"{manifest.job}, attempt {manifest.attempt}, epoch {manifest.epoch}"),
        ("made", f"{_moment(manifest.created)}{', by a job that had finished' if manifest.kind == 'final' else ''}"),
        ("max parallelism", str(manifest.max_parallelism)),
        ("size", f"{manifest.total_bytes:,} bytes, {manifest.uploaded_bytes:,} of them new"),
        *[("state", f"{state.name}: {state.kind} of {state.type} by {state.key_type}") for state in manifest.states],
        *[("file", f"{file.path}  {file.size:,} bytes") for file in manifest.files()],
        ("meta", msgspec.json.encode(manifest.meta).decode()),
    ]
    width = max(len(name) for name, _ in facts)
    sys.stdout.writelines(f"{name:{width}}  {text}\n" for name, text in facts)


@app.command()
def verify(
    which: Which,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Read every file of a checkpoint and compare it with its hash; exit code 4 when one is damaged."""
    from statestore.errors import CorruptionError

    checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
    path, problems = checkpoints.path_of(manifest.checkpoint_id), checkpoints.verify(manifest)
    files = len(manifest.files())
    if json:
        print_json({"path": path, "files": files, "bytes": manifest.total_bytes, "problems": problems})
    elif not problems:
        sys.stdout.write(f"{path}: {files} files, {manifest.total_bytes:,} bytes, all as they were written\n")
    if problems:
        raise CorruptionError(path, f"{len(problems)} of {files} files are damaged: {'; '.join(problems)}")


@app.command()
def keys(
    which: Which,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which keys the files of a checkpoint are encrypted with."""
    checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
    found = checkpoints.key_ids(manifest)
    if json:
        print_json({"path": checkpoints.path_of(manifest.checkpoint_id), "keys": found})
        return
    for key_id, files in Counter(found.values()).items():
        sys.stdout.write(f"{key_id or 'not encrypted'}  {files} file{'s' * (files != 1)}\n")


def _row(checkpoints: CheckpointStorage, number: Any) -> dict[str, Any]:
    from statestore.errors import CorruptionError

    row: dict[str, Any] = {"job": checkpoints.job, "checkpoint": number, "path": checkpoints.path_of(number)}
    try:
        manifest = checkpoints.load(number)
    except CorruptionError as error:
        return row | {"problem": str(error)}
    return row | {
        "kind": manifest.kind,
        "attempt": manifest.attempt,
        "epoch": manifest.epoch,
        "created": _moment(manifest.created),
        "total_bytes": manifest.total_bytes,
        "uploaded_bytes": manifest.uploaded_bytes,
        "events": manifest.meta.get("events"),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from statestore_runtime.cli.display import size

    table = Table(box=None, pad_edge=False)
    for title in ("job", "checkpoint", "made", "events", "size", "new"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("events", "size", "new") else "left")
    table.add_column("path", overflow="fold")
    for row in rows:
        head = [row["job"], str(row["checkpoint"])]
        if "problem" in row:
            table.add_row(*head, "unreadable", "", "", "", row["path"])
            continue
        events = f"{row['events']:,}" if row["events"] is not None else ""
        final = " (final)" if row["kind"] == "final" else ""
        made = [f"{row['created']}{final}", events, size(row["total_bytes"]), size(row["uploaded_bytes"])]
        table.add_row(*head, *made, row["path"])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNLIMITED_WIDTH
    console.print(table, markup=False)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
