"""Rows of Parquet and Arrow files as typed events. Needs the extra `arrow`.

A file is read group by group: a row group of Parquet, a record batch of Arrow. A place is a group and the rows of it that were handed
out, so that going on reads no group before it.
"""

from __future__ import annotations

import io
import itertools
import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from statestore.errors import ConfigError, CorruptionError, StateStoreError, UnavailableError
from statestore.reading.arrow import import_pyarrow
from statestore_runtime.sources.files.conversion import ColumnConverter
from statestore_runtime.sources.files.records import BadRecordHandler, Place, RecordReader

if TYPE_CHECKING:
    import pyarrow

CHUNK_ROWS = 8192
"""Rows that are decoded at a time: less costs more calls, more costs memory."""

_FILE_MAGIC = b"ARROW1"
_FEATHER_1_MAGIC = b"FEA1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


class ColumnarReader(RecordReader):
    """Reads the rows of one file.

    Parameters
    ----------
    chunk_rows
        Rows that are decoded at a time.

    Attributes
    ----------
    columns : list
        Names of those that are needed.

    Raises
    ------
    ConfigError
        pyarrow is not installed, or a column is missing.
    CorruptionError
        The file is not what its name says, or damaged.
    """

    def __init__(
        self,
        raw: io.RawIOBase,
        on_bad_record: BadRecordHandler,
        converter: ColumnConverter,
        file: str,
        chunk_rows: int = CHUNK_ROWS,
    ):
        self._pa = import_pyarrow()
        self._file, self._on_bad_record, self._chunk_rows = file, on_bad_record, chunk_rows
        self._group = self._row_in_group = self._row = 0
        with _Translated(self._pa, file):
            names = self._open(raw)
        self.columns, self._convert = converter.bind(names, file)
        self._chunks = self._chunks_from(0, 0)
        self._chunk: list[list[Any]] = []
        self._used = self._chunk_size = 0

    @abstractmethod
    def _open(self, raw: io.RawIOBase) -> list[str]:
        """Open the file; returns the names of its columns."""

    @abstractmethod
    def _groups(self, first: int) -> Iterator[Iterator[pyarrow.RecordBatch]]:
        """The groups from one on, each as its record batches, with the needed columns or more."""

    def place(self) -> Place:
        """The group, the rows of it before this one, and the rows of the file before this one."""
        return {"group": self._group, "row_in_group": self._row_in_group, "row": self._row}

    def go_to(self, place: Place) -> None:
        """See `RecordReader.go_to`."""
        self._group, self._row_in_group, self._row = place["group"], place["row_in_group"], place["row"]
        self._chunks = self._chunks_from(self._group, self._row_in_group)

    def next_chunk(self) -> pyarrow.RecordBatch | None:
        """The next rows, with the needed columns or more, None at the end; `place` is before them."""
        with _Translated(self._pa, self._file):
            chunk = next(self._chunks, None)
        if chunk is None:
            return None
        self._group, self._row_in_group, rows = chunk
        return rows

    def pass_over(self, count: int) -> None:
        """Stand behind so many rows of the chunk."""
        self._row_in_group += count
        self._row += count

    def _chunks_from(self, first: int, skipped: int) -> Iterator[tuple[int, int, pyarrow.RecordBatch]]:
        """(group, rows of it before, rows) from a place on."""
        for number, batches in enumerate(self._groups(first), first):
            before = 0
            for batch in batches:
                for begin in range(0, batch.num_rows, self._chunk_rows):
                    piece = batch.slice(begin, self._chunk_rows)
                    unwanted = max(0, skipped - before)
                    if unwanted < piece.num_rows:
                        yield number, before + unwanted, piece.slice(unwanted)
                    before += piece.num_rows
            skipped = 0

    def _values(self, column: pyarrow.Array) -> list[Any]:
        pa, kind = self._pa, column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.dictionary_decode(), kind.value_type
        values = cast(list[Any], column.cast(_without_nanoseconds(pa, kind), safe=False).to_pylist())
        return [None if pairs is None else dict(pairs) for pairs in values] if pa.types.is_map(kind) else values

    def read(self, count: int) -> list[Any] | None:
        """See `RecordReader.read`."""
        while self._used == self._chunk_size:
            chunk = self.next_chunk()
            if chunk is None:
                return None
            self._chunk, self._chunk_size, self._used = self._values_of(chunk), chunk.num_rows, 0
        end = min(self._used + count, self._chunk_size)
        events = self._events_of([values[self._used : end] for values in self._chunk])
        count = end - self._used
        self._used = end
        self.pass_over(count)
        return events

    def events_of(self, chunk: pyarrow.RecordBatch) -> list[Any]:
        """Events of the next rows. Raises what the bad record handler does."""
        return self._events_of(self._values_of(chunk))

    def _values_of(self, chunk: pyarrow.RecordBatch) -> list[list[Any]]:
        with _Translated(self._pa, self._file):
            return [self._values(chunk.column(name)) for name in self.columns]

    def _events_of(self, columns: list[list[Any]]) -> list[Any]:
        try:
            return self._convert(columns)
        except (ValueError, TypeError):  # msgspec's errors are ValueErrors; the others are of the type's own checks
            return self._convert_singly(columns)

    def _convert_singly(self, columns: list[list[Any]]) -> list[Any]:
        events = []
        for number, values in enumerate(zip(*columns, strict=True), self._row + 1):
            try:
                events += self._convert([[value] for value in values])
            except (ValueError, TypeError) as error:
                row = dict(zip(self.columns, values, strict=True))
                self._on_bad_record(number, repr(row), str(error))
        return events


class ParquetReader(ColumnarReader):
    """Rows of a Parquet file, of the columns that are needed."""

    def _open(self, raw: io.RawIOBase) -> list[str]:
        from pyarrow import parquet

        self._parquet = parquet.ParquetFile(raw, page_checksum_verification=True)
        return list(self._parquet.schema_arrow.names)

    def _groups(self, first: int) -> Iterator[Iterator[pyarrow.RecordBatch]]:
        for group in range(first, self._parquet.num_row_groups):
            yield self._parquet.iter_batches(self._chunk_rows, row_groups=[group], columns=self.columns)


class ArrowReader(ColumnarReader):
    """Rows of an Arrow IPC file (Feather 2 is one) or stream."""

    def _open(self, raw: io.RawIOBase) -> list[str]:
        ipc = self._pa.ipc
        magic = raw.read(len(_FILE_MAGIC))
        if magic.startswith(_FEATHER_1_MAGIC):
            raise ConfigError(f"{self._file} is of Feather's old version 1", key="source", hint="write it as version 2")
        self._is_stream = magic != _FILE_MAGIC
        if self._is_stream:
            raw.seek(max(0, raw.seek(0, os.SEEK_END) - len(_STREAM_END)))
            if raw.read() != _STREAM_END:
                raise CorruptionError(self._file, "it is no Arrow file, or was cut off before its end mark")
        raw.seek(0)
        self._reader = ipc.open_stream(raw) if self._is_stream else ipc.open_file(raw)
        return list(self._reader.schema.names)

    def _groups(self, first: int) -> Iterator[Iterator[pyarrow.RecordBatch]]:
        if self._is_stream:  # read for the first time here: what is skipped is read too
            yield from (iter([batch]) for batch in itertools.islice(self._reader, first, None))
        else:
            for number in range(first, self._reader.num_record_batches):
                yield iter([self._reader.get_batch(number)])


def _without_nanoseconds(pa: Any, kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type whose values Python's own types can hold: they go down to microseconds."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if pa.types.is_list(kind):
        return pa.list_(_without_nanoseconds(pa, kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_without_nanoseconds(pa, kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_without_nanoseconds(pa, kind.value_type), kind.list_size)
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _without_nanoseconds(pa, kind.item_type))
    if pa.types.is_struct(kind):
        fields = (kind.field(number) for number in range(kind.num_fields))
        return pa.struct([field.with_type(_without_nanoseconds(pa, field.type)) for field in fields])
    return kind


class _Translated:
    """`with` block in which what Arrow can't read, or Python can't hold, is a damaged file."""

    def __init__(self, pa: Any, file: str):
        self._errors, self._file = (pa.ArrowException, OSError, ValueError, OverflowError), file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, self._errors) or isinstance(error, StateStoreError):
            return
        if isinstance(error, OSError) and error.errno is not None:
            raise UnavailableError("source", self._file, error.strerror or error) from error
        raise CorruptionError(self._file, f"it can't be read: {error}") from error
