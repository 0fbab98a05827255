"""`statestore checkpoint diff`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from statestore_runtime.cli.find import Dir, Which, open_reader
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, print_json
from statestore_runtime.cli.values import key_text, print_rows, to_json

if TYPE_CHECKING:
    from statestore.reading.diff import Change, Diff


def diff(
    before: Which,
    after: Which,
    state: Annotated[list[str] | None, typer.Option(metavar="S", help="Only this state; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=0, help="Stop after so many changes.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Only count the changes of each state.")] = False,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which keys were added (+), removed (-) and changed (~) from one checkpoint to another, wherever they were made."""
    import statestore

    sides = [open_reader(which, dir, config, overrides) for which in (before, after)]
    found = statestore.diff(*sides, states=state)
    if summary:
        _print_summary(found, json=json)
        return
    changes = islice(_changes(found), limit)
    if json:
        print_rows(change._asdict() for change in changes)
    else:
        sys.stdout.writelines(map(_line, changes))


def _changes(found: Diff) -> Iterator[Change]:
    from statestore_runtime.cli.progress import progress_bar

    with progress_bar("comparing", len(found.states) * found.shares, show=not sys.stdout.isatty()) as advance:
        for name in found.states:
            for share in range(found.shares):
                yield from found.changes(name, share)
                advance(1)


def _line(change: Change) -> str:
    head = f"{change.state}  {key_text(change.key)}"
    match change.change:
        case "added":
            return f"+ {head}  {to_json(change.after)}\n"
        case "removed":
            return f"- {head}  {to_json(change.before)}\n"
        case "changed":
            return f"~ {head}  {to_json(change.before)} -> {to_json(change.after)}\n"


def _print_summary(found: Diff, *, json: bool) -> None:
    from statestore.reading.diff import count
    from statestore_runtime.cli.progress import progress_bar

    counts = {}
    with progress_bar("comparing", len(found.states), show=not json) as advance:
        for name in found.states:
            counts[name] = count(change for share in range(found.shares) for change in found.changes(name, share))
            advance(1)
    if json:
        print_json({name: each._asdict() for name, each in counts.items()})
        return
    width = max(map(len, counts), default=0)
    sys.stdout.writelines(
        f"{name:{width}}  {each.added:,} added, {each.removed:,} removed, {each.changed:,} changed\n"
        for name, each in counts.items()
    )
