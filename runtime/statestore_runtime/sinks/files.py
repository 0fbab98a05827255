"""Exactly-once files: parts that stay hidden until their checkpoint is complete.

Invariants:
- a visible part is whole and never changes;
- numbers only grow: an attempt begins above all visible parts, so no name is used twice;
- the snapshots say which numbers each subtask has used, so other visible parts from this attempt's first number on belong to a future that
  was given up; subtask 0 undoes them;
- hidden names carry job and attempt, so that an attempt cleans up behind its predecessors and nobody else;
- parts of an earlier run are replaced in the commit of subtask 0's first transaction: a crash before it leaves the old output whole;
- an older attempt shows nothing any more once subtask 0 has opened. What it had prepared until then was renamed, so that it does not find
  it; what it prepares later, it prepares after the folder says who its owner is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, Literal

from statestore import crashpoints
from statestore.errors import CorruptionError, StateStoreError, UnavailableError, UsageError
from statestore.io import sync_folder
from statestore.units import parse_duration, parse_size
from statestore_runtime.sinks.base import Sink, SinkContext
from statestore_runtime.sinks.encoding import (
    CompressingEncoder,
    CsvEncoder,
    Encoder,
    FileEncoder,
    LinesEncoder,
    OtherSchemaError,
    encode_json_lines,
)
from statestore_runtime.sinks.parquet import ParquetEncoder, import_pyarrow
from statestore_runtime.sinks.parts import PartFolder, is_known
from statestore_runtime.sinks.values import shared_folder

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger("statestore_runtime.sinks")

_BUFFER_BYTES = 1 << 20
_PARQUET_COMPRESSION = {None: "snappy", "gz": "gzip", "zst": "zstd"}


class FileSink(Sink):
    """Writes events into files `part-<attempt>-<subtask>-<number>.jsonl` (or .csv, .parquet) of a folder, each event exactly once.

    A part becomes visible when its checkpoint is complete. The names of a subtask's parts sort in the order of writing.

    Parameters
    ----------
    dir
        The folder, of a file system; it is made when it is not there. One sink of one job writes to it. Workers on several machines need a
        shared one.
    format
        "jsonl": anything msgspec can encode, one a line. "csv": Structs, dataclasses, dicts (their names are the header of each part)
        or tuples. "parquet" (extra `arrow`): the same, but for plain tuples.
    compression
        "gz" or "zst"; a Parquet file without is compressed with Snappy.
    roll_size
        Size, such as "128mb", from which a part is ended and the next one begun, within one checkpoint.
    roll_interval
        Age, such as "1min", from which it is.
    schema
        `pyarrow.Schema` of Parquet files. Without one a file has the schema of its first events; others that do not fit begin a new one.
    encoder
        Makes the bytes of a batch, instead of the format's own.
    if_exists
        What a job that starts afresh does with the parts of an earlier run: "error", "replace" (remove them), "append" (leave them).

    Raises
    ------
    UsageError
        An argument can't be served.
    ConfigError
        The format's package is not installed.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str],
        format: Literal["jsonl", "csv", "parquet"] = "jsonl",
        *,
        compression: Literal["gz", "zst"] | None = None,
        roll_size: str | int | None = None,
        roll_interval: str | None = None,
        schema: pyarrow.Schema | None = None,
        encoder: Encoder | None = None,
        if_exists: Literal["error", "replace", "append"] = "error",
    ):
        _check_choice("format", format, ("jsonl", "csv", "parquet"))
        _check_choice("compression", compression, (None, "gz", "zst"))
        _check_choice("if_exists", if_exists, ("error", "replace", "append"))
        is_parquet = format == "parquet"
        if is_parquet:
            import_pyarrow()
        if encoder is not None and is_parquet:
            raise UsageError("FileSink takes an encoder of one's own for lines, not for parquet")
        if schema is not None and not is_parquet:
            raise UsageError(f"FileSink takes a schema for parquet, not for {format}")
        self._dir, self._format, self._if_exists = shared_folder("FileSink", "dir", dir), format, if_exists
        self._compression, self._schema, self._encoder_of_lines = compression, schema, encoder
        self._roll_bytes = _limit("roll_size", roll_size, parse_size)
        self._roll_seconds = _limit("roll_interval", roll_interval, parse_duration)
        self._extension = format if compression is None or is_parquet else f"{format}.{compression}"
        self._context = SinkContext("", 0)
        self._folder: PartFolder
        self._encoder: FileEncoder | None = None
        self._file: IO[bytes] | None = None
        self._hidden = self._visible = ""
        self._size, self._begun = 0, 0.0
        self._base = self._next = 1
        self._parts: list[tuple[str, str, int]] = []
        self._replaced: list[str] = []
        self._is_cleaning = False
        self._broken: UnavailableError | None = None

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._dir)

    @property
    def place(self) -> str | None:
        """The folder."""
        return str(self._dir)

    # Opening

    def open(self, context: SinkContext) -> None:
        """See `Sink.open`."""
        self.close()
        self._context, self._replaced, self._is_cleaning, self._broken = context, [], False, None
        try:
            self._folder = PartFolder(self._dir, context.job, context.attempt)
            self._folder.fence.claim(run=context.run, fresh=context.fresh)
            if context.is_first:
                self._is_cleaning = self._folder.hold_what_is_older()
            if context.fresh:
                self._start_afresh()
            else:
                self._go_on()
        except StateStoreError:
            raise
        except OSError as error:
            raise self._unavailable(error) from error

    def _start_afresh(self) -> None:
        self.commit_restored(self._context, gone_level=logging.DEBUG)
        existing = self._folder.visible()
        if existing and self._context.is_first:
            if self._if_exists == "error":
                raise UsageError(
                    f"{self._dir} holds {len(existing)} part files of an earlier run: choose another folder, "
                    "or FileSink(if_exists='replace') or 'append'"
                )
            if self._if_exists == "replace":
                self._replaced = sorted(existing)
        self._base = self._next = max((int(match["number"]) for match in existing.values()), default=0) + 1

    def _go_on(self) -> None:
        snapshots = self._context.snapshots
        if not snapshots or not all(
            isinstance(snapshot, dict) and "base" in snapshot for snapshot in snapshots.values()
        ):
            raise self.of_another()
        self.commit_restored(self._context)
        self._base = self._next = max(snapshot["next"] for snapshot in snapshots.values())
        if not self._context.is_first:
            return
        undone = [name for name, match in self._folder.visible().items() if not is_known(match, snapshots)]
        self._folder.undo(undone)  # their events will be processed, and written, again
        if undone:
            logger.warning(
                "%s: %d parts are newer than the restored checkpoint and were renamed to .undone-*",
                self._dir,
                len(undone),
            )

    # Writing

    def write(self, batch: list[Any]) -> None:
        """Append to a part of this checkpoint interval."""
        if not batch:
            return
        self._raise_if_broken()
        if self._encoder is not None and self._is_old_enough():
            self._end_part()
        data = self._encoded(batch)
        try:
            if self._file is None:
                self._begin_part()
            assert self._file is not None
            self._file.write(data)
        except OSError as error:
            raise self._broken_by(error) from error
        self._size += len(data)
        assert self._encoder is not None
        if self._roll_bytes is not None and self._size + self._encoder.waiting_bytes >= self._roll_bytes:
            self._end_part()

    def _encoded(self, batch: list[Any]) -> bytes:
        encoder = self._encoder or self._new_encoder()
        try:
            data = encoder.encode(batch)
        except OtherSchemaError:
            self._end_part()
            return self._encoded(batch)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{self._dir}: an event can't be written as {self._format}: {error}") from error
        self._encoder = encoder
        return data

    def _new_encoder(self) -> FileEncoder:
        if self._format == "parquet":
            return ParquetEncoder(self._schema, _PARQUET_COMPRESSION[self._compression])
        lines = self._encoder_of_lines or (encode_json_lines if self._format == "jsonl" else None)
        encoder = CsvEncoder() if lines is None else LinesEncoder(lines)
        return encoder if self._compression is None else CompressingEncoder(encoder, self._compression)

    def _is_old_enough(self) -> bool:
        return self._roll_seconds is not None and self._context.clock.monotonic() - self._begun >= self._roll_seconds

    def _begin_part(self) -> None:
        context = self._context
        self._visible = f"part-{context.attempt:04d}-{context.subtask:03d}-{self._next:06d}.{self._extension}"
        self._hidden = f".{self._visible}.{context.job}.{context.attempt}.inprogress"
        self._file = (self._dir / self._hidden).open("wb", buffering=_BUFFER_BYTES)
        self._next += 1
        self._size, self._begun = 0, context.clock.monotonic()

    def _end_part(self) -> None:
        """Write the part's last bytes, sync and close it."""
        assert self._file is not None and self._encoder is not None
        (file, self._file), (encoder, self._encoder) = (self._file, None), (self._encoder, None)
        try:
            with file:
                file.write(encoder.finish())
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
        except OSError as error:
            raise self._broken_by(error) from error
        self._parts.append((self._hidden, self._visible, size))

    def _broken_by(self, error: OSError) -> UnavailableError:
        """Part of what was written may be gone: nothing of this attempt may be committed any more."""
        self._broken = self._unavailable(error)
        return self._broken

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise UnavailableError(self._broken.what, self._broken.where, self._broken.reason)

    # Committing

    def prepare(self) -> dict[str, Any] | None:
        """Sync and close the part.

        Returns hidden name, name to be and size of each part, the names of those that they replace, and which attempt leaves others behind.
        """
        crashpoints.reach("sink.before-prepare")
        self._raise_if_broken()
        transaction: dict[str, Any] = {}
        if self._file is not None:
            self._end_part()
        try:
            if self._parts:
                sync_folder(self._dir)
            self._folder.fence.check()  # all parts were begun before: a newer attempt has them renamed, or is seen here
        except OSError as error:
            raise error if isinstance(error, StateStoreError) else self._broken_by(error) from error
        if self._parts:
            transaction["parts"], self._parts = self._parts, []
        if self._replaced:
            transaction["replaces"], self._replaced = self._replaced, []
        if self._is_cleaning:
            # Not before: until this attempt has completed a checkpoint, one of an earlier attempt may still turn up, and need them.
            transaction["cleans"], self._is_cleaning = self._context.attempt, False
        crashpoints.reach("sink.prepared")
        return transaction or None

    def snapshot(self) -> dict[str, int]:
        """The attempt, its first number and the number of the next part."""
        return {"attempt": self._context.attempt, "base": self._base, "next": self._next}

    def commit(self, transaction: Any) -> None:
        """Remove the parts that are replaced and give the new ones their visible names, durably."""
        crashpoints.reach("sink.before-commit")
        try:
            self._folder.fence.check()
            for name in transaction.get("replaces", ()):
                self._folder.remove_visible(name)
            self._show(transaction)
            sync_folder(self._dir)
            if transaction.get("cleans") == self._context.attempt:
                self._folder.remove_held()
        except StateStoreError:
            raise
        except OSError as error:
            raise self._unavailable(error) from error
        crashpoints.reach("sink.committed")

    def is_own(self, transaction: Any) -> bool:
        """See `Sink.is_own`."""
        return isinstance(transaction, dict) and transaction.keys() <= {"parts", "replaces", "cleans"}

    def _show(self, transaction: Mapping[str, Any]) -> None:
        for hidden, visible, size in transaction.get("parts", ()):
            if not self._folder.show(hidden, visible, size):
                self._folder.fence.check()
                raise CorruptionError(
                    str(self._dir / visible),
                    "a part that the checkpoint counts on is gone",
                    hint="put it back, give the sink the folder that it had, or start over with --restore none",
                )
            crashpoints.reach("sink.committing")

    def close(self) -> None:
        """Close and remove the parts that no barrier has come to."""
        given_up = [hidden for hidden, _, _ in self._parts]
        self._parts, self._encoder = [], None
        if self._file is not None:
            file, self._file = self._file, None
            given_up.append(self._hidden)
            try:
                file.close()
            except OSError as error:  # its buffer could not be written: it is given up anyway
                logger.warning("%s: %s", self._dir / self._hidden, error)
        for hidden in given_up:
            (self._dir / hidden).unlink(missing_ok=True)

    def _unavailable(self, error: OSError) -> UnavailableError:
        return UnavailableError("output folder", str(self._dir), error.strerror or error)


def _check_choice(argument: str, value: object, known: tuple[str | None, ...]) -> None:
    if value not in known:
        names = ", ".join(name for name in known if name is not None)
        raise UsageError(f"FileSink {argument} is '{value}'; known: {names}")


def _limit(argument: str, value: object, parse: Callable[[object], Any]) -> Any:
    """A positive size or duration, or None."""
    if value is None:
        return None
    try:
        limit = parse(value)
    except ValueError as error:
        raise UsageError(f"FileSink {argument}: {error}") from None
    if limit <= 0:
        raise UsageError(f"FileSink {argument} is {value!r}; it must be more than 0")
    return limit
