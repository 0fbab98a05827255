"""What records of a declared type are as rows of Arrow record batches. Needs the extra `arrow`."""

from __future__ import annotations

import dataclasses
import operator
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from statestore.errors import UsageError
from statestore.reading.arrow import import_pyarrow
from statestore_runtime.sources.files.conversion import ColumnConverter, RowConverter, columns_of

if TYPE_CHECKING:
    import pyarrow

INT64_MAX = (1 << 63) - 1


class RowSchema:
    """The columns of a declared type, and the record batches of its values.

    Parameters
    ----------
    declared
        A msgspec.Struct or a dataclass; its fields are str, int, float, bool or bytes, or one of these and None.

    Attributes
    ----------
    schema : pyarrow.Schema
    plain_types : dict or None
        Type by column, where Arrow's conversions of text may take the place of the type's; None where the type has checks of its own.
    is_open : bool
        Whether records may have more fields than the type.

    Raises
    ------
    UsageError
        It is of another kind, or has other fields.
    ConfigError
        pyarrow is not installed.
    """

    def __init__(self, declared: Any):
        pa = self._pa = import_pyarrow()
        self._declared = declared
        columns = columns_of(declared, "the rows of record batches")
        self._kinds = [_kind_of(column.declared) for column in columns]
        arrow_types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}
        for column, kind in zip(columns, self._kinds, strict=True):
            if kind not in arrow_types:
                raise UsageError(
                    f"field '{column.name}' of {declared.__name__} is {column.declared!r}: record batches have fields of str, int, "
                    "float, bool and bytes, with or without None"
                )
        self.schema = pa.schema(
            [
                pa.field(column.name, arrow_types[kind], nullable=column.nullable)
                for column, kind in zip(columns, self._kinds, strict=True)
            ]
        )
        self._has_checks = hasattr(declared, "__post_init__") or any(_has_checks(column.declared) for column in columns)
        by_name = {column.name: kind for column, kind in zip(columns, self._kinds, strict=True)}
        self.plain_types = None if self._has_checks or bytes in self._kinds else by_name
        self.is_open = not (isinstance(declared, type) and _forbids_unknown(declared))
        names = _attributes(declared)
        self._integers = [
            (column.name, operator.attrgetter(name))
            for column, kind, name in zip(columns, self._kinds, names, strict=True)
            if kind is int
        ]
        self._values: list[Callable[[Any], Any]] = [operator.attrgetter(name) for name in names]

    def check(self, events: Sequence[Any]) -> None:
        """Raise ValidationError when a number does not fit into its column."""
        for name, get in self._integers:
            numbers = [number for number in map(get, events) if number is not None]
            if numbers and (max(numbers) > INT64_MAX or min(numbers) < -INT64_MAX - 1):
                raise msgspec.ValidationError(f"integers of record batches have 64 bits - at `$.{name}`")

    def batch_of(self, events: Sequence[Any]) -> pyarrow.RecordBatch:
        """Values that were checked, as rows."""
        columns = zip(self._values, self.schema, strict=True)
        arrays = [self._pa.array(list(map(get, events)), field.type) for get, field in columns]
        return self._pa.record_batch(arrays, schema=self.schema)

    def decoder(self) -> CheckingDecoder:
        """Decoder of JSON that gives checked values."""
        return CheckingDecoder(self._declared, self.check)

    def converter(self, null_values: Sequence[str]) -> CheckingConverter:
        """Converter of rows of text that gives checked values."""
        return CheckingConverter(self._declared, null_values, self.check)

    def column_converter(self) -> CheckingColumns:
        """Converter of columns of values that gives checked values."""
        return CheckingColumns(self._declared, self.check)

    def conformed(self, rows: pyarrow.RecordBatch) -> pyarrow.RecordBatch | None:
        """Rows of a file with columns of its own types, as rows of this schema; None where that is not certain to be right."""
        if self._has_checks or any(field.name not in rows.schema.names for field in self.schema):
            return None
        made = []
        for field in self.schema:
            column = rows.column(field.name)
            if self._pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            if not self._is_like(column.type, field.type) or (column.null_count and not field.nullable):
                return None
            try:
                made.append(column.cast(field.type))
            except self._pa.ArrowInvalid:  # a number that does not fit
                return None
        return self._pa.record_batch(made, schema=self.schema)

    def _is_like(self, kind: pyarrow.DataType, wanted: pyarrow.DataType) -> bool:
        """Whether Python's values of both types are of one type."""
        tests = self._pa.types
        if tests.is_integer(wanted):
            return bool(tests.is_integer(kind))
        if tests.is_floating(wanted):
            return bool(tests.is_floating(kind) or tests.is_integer(kind))
        if tests.is_string(wanted):
            return bool(tests.is_string(kind) or tests.is_large_string(kind))
        return bool(kind == wanted)


class CheckingDecoder:
    """As msgspec's decoder of JSON, and checks what it gives."""

    def __init__(self, declared: Any, check: Callable[[Sequence[Any]], None]):
        self._decoder = msgspec.json.Decoder(declared)
        self._check = check

    def decode(self, data: bytes) -> Any:
        """Value of a line. Raises msgspec's errors."""
        event = self._decoder.decode(data)
        self._check([event])
        return event

    def decode_lines(self, data: bytes) -> list[Any]:
        """Values of lines. Raises msgspec's errors."""
        events: list[Any] = self._decoder.decode_lines(data)
        self._check(events)
        return events


class CheckingColumns(ColumnConverter):
    """As its base, and checks what it makes."""

    def __init__(self, declared: Any, check: Callable[[Sequence[Any]], None]):
        super().__init__(declared)
        self._check = check

    def bind(self, names: list[str], file: str) -> tuple[list[str], Callable[[list[list[Any]]], list[Any]]]:
        """As of the base."""
        needed, convert = super().bind(names, file)
        return needed, lambda columns: self._checked(convert(columns))

    def _checked(self, events: list[Any]) -> list[Any]:
        self._check(events)
        return events


class CheckingConverter(RowConverter):
    """As its base, and checks what it makes.

    Attributes
    ----------
    header : list or None
        Names of the columns of the file that it was bound to.
    """

    def __init__(self, declared: Any, null_values: Sequence[str], check: Callable[[Sequence[Any]], None]):
        super().__init__(declared, null_values)
        self._check = check
        self.header: list[str] | None = None

    def bind(self, header: list[str], file: str) -> Callable[[list[list[str]]], list[Any]]:
        """As of the base."""
        convert, check = super().bind(header, file), self._check
        self.header = header

        def convert_and_check(rows: list[list[str]]) -> list[Any]:
            events = convert(rows)
            check(events)
            return events

        return convert_and_check


def _forbids_unknown(declared: type) -> bool:
    return issubclass(declared, msgspec.Struct) and declared.__struct_config__.forbid_unknown_fields


def _has_checks(declared: Any) -> bool:
    if typing.get_origin(declared) is typing.Annotated:
        return True
    return any(map(_has_checks, typing.get_args(declared)))


def _kind_of(declared: Any) -> Any:
    """The type without None, and without what Annotated says of it."""
    if typing.get_origin(declared) is typing.Annotated:
        return _kind_of(typing.get_args(declared)[0])
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        others = [each for each in typing.get_args(declared) if each is not type(None)]
        return _kind_of(others[0]) if len(others) == 1 else declared
    return declared


def _attributes(declared: Any) -> list[str]:
    if issubclass(declared, msgspec.Struct):
        return list(declared.__struct_fields__)
    return [field.name for field in dataclasses.fields(declared) if field.init]
