"""Makes events of a declared type: from rows of text, and from columns of values.

Where the columns are the first arguments of the type's constructor, whole columns are converted and events are made without a dict for
each, which is several times as fast.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from statestore.errors import ConfigError, UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A field of the declared type, as a column of a file."""

    name: str
    declared: Any
    nullable: bool
    required: bool

    @property
    def is_text(self) -> bool:
        """Whether text needs no conversion."""
        return self.declared is str or self.declared == str | None

    def convert(self, values: list[Any], *, strict: bool) -> list[Any]:
        """Values of the declared type. Raises ValidationError that names the column."""
        try:
            converted: list[Any] = msgspec.convert(values, list[self.declared], strict=strict)  # type: ignore[name-defined]
        except msgspec.ValidationError as error:
            problem, _, within = str(error).partition(" - at `$[")
            inner = within.partition("]")[2]
            where = "" if inner in ("", "`") else f" - at `${inner}"
            raise msgspec.ValidationError(f"column '{self.name}': {problem}{where}") from error
        return converted


class _Fields:
    """The columns of a msgspec.Struct or dataclass: its fields' names, or their `rename`. Raises UsageError for another type."""

    def __init__(self, declared: Any, records: str):
        self._declared = declared
        self.columns = columns_of(declared, records)

    def present(self, names: list[str], file: str) -> list[Column]:
        """Those that a file has. Raises ConfigError when one that is needed is missing, or when there is none."""
        missing = [column.name for column in self.columns if column.required and column.name not in names]
        found = [column for column in self.columns if column.name in names]
        if missing or not found:
            needed = missing or [column.name for column in self.columns]
            raise ConfigError(
                f"{file} has no column '{needed[0]}'" if needed else f"{self._declared.__name__} has no fields",
                key="source",
                hint=f"its columns are {', '.join(names)}",
            )
        return found

    def are_positional(self, present: list[Column]) -> bool:
        """Whether the present columns are the constructor's first arguments, in their order."""
        if present != self.columns[: len(present)]:
            return False
        if issubclass(self._declared, msgspec.Struct):
            return len(self._declared.__match_args__) >= len(present)  # keyword-only fields are not in it
        return not any(field.kw_only for field in dataclasses.fields(self._declared) if field.init)


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
        self._fields = None if declared is None else _Fields(declared, "CSV records")

    def bind(self, header: list[str], file: str) -> Callable[[list[list[str]]], list[Any]]:
        """Conversion for files with this header line. Raises ConfigError when a needed column is missing."""
        _check_unique(header, file)
        if self._fields is None:
            return lambda rows: [dict(zip(header, row, strict=True)) for row in rows]
        present = self._fields.present(header, file)
        places = [(header.index(column.name), column) for column in present]
        return self._by_columns(places) if self._fields.are_positional(present) else self._by_rows(places)

    def _by_columns(self, places: list[tuple[int, Column]]) -> Callable[[list[list[str]]], list[Any]]:
        make, nulls = self._declared, self._nulls

        def convert(rows: list[list[str]]) -> list[Any]:
            arguments: list[list[Any]] = []
            for index, column in places:
                texts: list[Any] = [row[index] for row in rows]
                if column.nullable:
                    texts = [None if text in nulls else text for text in texts]
                arguments.append(texts if column.is_text else column.convert(texts, strict=False))
            return list(map(make, *arguments))

        return convert

    def _by_rows(self, places: list[tuple[int, Column]]) -> Callable[[list[list[str]]], list[Any]]:
        declared, nulls = self._declared, self._nulls

        def convert(rows: list[list[str]]) -> list[Any]:
            mappings = [
                {c.name: None if c.nullable and row[index] in nulls else row[index] for index, c in places}
                for row in rows
            ]
            return [msgspec.convert(mapping, declared, strict=False) for mapping in mappings]

        return convert


class ColumnConverter:
    """Makes events of a declared type from columns of values.

    Parameters
    ----------
    declared
        A msgspec.Struct or dataclass, another type that msgspec makes of a dict, or None for a dict per row.

    Raises
    ------
    UsageError
        Nothing can be made into the type.
    """

    def __init__(self, declared: Any):
        self._declared = declared
        is_class = isinstance(declared, type) and (
            issubclass(declared, msgspec.Struct) or dataclasses.is_dataclass(declared)
        )
        self._fields = _Fields(declared, "rows") if is_class else None
        if declared is not None:
            _check_type(declared, "a row")

    def bind(self, names: list[str], file: str) -> tuple[list[str], Callable[[list[list[Any]]], list[Any]]]:
        """The columns that are needed of a file's, and the conversion of these. Raises ConfigError when one is missing."""
        _check_unique(names, file)
        if self._fields is None:
            return names, self._by_rows(names)
        present = self._fields.present(names, file)
        needed = [column.name for column in present]
        return needed, self._by_columns(present) if self._fields.are_positional(present) else self._by_rows(needed)

    def _by_columns(self, present: list[Column]) -> Callable[[list[list[Any]]], list[Any]]:
        make = self._declared

        def convert(columns: list[list[Any]]) -> list[Any]:
            pairs = zip(present, columns, strict=True)
            return list(map(make, *[column.convert(values, strict=True) for column, values in pairs]))

        return convert

    def _by_rows(self, names: list[str]) -> Callable[[list[list[Any]]], list[Any]]:
        declared = self._declared

        def convert(columns: list[list[Any]]) -> list[Any]:
            rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
            return rows if declared is None else [msgspec.convert(row, declared) for row in rows]

        return convert


def columns_of(declared: Any, records: str) -> list[Column]:
    """The columns of a msgspec.Struct or dataclass. Raises UsageError for another type, or a field that nothing can be converted to."""
    if isinstance(declared, type) and issubclass(declared, msgspec.Struct):
        if declared.__struct_config__.array_like or getattr(declared.__struct_config__, "tag", None) is not None:
            raise UsageError(f"{records} can't be made into {declared.__name__}: it is array_like or tagged")
        columns = [
            Column(field.encode_name, field.type, _admits_none(field.type), field.required)
            for field in msgspec.structs.fields(declared)
        ]
    elif isinstance(declared, type) and dataclasses.is_dataclass(declared):
        hints, missing = typing.get_type_hints(declared, include_extras=True), dataclasses.MISSING
        columns = [
            Column(
                field.name,
                hints[field.name],
                _admits_none(hints[field.name]),
                field.default is missing and field.default_factory is missing,
            )
            for field in dataclasses.fields(declared)
            if field.init
        ]
    else:
        raise UsageError(f"{records} can be made into a msgspec.Struct or a dataclass, not into {declared!r}")
    for column in columns:
        _check_type(column.declared, f"column '{column.name}' of {declared.__name__}")
    return columns


def _check_unique(names: list[str], file: str) -> None:
    if len(set(names)) != len(names):
        raise ConfigError(f"{file} has two columns of the same name in {names}", key="source")


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
