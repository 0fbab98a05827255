"""Comma-separated values."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from statestore.errors import ConfigError
from statestore_runtime.sources.files.conversion import RowConverter
from statestore_runtime.sources.files.records import BadRecordHandler, LineReader

FIELD_MAX_CHARACTERS = 16 << 20
csv.field_size_limit(
    max(csv.field_size_limit(), FIELD_MAX_CHARACTERS)
)  # the module's own limit is 128 Ki, for quoted fields only


class _TornError(Exception):
    """The last record of a growing file is not complete yet."""


class CsvReader(LineReader):
    """Comma-separated values with a header line; a quoted field may span lines."""

    def __init__(
        self,
        stream: io.BufferedReader,
        on_bad_record: BadRecordHandler,
        converter: RowConverter,
        file: str,
        *,
        can_seek: bool,
        is_growing: bool = False,
    ):
        super().__init__(stream, on_bad_record, can_seek=can_seek, is_growing=is_growing)
        self._converter, self._file = converter, file
        self._convert: Callable[[list[list[str]]], list[Any]] | None = None
        self._width = 0
        self._read_header()

    def _read_header(self) -> None:
        lines: list[bytes] = []
        try:
            header = next((row for row in csv.reader(self._texts(lines)) if row), None)
        except _TornError:
            self._stream.seek(0)
            return
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._file} has no header line that can be read: {error}", key="source") from error
        if header:
            self._convert = self._converter.bind(header, self._file)
            self._width = len(header)
        self._advance(lines)

    def _texts(self, lines: list[bytes], errors: str = "strict") -> Iterator[str]:
        """Text of `lines`, then of further lines of the stream, which are added to `lines`."""
        for line in lines[:]:
            yield line.decode(errors=errors)
        while taken := self._take(1):
            lines += taken
            is_first = self.offset == 0 and len(lines) == 1
            yield (taken[0].removeprefix(codecs.BOM_UTF8) if is_first else taken[0]).decode(errors=errors)
        if self._is_growing:  # the parser asks for more only within a record
            raise _TornError

    def _advance(self, lines: list[bytes]) -> None:
        self.offset += sum(map(len, lines))
        self.line += len(lines)

    def read(self, count: int) -> list[Any] | None:
        """See `RecordReader.read`."""
        if self._convert is None:
            self._read_header()
        lines = self._take(count) if self._convert is not None else []
        try:
            events = self._events_of(lines)
        except _TornError:
            self._keep_complete(lines)
            events = self._events_of(lines)
        self._advance(lines)
        return events if lines else None

    def _events_of(self, lines: list[bytes]) -> list[Any]:
        convert = self._convert
        if not lines or convert is None:
            return []
        try:
            rows = self._rows(lines)
            if set(map(len, rows)) == {self._width}:
                return convert(rows)
        except (csv.Error, ValueError, TypeError):  # msgspec's and Unicode's errors are ValueErrors
            pass
        return self._convert_singly(lines, convert)

    def _keep_complete(self, lines: list[bytes]) -> None:
        """Give the lines of the last record, which is not complete, back to the stream."""
        complete = 0
        rows = csv.reader(self._texts(lines, "replace"))
        while True:
            try:
                next(rows)
            except csv.Error:
                pass  # a bad record, and complete
            except _TornError:
                break
            complete = rows.line_num
        self._stream.seek(-sum(map(len, lines[complete:])), os.SEEK_CUR)
        del lines[complete:]

    def _rows(self, lines: list[bytes]) -> list[list[str]]:
        """Rows of `lines`; when a quoted field goes on behind them, the lines up to its end are added."""
        text = b"".join(lines).decode()
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        if '"' not in text and "\r" not in text and self._width > 1:  # splitting is four times as fast as parsing
            return [line.split(",") for line in text.removesuffix("\n").split("\n")]
        return list(self._parsed(lines, "strict"))

    def _parsed(self, lines: list[bytes], errors: str) -> Iterator[list[str]]:
        wanted = len(lines)
        rows = csv.reader(self._texts(lines, errors))
        for row in rows:
            if row:
                yield row
            if rows.line_num >= wanted:
                return

    def _convert_singly(self, lines: list[bytes], convert: Callable[[list[list[str]]], list[Any]]) -> list[Any]:
        """The good ones of the records in `lines`."""
        events: list[Any] = []
        bad: list[tuple[int, bytes, str]] = []
        wanted, begin = len(lines), 0
        rows = csv.reader(self._texts(lines, "replace"))
        while begin < wanted:
            problem = ""
            try:
                row = next(rows)
                problem = self._problem_of(row, lines[begin : rows.line_num])
                if row and not problem:
                    events += convert([row])
            except StopIteration:
                break
            except (csv.Error, ValueError, TypeError) as error:
                problem = str(error)
            if problem:
                bad.append((self.line + begin + 1, b"".join(lines[begin : rows.line_num]), problem))
            begin = rows.line_num
        for record in bad:  # now, when there is none that is not complete
            self._bad(*record)
        return events

    def _problem_of(self, row: list[str], lines: Sequence[bytes]) -> str:
        try:
            b"".join(lines).decode()
        except UnicodeDecodeError as error:
            return f"not UTF-8: {error.reason}"
        return f"{len(row)} fields, the header has {self._width}" if row and len(row) != self._width else ""
