"""`statestore checkpoint export`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from statestore_runtime.cli.find import Dir, Which, open_reader
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, print_json
from statestore_runtime.cli.values import key_text, to_json

if TYPE_CHECKING:
    from statestore.reading.reader import StateReader
    from statestore.reading.state import StoredState

Row = tuple[str, Any, Any]
"""State, key and value."""


def export(
    which: Which,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New file: .jsonl, .csv, .parquet or .arrow.")],
    state: Annotated[list[str] | None, typer.Option(metavar="S", help="Only this state; may be repeated.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="Also what had expired, and was still there.")] = False,
    dir: Dir = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the state of a checkpoint to a file, a row for each key (of timers, for each timer).

    JSON lines and CSV have the columns state, key and value (in CSV as JSON); Parquet and Arrow (extra 'arrow') have one state, in the
    columns key and value. The file is there whole, or not at all.
    """
    from statestore.errors import StateStoreError, UnavailableError, UsageError

    write = _WRITERS.get(file.suffix)
    if write is None:
        raise UsageError(f"'{file}' must end in one of {', '.join(_WRITERS)}, which says the format")
    if file.exists():
        raise UsageError(f"'{file}' is there already")
    reader = open_reader(which, dir, config, overrides)
    states = [reader.state(name, expired=expired) for name in state or [info.name for info in reader.states]]
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        rows = write(unfinished, reader, states, not json)
        unfinished.rename(file)
    except OSError as error:
        if isinstance(error, StateStoreError):
            raise
        raise UnavailableError("file", str(file), error.strerror or error) from error
    finally:
        unfinished.unlink(missing_ok=True)
    if json:
        print_json({"path": reader.path, "file": str(file), "rows": rows})
    else:
        sys.stdout.write(f"{file}: {rows:,} rows of {reader.path}\n")


def _rows(reader: StateReader, states: list[StoredState], show: bool) -> Iterator[Row]:
    from statestore_runtime.cli.progress import progress_bar

    groups = range(reader.max_parallelism)
    with progress_bar("exporting", len(states) * len(groups), show=show) as advance:
        for state in states:
            for group in groups:
                for key, value in state.items(key_groups=group):
                    yield state.info.name, key, value
                advance(1)


def _write_lines(file: Path, reader: StateReader, states: list[StoredState], show: bool) -> int:
    count = 0
    with file.open("x", encoding="utf-8") as out:
        for name, key, value in _rows(reader, states, show):
            out.write(to_json({"state": name, "key": key, "value": value}) + "\n")
            count += 1
    return count


def _write_csv(file: Path, reader: StateReader, states: list[StoredState], show: bool) -> int:
    count = 0
    with file.open("x", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["state", "key", "value"])
        for name, key, value in _rows(reader, states, show):
            writer.writerow([name, key_text(key), to_json(value)])
            count += 1
    return count


def _write_parquet(file: Path, reader: StateReader, states: list[StoredState], show: bool) -> int:
    def open_writer(out: IO[bytes], schema: Any) -> Any:
        from pyarrow import parquet

        return parquet.ParquetWriter(out, schema)

    return _write_batches(file, states, show, open_writer)


def _write_arrow(file: Path, reader: StateReader, states: list[StoredState], show: bool) -> int:
    def open_writer(out: IO[bytes], schema: Any) -> Any:
        from pyarrow import ipc

        return ipc.new_file(out, schema)

    return _write_batches(file, states, show, open_writer)


def _write_batches(
    file: Path, states: list[StoredState], show: bool, open_writer: Callable[[IO[bytes], Any], Any]
) -> int:
    from statestore.errors import UsageError
    from statestore_runtime.cli.progress import progress_bar

    if len(states) != 1:
        names = ", ".join(state.info.name for state in states)
        raise UsageError(f"a Parquet or Arrow file holds one state: say which of {names} with --state")
    batches, count = states[0].to_arrow(), 0
    with file.open("xb") as out, open_writer(out, batches.schema) as writer, progress_bar("exporting", None, show=show):
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


_WRITERS = {".jsonl": _write_lines, ".csv": _write_csv, ".parquet": _write_parquet, ".arrow": _write_arrow}
