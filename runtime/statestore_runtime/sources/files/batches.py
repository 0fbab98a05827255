"""Record batches from files. Needs the extra `arrow`.

Of JSON lines and CSV threads convert blocks of lines ahead, with Arrow. A block that they can't be sure about is read as events are, by
the readers of `records` and `csv_lines`, so that good and bad lines are the same ones as there; the events are put together to a record
batch.
"""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from statestore.reading.arrow import import_pyarrow
from statestore_runtime.sources.files.blocks import Blocks, Refilled, read_lines
from statestore_runtime.sources.files.columnar import ColumnarReader
from statestore_runtime.sources.files.csv_lines import CsvReader
from statestore_runtime.sources.files.layouts import CsvLayout, JsonLayout
from statestore_runtime.sources.files.records import BadRecordHandler, JsonLinesReader, LineReader, Place, RecordReader
from statestore_runtime.sources.files.row_schema import RowSchema

if TYPE_CHECKING:
    import pyarrow


class EventBatches(RecordReader):
    """The events of another reader as record batches."""

    def __init__(self, reader: RecordReader, schema: RowSchema):
        self._reader, self._schema = reader, schema

    def read(self, count: int) -> Any:
        """See `RecordReader.read`."""
        events = self._reader.read(count)
        return None if events is None else self._schema.batch_of(events)

    def place(self) -> Place:
        """See `RecordReader.place`."""
        return self._reader.place()

    def go_to(self, place: Place) -> None:
        """See `RecordReader.go_to`."""
        self._reader.go_to(place)


class _Pieces(RecordReader):
    """Puts record batches together of smaller ones. A bad record does not count before what is in front of it is through."""

    def __init__(self) -> None:
        self._pa = import_pyarrow()
        self._failed: Exception | None = None

    def read(self, count: int) -> Any:
        """The rows of about `count` records; see `RecordReader.read`."""
        if self._failed is not None:
            raise self._failed
        pieces: list[pyarrow.RecordBatch] = []
        left = count
        while left > 0:
            try:
                piece, records = self._next(left)
            except Exception as error:
                if not pieces:
                    raise
                self._failed = error
                break
            if piece is None:
                break
            pieces.append(piece)
            left -= records
        return self._pa.concat_batches(pieces) if pieces else None

    @abstractmethod
    def _next(self, count: int) -> tuple[pyarrow.RecordBatch | None, int]:
        """Some of the next `count` records, the good ones of them, and how many there were; None at the end."""


class LineBatches(_Pieces):
    """Record batches of lines.

    Parameters
    ----------
    stream
        The file's bytes, unpacked.
    convert
        Makes a record batch of whole lines, or None when it can't tell; threads call it.
    """

    def __init__(
        self,
        stream: io.BufferedReader,
        schema: RowSchema,
        convert: Callable[[bytes], pyarrow.RecordBatch | None],
        *,
        can_seek: bool,
    ):
        super().__init__()
        self._stream, self._schema, self._can_seek = stream, schema, can_seek
        self._blocks: Blocks[Any] = Blocks(stream, convert)
        self._prefix = b""  # what a block needs in front to be read as a file
        self.offset = self.line = 0

    def place(self) -> Place:
        """As of `LineReader`."""
        return {"offset": self.offset, "line": self.line}

    def go_to(self, place: Place) -> None:
        """See `RecordReader.go_to`."""
        offset = place["offset"]
        if offset <= self.offset:
            return
        if self._can_seek:
            self._blocks.begin_with(b"")
            self._stream.seek(offset)
        else:
            self._blocks.skip(offset - self.offset)
        self.offset, self.line = offset, place["line"]

    def _next(self, count: int) -> tuple[pyarrow.RecordBatch | None, int]:
        block = self._blocks.take(count)
        if block is None:
            return None, 0
        before, made = self.line, block.made.result()
        if made is None:
            made = self._read_events(block.data, count)
        else:
            self.offset += len(block.data)
            self.line += made.num_rows
        return made, self.line - before

    def _read_events(self, data: bytes, count: int) -> pyarrow.RecordBatch:
        """The rows of whole lines, and of those behind them that a record goes on in."""
        source = Refilled(self._prefix + data, self._blocks, count)
        reader = self._reader_of(io.BufferedReader(source))
        reader.offset, reader.line = begin, _ = self.offset, self.line
        lines, events = data.count(b"\n") + (not data.endswith(b"\n")), []
        while reader.offset - begin < len(data) and (read := reader.read(lines)) is not None:
            events += read
        batch = self._schema.batch_of(events)
        self._blocks.unread(source.data[len(self._prefix) + reader.offset - begin :])
        self.offset, self.line = reader.offset, reader.line
        return batch

    @abstractmethod
    def _reader_of(self, stream: io.BufferedReader) -> LineReader:
        """Reads events from a stream of lines."""


class JsonLinesBatches(LineBatches):
    """Record batches of JSON lines."""

    def __init__(
        self, stream: io.BufferedReader, on_bad_record: BadRecordHandler, schema: RowSchema, *, can_seek: bool
    ):
        super().__init__(stream, schema, JsonLayout(schema).batch_of, can_seek=can_seek)
        self._on_bad_record, self._decoder = on_bad_record, schema.decoder()

    def _reader_of(self, stream: io.BufferedReader) -> LineReader:
        return JsonLinesReader(stream, self._on_bad_record, self._decoder, can_seek=False)


class CsvBatches(LineBatches):
    """Record batches of comma-separated values with a header line."""

    def __init__(
        self,
        stream: io.BufferedReader,
        on_bad_record: BadRecordHandler,
        schema: RowSchema,
        null_values: Sequence[str],
        file: str,
        *,
        can_seek: bool,
    ):
        self._on_bad_record, self._converter, self._file = on_bad_record, schema.converter(null_values), file
        header, data, first = self._find_header(stream)
        layout = CsvLayout(schema, header, null_values)
        super().__init__(stream, schema, layout.batch_of, can_seek=can_seek)
        if first is not None:
            self._blocks.begin_with(data[first.offset :])
            self.offset, self.line = first.offset, first.line
        self._prefix = _csv_line(header)

    def _find_header(self, stream: io.BufferedReader) -> tuple[list[str], bytes, LineReader | None]:
        """Names of the columns, what was read for them, and a reader that has come behind them; none of an empty file."""
        data = b""
        while self._converter.header is None:
            more = read_lines(stream)
            if not more:
                return [], data, None
            data += more
            first = self._reader_of(io.BufferedReader(io.BytesIO(data)))
        return self._converter.header, data, first

    def _reader_of(self, stream: io.BufferedReader) -> LineReader:
        return CsvReader(stream, self._on_bad_record, self._converter, self._file, can_seek=False)


class ColumnarBatches(_Pieces):
    """Record batches of a Parquet or Arrow file, as it has them, or of a declared type."""

    def __init__(self, reader: ColumnarReader, schema: RowSchema | None):
        super().__init__()
        self._reader, self._schema = reader, schema

    def _next(self, count: int) -> tuple[pyarrow.RecordBatch | None, int]:
        chunk = self._reader.next_chunk()
        if chunk is None:
            return None, 0
        made = chunk
        if self._schema is not None:
            made = self._schema.conformed(chunk)
            if made is None:
                made = self._schema.batch_of(self._reader.events_of(chunk))
        self._reader.pass_over(chunk.num_rows)
        return made, chunk.num_rows

    def place(self) -> Place:
        """See `RecordReader.place`."""
        return self._reader.place()

    def go_to(self, place: Place) -> None:
        """See `RecordReader.go_to`."""
        self._reader.go_to(place)


def _csv_line(fields: list[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerow(fields)
    return out.getvalue().encode()
