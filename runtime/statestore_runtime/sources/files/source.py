"""Files as splits: which there are, and what each holds."""

from __future__ import annotations

import copy
import functools
import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from statestore.errors import ConfigError, UnavailableError, UsageError
from statestore.reading.arrow import import_pyarrow
from statestore_runtime.sources.base import (
    DEFAULT_BATCH_SIZE,
    OnError,
    Source,
    SourceContext,
    SplitReader,
    Unit,
    checked_batch_size,
)
from statestore_runtime.sources.files.compression import COMPRESSIONS, compression_of, unpacked, zip_member
from statestore_runtime.sources.files.conversion import ColumnConverter, RowConverter
from statestore_runtime.sources.files.csv_lines import CsvReader
from statestore_runtime.sources.files.places import OpenedFile, Places, is_remote, named
from statestore_runtime.sources.files.reader import FileReader
from statestore_runtime.sources.files.records import BadRecordHandler, JsonLinesReader, RecordReader

if TYPE_CHECKING:
    from statestore_runtime.sources.files.row_schema import RowSchema

Format = Literal["jsonl", "csv", "parquet", "arrow"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
}
_COLUMNAR = ("parquet", "arrow")

PathLike = str | os.PathLike[str]


class FileSource(Source):
    """Records of files. Each file is a split; a worker reads its files in the order of their names (those of a list: in its order).

    A position is exact to the record, also in compressed files, which are read again from their beginning on restore. New files that
    have appeared since are read as well; files that were finished may be gone.

    Parameters
    ----------
    path
        A file, a glob pattern (`**` for folders at any depth), or a list of files: paths, or URLs that fsspec knows, such as
        "s3://bucket/folder/*.jsonl". What is not local is read in ranges.
    type
        What a record is decoded into: for JSON lines any type msgspec knows; for CSV a msgspec.Struct or a dataclass, whose fields name the
        columns that are read; for Parquet and Arrow one of these, or a type of dicts. Without it a record is what JSON gives, a dict of
        text, or a dict of what Arrow gives.
    format
        "jsonl", "csv", "parquet" or "arrow"; by default as the file's name ends (.jsonl, .ndjson, .json, .csv, before a .gz, .zst or
        .zip; .parquet; .arrow, .arrows, .feather).
    batch_size
        Records that are processed between two looks at the clock, at most.
    null_values
        Texts in a CSV file that mean None, for fields that admit None.
    on_error
        What happens to a record that can't be read: "fail", "skip" (it is counted), or "dead-letter" (it is written to a file of its own,
        exactly once). Default: `source.on-error` of the configuration.
    follow
        Files of JSON lines or CSV never end: what is appended to them is read, each line when its newline is there. A file must only grow.
    discovery_interval
        Seconds between looks for new files that match a glob pattern; the source does not end then. A file must be complete when it
        appears under its name (move it there), unless it is followed.
    rate_limit
        Events per second and worker.
    storage_options
        What fsspec's file system is made with, such as credentials: they don't belong into a URL.

    Raises
    ------
    UsageError, ConfigError
        An argument can't be served.
    """

    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        *,
        type: Any = None,
        format: Format | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        null_values: Sequence[str] = ("",),
        on_error: OnError | None = None,
        follow: bool = False,
        discovery_interval: float | None = None,
        rate_limit: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ):
        if format is not None and format not in get_args(Format):
            raise ConfigError(
                f"format is '{format}'", key="source.format", hint=f"known: {', '.join(get_args(Format))}"
            )
        self._type, self._format = type, format
        self._is_list = not isinstance(path, str | os.PathLike)
        paths = [path] if isinstance(path, str | os.PathLike) else path
        self._paths = [named(os.fspath(each)) for each in paths]
        self._places = Places(storage_options or {})
        self._batch_size, self._nulls = checked_batch_size(batch_size), tuple(null_values)
        self._is_followed, self._in_batches = follow, False
        self._set_options(on_error, rate_limit, discovery_interval)
        self.resumes_finished = False  # a file that was read to its end may be gone
        self.is_concurrent = follow  # the first file would keep the others waiting for ever

    def record_batches(self, batch_rows: int) -> FileSource:
        """The same source, whose batches are record batches of about so many rows; see `Job.record_batches`.

        Raises
        ------
        UsageError
            The type has none.
        ConfigError
            pyarrow is not installed.
        """
        import_pyarrow()
        made = copy.copy(self)
        made._batch_size, made._in_batches = checked_batch_size(batch_rows), True
        if self._type is not None:
            made._row_schema  # noqa: B018 - a type that has none is an error here
        return made

    @property
    def name(self) -> str:
        """The path."""
        return ", ".join(self._paths)

    def discover(self, known: Collection[str]) -> list[str]:
        """The files that are there and not known.

        Raises
        ------
        ConfigError
            A file is not there, no file is, or a name does not tell a format that can be read.
        UsageError
            A file is named twice, or needs a type.
        """
        files = self._find()
        if not files and not known and self.discovery_interval is None:
            raise ConfigError(f"no file matches {self.name}", key="source", hint=_hint(self.name))
        found = [file for file in files if file not in known]
        for file in found:
            self._check(file)
        return found

    def _find(self) -> list[str]:
        if not self._is_list:
            return self._places.find(self._paths[0])
        spellings = [path if is_remote(path) else os.path.abspath(path) for path in self._paths]  # noqa: PTH100 - no look at links
        twice = next(
            (path for path, spelling in zip(self._paths, spellings, strict=True) if spellings.count(spelling) > 1), None
        )
        if twice is not None:
            raise UsageError(f"the file {twice} is named twice in the source's list: name it once")
        return self._paths

    def _check(self, file: str) -> None:
        if file in self._paths and not self._places.is_file(file):  # what a pattern found is there
            if self._places.is_folder(file):
                hint = f"give a pattern such as {file.rstrip('/')}/*.jsonl"
                raise ConfigError(f"{file} is a folder", key="source", hint=hint)
            raise ConfigError(f"there is no file {file}", key="source", hint=_hint(file))
        format = self._format_of(file)
        if self._is_followed and (format in _COLUMNAR or compression_of(file) or is_remote(file)):
            raise ConfigError(
                f"{file} can't be followed", key="source", hint="plain JSON lines and CSV of the local disk can"
            )
        if self._in_batches and self._type is None and format not in _COLUMNAR:
            raise UsageError(
                f"{file} is read as record batches: give FileSource type=, which says what columns these have"
            )
        if format in _COLUMNAR and compression_of(file):
            hint = "unpack it: these formats compress their data themselves"
            raise ConfigError(f"{file} is a compressed file of format {format}", key="source", hint=hint)

    def _format_of(self, file: str) -> Format:
        if self._format is not None:
            return self._format
        suffixes = [suffix.lower() for suffix in Path(file).suffixes]
        if suffixes and suffixes[-1] in COMPRESSIONS:
            compression = suffixes.pop()
            if compression == ".zip" and (not suffixes or suffixes[-1] not in _FORMATS):
                suffixes = [Path(self._member_of(file)).suffix.lower()]
        if not suffixes or suffixes[-1] not in _FORMATS:
            known = ", ".join(f"'{format}'" for format in get_args(Format))
            raise ConfigError(
                f"the name of {file} does not tell its format",
                key="source.format",
                hint=f"give format=, one of {known}; what is packed ends in {', '.join(COMPRESSIONS)}",
            )
        return _FORMATS[suffixes[-1]]

    def _member_of(self, archive: str) -> str:
        opened = self._places.open(archive)
        try:
            return zip_member(opened.raw, archive, lambda name: _format_named(name) is not None)
        finally:
            opened.close()

    def read(self, split: str, position: Any | None, context: SourceContext) -> SplitReader:
        """Open a file.

        Raises
        ------
        UsageError
            The file has been replaced, shortened or removed since the checkpoint.
        ConfigError
            A column is missing, or pyarrow is not installed.
        UnavailableError, CorruptionError
            The file can't be opened, or is damaged.
        """
        opened = self._open(split, position)
        try:
            format = self._format_of(split)
        except BaseException:
            opened.close()
            raise
        return FileReader(
            split,
            opened,
            functools.partial(self._make_reader, split, format, context),
            position,
            batch_size=self._batch_size,
            may_grow=format not in _COLUMNAR and compression_of(split) is None,
            is_fixed=format in _COLUMNAR,
            is_followed=self._is_followed,
        )

    def _open(self, split: str, position: Any | None) -> OpenedFile:
        try:
            return self._places.open(split)
        except FileNotFoundError:
            if position is None:
                raise UnavailableError("source", split, "it is not there any more", hint="put it back") from None
        unit = "line" if "line" in position else "row"
        raise UsageError(
            f"{split}, in which the checkpoint stands at {unit} {position[unit]}, is not there any more: "
            "put it back, or start over with --restore none"
        )

    def _make_reader(self, file: str, format: Format, context: SourceContext, raw: io.RawIOBase) -> RecordReader:
        unit: Unit = "row" if format in _COLUMNAR else "line"

        def bad(number: int, text: str, problem: str) -> None:
            context.bad_record(file, unit, number, text, problem)

        if format in _COLUMNAR:
            return self._columnar_reader(file, format, bad, raw)
        stream = unpacked(raw, file, lambda name: _format_named(name) == format)
        can_seek, is_growing = compression_of(file) is None, self._is_followed
        if self._in_batches:
            return self._batch_reader(file, format, bad, stream, can_seek)
        if format == "csv":
            return CsvReader(stream, bad, self._row_converter, file, can_seek=can_seek, is_growing=is_growing)
        return JsonLinesReader(stream, bad, self._decoder, can_seek=can_seek, is_growing=is_growing)

    def _columnar_reader(self, file: str, format: Format, bad: BadRecordHandler, raw: io.RawIOBase) -> RecordReader:
        from statestore_runtime.sources.files.columnar import ArrowReader, ParquetReader  # few jobs need them

        kind = ParquetReader if format == "parquet" else ArrowReader
        if not self._in_batches:
            return kind(raw, bad, self._column_converter, file)
        from statestore_runtime.sources.files.batches import ColumnarBatches

        schema = self._row_schema if self._type is not None else None
        converter = self._column_converter if schema is None else schema.column_converter()
        return ColumnarBatches(kind(raw, bad, converter, file, self._batch_size), schema)

    def _batch_reader(
        self, file: str, format: Format, bad: BadRecordHandler, stream: io.BufferedReader, can_seek: bool
    ) -> RecordReader:
        from statestore_runtime.sources.files.batches import CsvBatches, EventBatches, JsonLinesBatches

        schema = self._row_schema
        if self._is_followed:  # what is there at a time is little, and its last line may not be whole
            if format == "csv":
                converter = schema.converter(self._nulls)
                return EventBatches(CsvReader(stream, bad, converter, file, can_seek=True, is_growing=True), schema)
            lines = JsonLinesReader(stream, bad, schema.decoder(), can_seek=True, is_growing=True)
            return EventBatches(lines, schema)
        if format == "csv":
            return CsvBatches(stream, bad, schema, self._nulls, file, can_seek=can_seek)
        return JsonLinesBatches(stream, bad, schema, can_seek=can_seek)

    @functools.cached_property
    def _row_schema(self) -> RowSchema:
        from statestore_runtime.sources.files.row_schema import RowSchema

        return RowSchema(self._type)

    @functools.cached_property
    def _row_converter(self) -> RowConverter:
        return RowConverter(self._type, self._nulls)

    @functools.cached_property
    def _column_converter(self) -> ColumnConverter:
        return ColumnConverter(self._type)

    @functools.cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(Any if self._type is None else self._type)


def _hint(file: str) -> str:
    return "is the URL right?" if is_remote(file) else f"the current folder is {Path.cwd()}"


def _format_named(name: str) -> Format | None:
    return _FORMATS.get(Path(name).suffix.lower())
