"""`statestore state list|get|scan|count`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer

from statestore_runtime.cli.find import Dir, Which, open_reader
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, print_json
from statestore_runtime.cli.values import key_text, parse_key, parse_key_groups, parse_prefix, print_rows, to_json

app = typer.Typer(
    help="Look into the state of a checkpoint, or of a store's or job's newest one, which may be running.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

NOT_FOUND = 7

State = Annotated[str, typer.Argument(metavar="STATE", help="Name of a state, as 'list' shows it.")]
Expired = Annotated[bool, typer.Option("--expired", help="Also what had expired, and was still there.")]


@app.command("list")
def list_(
    which: Which,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the states."""
    states = [info._asdict() for info in open_reader(which, dir, config, overrides).states]
    if json:
        print_json(states)
        return
    width = max((len(state["name"]) for state in states), default=0)
    for state in states:
        by = f" of {state['map_key_type']} to" if state["map_key_type"] else " of"
        what = state["kind"] if state["kind"] == "timers" else f"{state['kind']}{by} {state['value_type']}"
        until = f", {state['ttl']:g} s to live" if state["ttl"] else ""
        clock = f" in {state['time']}" if state["time"] else ""
        sys.stdout.write(f"{state['name']:{width}}  {what} by {state['key_type']}{until}{clock}\n")


@app.command()
def get(
    which: Which,
    state: State,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Text as it is; other keys as JSON, bytes in base64.")],
    expired: Expired = False,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the value of one key as JSON; exit code 7 when there is none. Costs a few blocks, however large the state is."""
    reader = open_reader(which, dir, config, overrides)
    stored = reader.state(state, expired=expired)
    parsed, missing = parse_key(key, stored.key_codec), object()
    value = stored.get(parsed, missing)
    if value is missing:
        sys.stderr.write(f"statestore: state '{state}' in {reader.path} has nothing for key {key_text(parsed)}\n")
        raise typer.Exit(NOT_FOUND)
    sys.stdout.write(to_json({"state": state, "key": parsed, "value": value} if json else value) + "\n")


@app.command()
def scan(
    which: Which,
    state: State,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="P", help="Only keys that begin so; of tuples, a JSON array of first elements."),
    ] = None,
    key_group: Annotated[str | None, typer.Option(metavar="N[-M]", help="Only these key groups.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=0, help="Stop after so many.")] = None,
    expired: Expired = False,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print keys and values, a line each, by key group."""
    stored = open_reader(which, dir, config, overrides).state(state, expired=expired)
    start = None if prefix is None else parse_prefix(prefix, stored.key_codec)
    found: Iterator[tuple[Any, Any]] = islice(stored.items(prefix=start, key_groups=parse_key_groups(key_group)), limit)
    if json:
        print_rows({"key": key, "value": value} for key, value in found)
    else:
        sys.stdout.writelines(f"{key_text(key)}\t{to_json(value)}\n" for key, value in found)


@app.command()
def count(
    which: Which,
    state: Annotated[str | None, typer.Argument(metavar="[STATE]", help="Only this one.")] = None,
    expired: Expired = False,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count the keys of each state (of timers, the timers) by reading all of it."""
    from statestore_runtime.cli.progress import progress_bar

    reader = open_reader(which, dir, config, overrides)
    names = [info.name for info in reader.states] if state is None else [state]
    counts = dict.fromkeys(names, 0)
    groups = range(reader.max_parallelism)
    with progress_bar("counting", len(names) * len(groups), show=not json) as advance:
        for name in names:
            stored = reader.state(name, expired=expired)
            for group in groups:
                counts[name] += stored.count(key_groups=group)
                advance(1)
    if json:
        print_json(counts)
        return
    width = max(map(len, counts), default=0)
    sys.stdout.writelines(f"{name:{width}}  {number:,}\n" for name, number in counts.items())
