"""Events as the bytes of a Parquet file. Needs the extra `arrow`."""

from __future__ import annotations

import datetime
import decimal
from typing import TYPE_CHECKING, Any

import msgspec

from statestore.errors import ConfigError
from statestore_runtime.sinks.encoding import FileEncoder, OtherSchemaError, names_of

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_GROUP = 1 << 16
GROUP_BYTES = 32 << 20

_ARROW_TYPES = (bytes, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)


def import_pyarrow() -> Any:
    """The package, with its module for Parquet. Raises ConfigError when it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        hint = "install the extra 'statestore[arrow]'"
        raise ConfigError("Parquet files need pyarrow, which is not installed", hint=hint) from error
    return pyarrow


class ParquetEncoder(FileEncoder):
    """Rows in groups of about 64 Ki.

    Parameters
    ----------
    schema
        Of every file. None: that of the file's first batch. A batch that does not fit it needs another file.
    compression
        As `pyarrow.parquet.ParquetWriter` has it.
    """

    def __init__(self, schema: pyarrow.Schema | None, compression: str):
        self._pa = import_pyarrow()
        self._schema, self._is_given, self._compression = schema, schema is not None, compression
        self._batches: list[pyarrow.RecordBatch] = []
        self._rows = 0
        self._output = _Output()
        self._writer: Any = None

    def encode(self, batch: list[Any]) -> bytes:
        """See `FileEncoder.encode`; mostly there are no bytes yet."""
        try:
            record_batch = self._fitted(self._record_batch(batch))
            if self._writer is None:  # which does not take every schema that Arrow has
                self._writer = self._new_writer(record_batch.schema)
        except (self._pa.ArrowException, NotImplementedError) as error:
            # Arrow says the latter of types that it has no column for.
            raise ValueError(f"{error}; FileSink(schema=) says what the columns are") from error
        self._schema = record_batch.schema
        self._batches.append(record_batch)
        self._rows += record_batch.num_rows
        self.waiting_bytes += record_batch.nbytes
        if self._rows >= ROWS_PER_GROUP or self.waiting_bytes >= GROUP_BYTES:
            self._write_group()
        return self._output.taken()

    def _record_batch(self, batch: list[Any]) -> pyarrow.RecordBatch:
        array = self._pa.array([_row(event) for event in batch])
        if array.type.num_fields == 0:
            raise TypeError("it has no fields")
        return self._pa.RecordBatch.from_struct_array(array)

    def _fitted(self, found: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
        """The same rows in the file's schema."""
        schema = self._schema
        if schema is None or found.schema.equals(schema):
            return found
        if self._is_given:
            lost = _lost_field(self._pa, found.schema, schema)
            if lost:
                raise ValueError(f"the schema has no field '{lost}'")
            return self._cast(found, schema)
        try:
            if self._pa.unify_schemas([schema, found.schema], promote_options="permissive").equals(schema):
                return self._cast(found, schema)
        except self._pa.ArrowException:
            pass
        raise OtherSchemaError

    def _cast(self, found: pyarrow.RecordBatch, schema: pyarrow.Schema) -> pyarrow.RecordBatch:
        names = found.schema.names
        columns = [
            found.column(field.name).cast(field.type)
            if field.name in names
            else self._pa.nulls(found.num_rows, field.type)
            for field in schema
        ]
        for field, column in zip(schema, columns, strict=True):
            if not field.nullable and column.null_count:
                raise ValueError(f"'{field.name}' is missing or None, which the schema does not admit")
        return self._pa.RecordBatch.from_arrays(columns, schema=schema)

    def _new_writer(self, schema: pyarrow.Schema) -> Any:
        self._output = _Output()  # without what a writer has left that could not be made
        return self._pa.parquet.ParquetWriter(self._output, schema, compression=self._compression)

    def _write_group(self) -> None:
        if self._batches:
            self._writer.write_table(self._pa.Table.from_batches(self._batches), row_group_size=ROWS_PER_GROUP)
        self._batches, self._rows, self.waiting_bytes = [], 0, 0

    def finish(self) -> bytes:
        """The last group and the footer."""
        self._write_group()
        self._writer.close()
        return self._output.taken()


class _Output:
    """What Arrow takes for a file, and what it wrote can be taken from."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(self._pieces[-1])

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _row(event: Any) -> dict[str, Any]:
    names = names_of(event)
    if names is None:
        raise TypeError("a plain tuple has no names for its fields")
    if isinstance(event, tuple):
        event = dict(zip(names, event, strict=True))
    row: dict[str, Any] = msgspec.to_builtins(event, builtin_types=_ARROW_TYPES, enc_hook=_as_list)
    return row


def _as_list(array: Any) -> Any:
    if not hasattr(array, "tolist"):
        raise TypeError(f"{type(array).__name__} has no Arrow type")
    return array.tolist()


def _lost_field(pa: Any, found: Any, wanted: Any) -> str | None:
    """A field of a schema or type that a cast to `wanted` would drop."""
    if isinstance(found, pa.Schema) or (pa.types.is_struct(found) and pa.types.is_struct(wanted)):
        of_wanted = {field.name: field.type for field in wanted}
        for field in found:
            if field.name not in of_wanted:
                return str(field.name)
            lost = _lost_field(pa, field.type, of_wanted[field.name])
            if lost:
                return f"{field.name}.{lost}"
    elif pa.types.is_list(found) and hasattr(wanted, "value_type"):
        return _lost_field(pa, found.value_type, wanted.value_type)
    return None
