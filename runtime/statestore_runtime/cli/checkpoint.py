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
        pinned = checkpoints.pins.numbers()
        rows += [_row(checkpoints, number) | {"pinned": number in pinned} for number in checkpoints.restorable()]
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
    """Read all of a checkpoint, and name every damaged place by file, byte and key groups; exit code 4 when there is one."""
    from statestore.checkpoint.verify import verify as verify_checkpoint
    from statestore.errors import CorruptionError
    from statestore_runtime.cli.display import progress

    checkpoints, manifest = find_checkpoint(which, dir, config, overrides)
    with progress("reading", manifest.total_bytes, show=not json) as advance:
        found = verify_checkpoint(checkpoints, manifest, on_progress=advance)
    if json:
        print_json(found)
    elif not found.problems:
        sys.stdout.write(f"{found.path}: {found.files} files, {found.bytes:,} bytes, all as they were written\n")
    else:
        sys.stdout.writelines(f"{problem}\n" for problem in found.problems)
    if found.problems:
        damaged = len({problem.file for problem in found.problems})
        raise CorruptionError(
            found.path, f"{damaged} of {found.files} files are damaged, the first: {found.problems[0]}"
        )


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
    from statestore.errors import CheckpointNotFoundError, CorruptionError

    row: dict[str, Any] = {"job": checkpoints.job, "checkpoint": number, "path": checkpoints.path_of(number)}
    try:
        manifest = checkpoints.load(number)
    except (CheckpointNotFoundError, CorruptionError) as error:
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
            table.add_row(*head, f"unreadable{' (pinned)' if row['pinned'] else ''}", "", "", "", row["path"])
            continue
        events = f"{row['events']:,}" if row["events"] is not None else ""
        final = " (final)" if row["kind"] == "final" else ""
        final += " (pinned)" if row["pinned"] else ""
        made = [f"{row['created']}{final}", events, size(row["total_bytes"]), size(row["uploaded_bytes"])]
        table.add_row(*head, *made, row["path"])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNLIMITED_WIDTH
    console.print(table, markup=False)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
