"""Blocks of text as record batches, where all lines are made alike.

Lines of JSON that one program has written mostly have the same fields in the same order, with the same text between the values:

    {"key":"a","value":1}         {"key":"     ","value":     }
    {"key":"b","value":22}   is   ----------  a  ----------  1  -    twice
                                  ----------  b  ---------- 22  -

The text around the values is taken from the first line of a block. Then Arrow splits all lines at the commas, compares and cuts off what is
around the values, and converts what is left: with about a third of the time that decoding takes, and without Python's lock. A block with a
line that is made differently, that is bad, or of which this can't tell, is None: its lines are decoded.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from statestore.reading.arrow import import_pyarrow
from statestore_runtime.sources.files.row_schema import RowSchema
from statestore_runtime.sources.files.texts import Texts

if TYPE_CHECKING:
    import pyarrow

_FIELD = re.compile(rb'( *(?:\{ *)?"([^"\\]*)" *: *)(?:(")[^"\\]*(" *)|[^"\\{}\[\]: ]+( *))(\} *)?')
"""A field with all that is around it up to the comma; braces are where the line begins and ends."""


class _Field(NamedTuple):
    name: str
    prefix: bytes
    suffix: bytes
    is_text: bool


class SplitLines:
    """Splits lines at their commas, whatever these are. Threads may share it."""

    def __init__(self) -> None:
        self._pa = import_pyarrow()
        from pyarrow import csv

        self._csv: Any = csv

    def columns(self, data: bytes, count: int, wanted: Sequence[int]) -> list[pyarrow.Array] | None:
        """The wanted ones of so many columns of text; None when a line has more or fewer, or is not UTF-8."""
        csv, names = self._csv, [str(number) for number in range(count)]
        if b"\r" in data:  # which would end a line
            return None
        if not data.isascii():  # of what is not wanted Arrow does not look at it
            try:
                data.decode()
            except UnicodeDecodeError:
                return None
        try:
            table = csv.read_csv(
                self._pa.BufferReader(data),
                read_options=csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
                parse_options=csv.ParseOptions(
                    quote_char=False, double_quote=False, escape_char=False, ignore_empty_lines=False
                ),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(names, self._pa.string()),
                    include_columns=[names[number] for number in wanted],
                    strings_can_be_null=False,
                    check_utf8=False,
                ),
            )
        except self._pa.ArrowInvalid:
            return None
        return [column.combine_chunks() for column in table.columns]


class JsonLayout:
    """Makes record batches of lines of JSON. Threads may share it."""

    def __init__(self, schema: RowSchema):
        self._pa, self._schema = import_pyarrow(), schema
        self._lines, self._texts = SplitLines(), Texts()

    def batch_of(self, data: bytes) -> pyarrow.RecordBatch | None:
        """The rows of whole lines; None when this can't tell."""
        types = self._schema.plain_types
        if types is None or b"\\" in data:
            return None
        fields = _fields_of(data[: data.find(b"\n") + 1 or None])
        if fields is None or not self._are_expected(fields, types):
            return None
        columns = self._lines.columns(data, len(fields), range(len(fields)))
        if columns is None:
            return None
        made = {}
        for field, texts in zip(fields, columns, strict=True):
            values = self._values(field, texts, types.get(field.name))
            if values is None:
                return None
            made[field.name] = values
        return self._pa.record_batch([made[name] for name in types], schema=self._schema.schema)

    def _are_expected(self, fields: list[_Field], types: dict[str, Any]) -> bool:
        names = {field.name for field in fields}
        if len(names) < len(fields) or not types.keys() <= names:
            return False
        return self._schema.is_open or types.keys() == names

    def _values(self, field: _Field, texts: pyarrow.Array, kind: Any) -> pyarrow.Array | None:
        values = self._texts.within(texts, field.prefix, field.suffix)
        if values is None or (field.is_text and not self._texts.are_within_strings(values)):
            return None
        if kind is None:  # nobody wants it, but it must be good JSON
            return values if field.is_text or self._texts.are_words(values) else None
        if field.is_text is not (kind is str):
            return None
        return self._texts.converters[kind](values)


class CsvLayout:
    """Makes record batches of lines of comma-separated values. Threads may share it.

    Parameters
    ----------
    header
        Names of all columns.
    null_values
        Texts that mean None, for the fields that admit None.
    """

    def __init__(self, schema: RowSchema, header: list[str], null_values: Collection[str]):
        pa = self._pa = import_pyarrow()
        from pyarrow import compute

        self._compute: Any = compute
        self._schema, self._header = schema, header
        self._nulls = pa.array(sorted(null_values), pa.string())
        self._lines, self._texts = SplitLines(), Texts()
        types = schema.plain_types
        # In a file with one column an empty line is no record.
        self._is_certain = types is not None and types.keys() <= set(header) and len(header) > 1

    def batch_of(self, data: bytes) -> pyarrow.RecordBatch | None:
        """The rows of whole lines; None when this can't tell."""
        types = self._schema.plain_types
        if types is None or not self._is_certain or b'"' in data or data.startswith(codecs.BOM_UTF8):
            return None
        columns = self._lines.columns(data, len(self._header), [self._header.index(name) for name in types])
        if columns is None:
            return None
        made = []
        for field, texts in zip(self._schema.schema, columns, strict=True):
            if field.nullable:
                texts = self._compute.if_else(self._compute.is_in(texts, self._nulls), None, texts)
            values = self._texts.converters[types[field.name]](texts)
            if values is None:
                return None
            made.append(values)
        return self._pa.record_batch(made, schema=self._schema.schema)


def _fields_of(line: bytes) -> list[_Field] | None:
    """How a line is made; None when it is not one object of text, numbers and truths."""
    parts = [_FIELD.fullmatch(part) for part in line.removesuffix(b"\n").split(b",")]
    fields = []
    for number, part in enumerate(parts):
        if part is None:
            return None
        before, name, quote, behind_quote, behind, end = part.groups()
        if (b"{" in before) is not (number == 0) or (end is not None) is not (number == len(parts) - 1):
            return None
        prefix, suffix = before + (quote or b""), (behind_quote or behind or b"") + (end or b"")
        fields.append(_Field(name.decode(errors="replace"), prefix, suffix, quote is not None))
    return fields
