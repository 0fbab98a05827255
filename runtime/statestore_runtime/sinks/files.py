"""Exactly-once files: a part per checkpoint, hidden until the checkpoint is complete.

Invariants:
- a visible part is whole and never changes;
- numbers only grow: a part written later has a greater number than all visible parts, so no name is used twice;
- the snapshot says which number comes next, so visible parts from that number on belong to a future that was given up;
- hidden names carry job and attempt, so that an attempt cleans up behind its predecessors and nobody else;
- parts of an earlier run are replaced in the commit of this run's first transaction: a crash before it leaves the old output whole.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from statestore import crashpoints
from statestore.errors import CorruptionError, StateStoreError, UnavailableError, UsageError
from statestore.io import LocalStorage, sync_folder
from statestore_runtime.sinks.base import Sink, SinkContext

logger = logging.getLogger("statestore_runtime.sinks")

_BUFFER_BYTES = 1 << 20
_FINAL = re.compile(r"part-(?P<attempt>\d{4,})-(?P<number>\d{6,})\.(jsonl|csv)")
_HIDDEN = re.compile(rf"\.{_FINAL.pattern}\.(?P<job>.+)\.(?P<owner>\d+)\.inprogress")

Encoder = Callable[[list[Any]], bytes]


class FileSink(Sink):
    """Writes events into files `part-<attempt>-<number>.jsonl` (or .csv) of a folder, each event exactly once.

    A part becomes visible when its checkpoint is complete. The names sort in the order of writing.

    Parameters
    ----------
    dir
        The folder; it is made when it is not there. One sink of one job writes to it.
    format
        "jsonl": anything msgspec can encode, one a line. "csv": Structs, dataclasses, dicts (their names are the header of each part)
        or tuples.
    encoder
        Makes the bytes of a batch, instead of the format's own.
    if_exists
        What a job that starts afresh does with the parts of an earlier run: "error", "replace" (remove them), "append" (leave them).

    Raises
    ------
    UsageError
        An argument can't be served.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str],
        format: Literal["jsonl", "csv"] = "jsonl",
        *,
        encoder: Encoder | None = None,
        if_exists: Literal["error", "replace", "append"] = "error",
    ):
        if format not in ("jsonl", "csv"):
            raise UsageError(f"FileSink format is '{format}'; known: jsonl, csv")
        if if_exists not in ("error", "replace", "append"):
            raise UsageError(f"FileSink if_exists is '{if_exists}'; known: error, replace, append")
        self._dir, self._format, self._if_exists = Path(dir), format, if_exists
        self._csv = CsvEncoder() if format == "csv" and encoder is None else None
        self._encode: Encoder = encoder or self._csv or encode_json_lines
        self._file: IO[bytes] | None = None
        self._hidden = self._final = ""
        self._job, self._attempt, self._next = "", 0, 1
        self._replaced: list[str] = []
        self._has_leftovers = False

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._dir)

    @property
    def place(self) -> str | None:
        """The folder."""
        return str(self._dir)

    def open(self, context: SinkContext) -> None:
        """See `Sink.open`."""
        self.close()
        self._job, self._attempt, self._replaced, self._has_leftovers = context.job, context.attempt, [], False
        try:
            LocalStorage(self._dir)  # makes the folder durably
            if context.fresh:
                self._start_afresh()
            else:
                self._go_on(context)
            self._has_leftovers = True
        except StateStoreError:
            raise
        except OSError as error:
            raise self._unavailable(error) from error

    def _visible(self) -> dict[str, int]:
        """Numbers of the visible parts by name."""
        matches = (_FINAL.fullmatch(path.name) for path in self._dir.iterdir())
        return {match[0]: int(match["number"]) for match in matches if match}

    def _start_afresh(self) -> None:
        existing = self._visible()
        if existing and self._if_exists == "error":
            raise UsageError(
                f"{self._dir} holds {len(existing)} part files of an earlier run: choose another folder, "
                "or FileSink(if_exists='replace') or 'append'"
            )
        if self._if_exists == "replace":
            self._replaced = sorted(existing)
        self._next = max(existing.values(), default=0) + 1

    def _go_on(self, context: SinkContext) -> None:
        for transaction in context.transactions:
            self.commit(transaction)
        self._next = context.snapshot["next"]
        undone = [name for name, number in self._visible().items() if number >= self._next]
        for name in undone:  # their events will be processed, and written, again
            (self._dir / name).rename(self._dir / f".undone-{self._job}-{self._attempt}-{name}")
        if undone:
            sync_folder(self._dir)
            logger.warning(
                "%s: %d parts are newer than the restored checkpoint and were renamed to .undone-*",
                self._dir,
                len(undone),
            )

    def _remove_leftovers(self) -> None:
        for path in self._dir.iterdir():
            match = _HIDDEN.fullmatch(path.name)
            if match and match["job"] == self._job and int(match["owner"]) < self._attempt:
                path.unlink()

    def write(self, batch: list[Any]) -> None:
        """Append to the part of this checkpoint interval."""
        try:
            header = self._csv.begin(batch[0]) if self._csv is not None and self._file is None else b""
            data = self._encode(batch)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{self._dir}: an event can't be written as {self._format}: {error}") from error
        try:
            if self._file is None:
                self._file = self._begin_part()
            self._file.write(header + data if header else data)
        except OSError as error:
            raise self._unavailable(error) from error

    def _begin_part(self) -> IO[bytes]:
        self._final = f"part-{self._attempt:04d}-{self._next:06d}.{self._format}"
        self._hidden = f".{self._final}.{self._job}.{self._attempt}.inprogress"
        file = (self._dir / self._hidden).open("wb", buffering=_BUFFER_BYTES)
        self._next += 1
        return file

    def prepare(self) -> dict[str, Any] | None:
        """Sync and close the part; returns its hidden name, its name to be, its size, and the parts that it replaces."""
        crashpoints.reach("sink.before-prepare")
        transaction: dict[str, Any] = {}
        if self._file is not None:
            try:
                file, self._file = self._file, None
                with file:
                    file.flush()
                    os.fsync(file.fileno())
                    size = file.tell()
                sync_folder(self._dir)
            except OSError as error:
                raise self._unavailable(error) from error
            transaction["part"] = [self._hidden, self._final, size]
        if self._replaced:
            transaction["replaces"], self._replaced = self._replaced, []
        crashpoints.reach("sink.prepared")
        return transaction or None

    def snapshot(self) -> dict[str, int]:
        """The number of the next part."""
        return {"next": self._next}

    def commit(self, transaction: Any) -> None:
        """Remove the parts that are replaced and give the new one its visible name, durably."""
        crashpoints.reach("sink.before-commit")
        try:
            for name in transaction.get("replaces", ()):
                self._checked(_FINAL, name).unlink(missing_ok=True)
            if "part" in transaction:
                self._show(*transaction["part"])
            crashpoints.reach("sink.committing")
            sync_folder(self._dir)
            if self._has_leftovers:
                # Not before: until this attempt has completed a checkpoint, one of an earlier attempt may still turn up, and need them.
                self._remove_leftovers()
                self._has_leftovers = False
        except StateStoreError:
            raise
        except OSError as error:
            raise self._unavailable(error) from error
        crashpoints.reach("sink.committed")

    def _show(self, hidden_name: str, final_name: str, size: int) -> None:
        hidden, final = self._checked(_HIDDEN, hidden_name), self._checked(_FINAL, final_name)
        if hidden.exists():
            self._check_size(hidden, size)
            if final.exists():
                raise CorruptionError(str(final), "it is in the way of a new part: does another job write here?")
            hidden.rename(final)
        elif final.exists():
            self._check_size(final, size)
        else:
            raise CorruptionError(
                str(final),
                "a part that the checkpoint counts on is gone",
                hint="put it back, or start over with --restore none",
            )

    def _checked(self, pattern: re.Pattern[str], name: str) -> Path:
        """Path of a file that a checkpoint names, which must be one that a FileSink writes."""
        if not pattern.fullmatch(name):
            raise CorruptionError(f"{self._dir}/{name}", "the checkpoint names a file that no FileSink writes")
        return self._dir / name

    @staticmethod
    def _check_size(path: Path, size: int) -> None:
        found = path.stat().st_size
        if found != size:
            raise CorruptionError(str(path), f"it has {found} bytes, the checkpoint says {size}")

    def close(self) -> None:
        """Close and remove the part that no barrier has come to."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:  # its buffer could not be written: it is given up anyway
            logger.warning("%s: %s", self._dir / self._hidden, error)
        (self._dir / self._hidden).unlink(missing_ok=True)

    def _unavailable(self, error: OSError) -> UnavailableError:
        return UnavailableError("output folder", str(self._dir), error.strerror or error)


encode_json_lines: Encoder = msgspec.json.Encoder().encode_lines


class CsvEncoder:
    """Makes lines of comma-separated values; None is an empty field. All events of a part are of one kind."""

    def __init__(self) -> None:
        self._type: type = tuple
        self._names: tuple[str, ...] | None = None

    def begin(self, event: Any) -> bytes:
        """Header line of a part that begins with `event`: nothing for a plain tuple. Raises TypeError for what is no record."""
        self._type, self._names = type(event), self._names_of(event)
        return b"" if self._names is None else self._lines([self._names])

    def __call__(self, batch: list[Any]) -> bytes:
        """Lines of events. Raises TypeError or ValueError when one is of another kind than the part's first."""
        for event in batch:
            if type(event) is not self._type:
                raise TypeError(f"it is {type(event).__name__}, those before are {self._type.__name__}")
        if issubclass(self._type, msgspec.Struct):
            return self._lines([msgspec.structs.astuple(event) for event in batch])
        if issubclass(self._type, tuple):
            return self._lines(batch)
        names = self._names or ()
        if not issubclass(self._type, dict):
            return self._lines([tuple(getattr(event, name) for name in names) for event in batch])
        for event in batch:
            if event.keys() != set(names):
                raise ValueError(f"its fields are {', '.join(event)}, those before have {', '.join(names)}")
        return self._lines([tuple(event[name] for name in names) for event in batch])

    @staticmethod
    def _names_of(event: Any) -> tuple[str, ...] | None:
        if isinstance(event, msgspec.Struct):
            return event.__struct_encode_fields__
        if dataclasses.is_dataclass(event):
            return tuple(field.name for field in dataclasses.fields(event))
        if isinstance(event, dict):
            return tuple(event)
        if isinstance(event, tuple):
            return getattr(event, "_fields", None)
        raise TypeError(f"{type(event).__name__} is no Struct, dataclass, dict or tuple")

    @staticmethod
    def _lines(rows: list[tuple[Any, ...]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()
