"""Lines of a file as typed events: JSON lines and CSV.

A reader takes up to n records' lines at once and converts them together, which costs a fraction of doing it one by one. Only when that
fails does it go through them singly, to find the bad ones and their line numbers.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from statestore.errors import ConfigError, UsageError

FIELD_MAX_CHARACTERS = 16 << 20
csv.field_size_limit(
    max(csv.field_size_limit(), FIELD_MAX_CHARACTERS)
)  # the module's own limit is 128 Ki, for quoted fields only

_JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

BadRecordHandler = Callable[[int, bytes, str], None]
"""Takes the number of the record's first line, its bytes, and the problem."""


class RecordReader(ABC):
    """Reads events from a binary stream; `offset` and `line` are those after the events returned so far."""

    def __init__(self, stream: io.BufferedReader, on_bad_record: BadRecordHandler):
        self._stream, self._on_bad_record = stream, on_bad_record
        self.offset = 0
        self.line = 0

    @abstractmethod
    def read(self, count: int) -> list[Any] | None:
        """Events of the next `count` records, fewer when some are bad; None at the end. Raises what `on_bad_record` does."""

    @abstractmethod
    def skip_to(self, offset: int, line: int, *, seek: bool) -> None:
        """Go to a place that an earlier reader of the same file came to; `seek` says whether the stream can jump."""

    def _move(self, offset: int, *, seek: bool) -> None:
        if seek:
            self._stream.seek(offset)
            return
        left = offset - self.offset
        while left > 0 and (data := self._stream.read(min(left, 1 << 20))):
            left -= len(data)


class JsonLinesReader(RecordReader):
    """One JSON value a line; blank lines are passed over."""

    def __init__(self, stream: io.BufferedReader, on_bad_record: BadRecordHandler, decoder: msgspec.json.Decoder[Any]):
        super().__init__(stream, on_bad_record)
        self._decoder = decoder

    def read(self, count: int) -> list[Any] | None:
        """See `RecordReader.read`."""
        lines = list(islice(self._stream, count))
        if not lines:
            return None
        if self.offset == 0:
            self._drop_byte_order_mark(lines)
        data = b"".join(lines)
        try:
            events = self._decoder.decode_lines(data)
            if len(events) != len(lines):  # blank lines, or values that are not one a line
                events = self._decode_singly(lines)
        except _JSON_ERRORS:
            events = self._decode_singly(lines)
        self.offset += len(data)
        self.line += len(lines)
        return events

    def _drop_byte_order_mark(self, lines: list[bytes]) -> None:
        if lines[0].startswith(codecs.BOM_UTF8):
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            self.offset = len(codecs.BOM_UTF8)

    def _decode_singly(self, lines: list[bytes]) -> list[Any]:
        events = []
        for number, line in enumerate(lines, self.line + 1):
            if not line.strip():
                continue
            try:
                events.append(self._decoder.decode(line))
            except _JSON_ERRORS as error:
                self._on_bad_record(number, line, str(error))
        return events

    def skip_to(self, offset: int, line: int, *, seek: bool) -> None:
        """See `RecordReader.skip_to`."""
        self._move(offset, seek=seek)
        self.offset, self.line = offset, line


class CsvReader(RecordReader):
    """Comma-separated values with a header line; a quoted field may span lines."""

    def __init__(
        self,
        stream: io.BufferedReader,
        on_bad_record: BadRecordHandler,
        converter: RowConverter,
        file: str,
    ):
        super().__init__(stream, on_bad_record)
        lines: list[bytes] = []
        try:
            header = next((row for row in csv.reader(self._texts(lines)) if row), None)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} has no header line that can be read: {error}", key="source") from error
        if header:
            self._convert = converter.bind(header, file)
            self._width = len(header)
        self._advance(lines)

    def _texts(self, lines: list[bytes], errors: str = "strict") -> Iterator[str]:
        """Text of `lines`, then of further lines of the stream, which are added to `lines`."""
        for line in lines[:]:
            yield line.decode(errors=errors)
        for line in self._stream:
            lines.append(line)
            is_first = self.offset == 0 and len(lines) == 1
            yield (line.removeprefix(codecs.BOM_UTF8) if is_first else line).decode(errors=errors)

    def _advance(self, lines: list[bytes]) -> None:
        self.offset += sum(map(len, lines))
        self.line += len(lines)

    def read(self, count: int) -> list[Any] | None:
        """See `RecordReader.read`."""
        lines = list(islice(self._stream, count))
        if not lines:
            return None
        try:
            rows = self._rows(lines)
            events = self._convert(rows) if set(map(len, rows)) == {self._width} else self._convert_singly(lines)
        except (csv.Error, ValueError, TypeError):  # msgspec's and Unicode's errors are ValueErrors
            events = self._convert_singly(lines)
        self._advance(lines)
        return events

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

    def _convert_singly(self, lines: list[bytes]) -> list[Any]:
        """The good ones of the records in `lines`."""
        events: list[Any] = []
        wanted, begin = len(lines), 0
        rows = csv.reader(self._texts(lines, "replace"))
        while begin < wanted:
            problem = ""
            try:
                row = next(rows)
                problem = self._problem_of(row, lines[begin : rows.line_num])
                if row and not problem:
                    events += self._convert([row])
            except StopIteration:
                break
            except (csv.Error, ValueError, TypeError) as error:
                problem = str(error)
            if problem:
                self._on_bad_record(self.line + begin + 1, b"".join(lines[begin : rows.line_num]), problem)
            begin = rows.line_num
        return events

    def _problem_of(self, row: list[str], lines: Sequence[bytes]) -> str:
        try:
            b"".join(lines).decode()
        except UnicodeDecodeError as error:
            return f"not UTF-8: {error.reason}"
        return f"{len(row)} fields, the header has {self._width}" if row and len(row) != self._width else ""

    def skip_to(self, offset: int, line: int, *, seek: bool) -> None:
        """See `RecordReader.skip_to`; the header has been read already."""
        self._move(offset, seek=seek)
        self.offset, self.line = offset, line


@dataclasses.dataclass(frozen=True, slots=True)
class _Column:
    name: str
    declared: Any
    nullable: bool
    required: bool

    @property
    def is_text(self) -> bool:
        return self.declared is str or self.declared == str | None


class RowConverter:
    """Makes events of a declared type from rows of text.

    Parameters
    ----------
    declared
        A msgspec.Struct or dataclass (its fields' names, or their `rename`, are columns), or None for a dict of text per row.
    null_values
        Texts that mean None, for the fields that admit None.

    Raises
    ------
    UsageError
        `declared` is of another kind.
    """

    def __init__(self, declared: Any, null_values: Sequence[str]):
        self._declared, self._nulls = declared, frozenset(null_values)
        self._columns = [] if declared is None else self._columns_of(declared)
        for column in self._columns:
            _check_type(column.declared, f"column '{column.name}' of {declared.__name__}")

    def _columns_of(self, declared: Any) -> list[_Column]:
        if isinstance(declared, type) and issubclass(declared, msgspec.Struct):
            if declared.__struct_config__.array_like or getattr(declared.__struct_config__, "tag", None) is not None:
                raise UsageError(f"CSV records can't be made into {declared.__name__}: it is array_like or tagged")
            return [
                _Column(field.encode_name, field.type, _admits_none(field.type), field.required)
                for field in msgspec.structs.fields(declared)
            ]
        if isinstance(declared, type) and dataclasses.is_dataclass(declared):
            hints = typing.get_type_hints(declared, include_extras=True)
            missing = dataclasses.MISSING
            return [
                _Column(
                    field.name,
                    hints[field.name],
                    _admits_none(hints[field.name]),
                    field.default is missing and field.default_factory is missing,
                )
                for field in dataclasses.fields(declared)
                if field.init
            ]
        raise UsageError(f"CSV records can be made into a msgspec.Struct or a dataclass, not into {declared!r}")

    def bind(self, header: list[str], file: str) -> Callable[[list[list[str]]], list[Any]]:
        """Conversion for files with this header line. Raises ConfigError when a needed column is missing."""
        if len(set(header)) != len(header):
            raise ConfigError(f"{file} has two columns of the same name in {header}", key="source")
        if self._declared is None:
            return lambda rows: [dict(zip(header, row, strict=True)) for row in rows]
        missing = [column.name for column in self._columns if column.required and column.name not in header]
        if missing:
            raise ConfigError(
                f"{file} has no column '{missing[0]}'",
                key="source",
                hint=f"its columns are {', '.join(header)}",
            )
        present = [column for column in self._columns if column.name in header]
        if self._is_positional(present):
            return self._by_columns([(header.index(column.name), column) for column in present])
        return self._by_rows([(header.index(column.name), column) for column in present])

    def _is_positional(self, present: list[_Column]) -> bool:
        """Whether the present columns are the constructor's first arguments, in their order."""
        if present != self._columns[: len(present)]:
            return False
        if issubclass(self._declared, msgspec.Struct):
            return len(self._declared.__match_args__) >= len(present)  # keyword-only fields are not in it
        return not any(field.kw_only for field in dataclasses.fields(self._declared) if field.init)

    def _by_columns(self, places: list[tuple[int, _Column]]) -> Callable[[list[list[str]]], list[Any]]:
        make, nulls = self._declared, self._nulls

        def convert(rows: list[list[str]]) -> list[Any]:
            arguments: list[list[Any]] = []
            for index, column in places:
                texts: list[Any] = [row[index] for row in rows]
                if column.nullable:
                    texts = [None if text in nulls else text for text in texts]
                if not column.is_text:
                    try:
                        texts = msgspec.convert(texts, list[column.declared], strict=False)  # type: ignore[name-defined]
                    except msgspec.ValidationError as error:
                        problem = str(error).partition(" - at `$[")[0]
                        raise msgspec.ValidationError(f"column '{column.name}': {problem}") from error
                arguments.append(texts)
            return list(map(make, *arguments))

        return convert

    def _by_rows(self, places: list[tuple[int, _Column]]) -> Callable[[list[list[str]]], list[Any]]:
        declared, nulls = self._declared, self._nulls

        def convert(rows: list[list[str]]) -> list[Any]:
            mappings = [
                {c.name: None if c.nullable and row[index] in nulls else row[index] for index, c in places}
                for row in rows
            ]
            return [msgspec.convert(mapping, declared, strict=False) for mapping in mappings]

        return convert


def _check_type(declared: Any, what: str) -> None:
    """Raise UsageError for a type that nothing can be converted to, before it makes a bad record of every line."""
    try:
        msgspec.convert([], list[declared], strict=False)
    except TypeError as error:
        raise UsageError(f"{what} can't be read as {declared!r}: {error}") from error


def _admits_none(declared: Any) -> bool:
    if typing.get_origin(declared) is typing.Annotated:
        declared = typing.get_args(declared)[0]
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return type(None) in typing.get_args(declared)
    return declared is None or declared is type(None)
