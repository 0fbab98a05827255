"""Events from files: JSON lines and CSV, plain or compressed, one file after the other."""

from __future__ import annotations

import functools
import glob
import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal, cast

import msgspec
import xxhash
import zstandard

from statestore.errors import ConfigError, CorruptionError, UnavailableError, UsageError
from statestore_runtime.sources.base import OnError, Source, SourceContext
from statestore_runtime.sources.formats import CsvReader, JsonLinesReader, RecordReader, RowConverter
from statestore_runtime.sources.memory import DEFAULT_BATCH_SIZE, checked_batch_size

Format = Literal["jsonl", "csv"]

_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}
_COMPRESSIONS = (".gz", ".zst", ".zip")
_BUFFER_BYTES = 256 * 1024
_HEAD_BYTES = 4096

PathLike = str | os.PathLike[str]


class FileSource(Source):
    """Records of files, in the order of their names (those of a list: in its order).

    The position is exact to the record, also in compressed files, which are read again from their beginning on restore. New files that
    have appeared since are read as well; files that were finished may be gone.

    Parameters
    ----------
    path
        A file, a glob pattern (`**` for folders at any depth), or a list of files.
    type
        What a record is decoded into: for JSON lines any type msgspec knows, for CSV a msgspec.Struct or a dataclass, whose fields name the
        columns that are read. Without it a record is what JSON gives, or a dict of text.
    format
        "jsonl" or "csv"; by default as the file's name ends (.jsonl, .ndjson, .json, .csv, before a .gz, .zst or .zip).
    batch_size
        Records that are processed between two looks at the clock.
    null_values
        Texts in a CSV file that mean None, for fields that admit None.
    on_error
        What happens to a record that can't be read: "fail", "skip" (it is counted), or "dead-letter" (it is written to a file of its own,
        exactly once). Default: `source.on-error` of the configuration.

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
    ):
        if format not in (None, "jsonl", "csv"):
            raise ConfigError(f"format is '{format}'", key="source.format", hint="known: jsonl, csv")
        if on_error not in (None, "fail", "skip", "dead-letter"):
            raise ConfigError(f"on_error is '{on_error}'", key="source.on-error", hint="known: fail, skip, dead-letter")
        self._path, self._type, self._format = path, type, format
        self._batch_size, self._nulls = checked_batch_size(batch_size), tuple(null_values)
        self.on_error = on_error
        self._context = SourceContext()
        self._waiting: list[str] = []
        self._done: list[str] = []
        self._current: _OpenFile | None = None

    @property
    def name(self) -> str:
        """The path."""
        if isinstance(self._path, str | os.PathLike):
            return os.fspath(self._path)
        return ", ".join(os.fspath(path) for path in self._path)

    def open(self, position: Any | None, context: SourceContext) -> None:
        """Find the files and go to `position`.

        Raises
        ------
        ConfigError
            A file is not there, or its name does not tell its format.
        UnavailableError
            A file can't be opened.
        UsageError
            The file that was being read has been replaced, shortened or removed since the checkpoint.
        """
        self.close()
        self._context = context
        position = position or {"done": [], "file": None}
        self._done = list(position["done"])
        passed = {*self._done, position["file"]}
        self._waiting = [file for file in self._find(is_first=not any(passed)) if file not in passed]
        for file in self._waiting:
            self._check(file)
        if position["file"] is not None:
            self._current = self._resume(position)

    def _find(self, *, is_first: bool) -> list[str]:
        if not isinstance(self._path, str | os.PathLike):
            files = [os.fspath(path) for path in self._path]
            if len(set(files)) != len(files):
                raise UsageError("a file is named twice in the source's list")
        elif glob.has_magic(pattern := os.fspath(self._path)) and not Path(pattern).exists():
            files = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())  # noqa: PTH207
        else:
            files = [pattern]
        if not files and is_first:
            raise ConfigError(f"no file matches {self.name}", key="source", hint=f"the current folder is {Path.cwd()}")
        return files

    def _check(self, file: str) -> None:
        if not Path(file).is_file():
            problem = f"{file} is a folder" if Path(file).is_dir() else f"there is no file {file}"
            raise ConfigError(problem, key="source", hint=f"the current folder is {Path.cwd()}")
        self._format_of(file)

    def _format_of(self, file: str) -> Format:
        if self._format is not None:
            return self._format
        suffixes = [suffix.lower() for suffix in Path(file).suffixes]
        if suffixes and suffixes[-1] in _COMPRESSIONS:
            compression = suffixes.pop()
            if compression == ".zip" and (not suffixes or suffixes[-1] not in _FORMATS):
                suffixes = [Path(_member_of(file, None)).suffix.lower()]
        if not suffixes or suffixes[-1] not in _FORMATS:
            raise ConfigError(
                f"the name of {file} does not tell its format", key="source.format", hint="give format='jsonl' or 'csv'"
            )
        return _FORMATS[suffixes[-1]]

    def _open_file(self, file: str, position: dict[str, Any] | None = None) -> _OpenFile:
        format = self._format_of(file)
        return _OpenFile(file, format, functools.partial(self._make_reader, file, format), position)

    def _make_reader(self, file: str, format: Format, stream: io.BufferedReader) -> RecordReader:
        def bad(line: int, data: bytes, problem: str) -> None:
            text = data.decode(errors="backslashreplace").rstrip("\r\n")
            self._context.bad_record(file, line, text, problem)

        if format == "csv":
            return CsvReader(stream, bad, self._converter, file)
        return JsonLinesReader(stream, bad, self._decoder)

    @functools.cached_property
    def _converter(self) -> RowConverter:
        return RowConverter(self._type, self._nulls)

    @functools.cached_property
    def _decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(Any if self._type is None else self._type)

    def _resume(self, position: dict[str, Any]) -> _OpenFile:
        file = position["file"]
        if not Path(file).is_file():
            raise UsageError(
                f"{file}, in which the checkpoint stands at line {position['line']}, is not there any more: "
                "put it back, or start over with --restore none"
            )
        return self._open_file(file, position)

    def next_batch(self) -> list[Any] | None:
        """Events of up to `batch_size` records; empty when all of them were bad.

        Raises
        ------
        BadRecordError
            A record can't be read, and the policy is "fail".
        UnavailableError, CorruptionError
            A file can't be opened, or its compressed data is damaged.
        """
        while True:
            if self._current is None:
                if not self._waiting:
                    return None
                self._current = self._open_file(self._waiting[0])
                del self._waiting[0]
            events = self._current.read(self._batch_size)
            if events is not None:
                return events
            self._done.append(self._current.file)
            self._current.close()
            self._current = None

    def position(self) -> dict[str, Any]:
        """Finished files, and the place in the one being read with what tells whether it is still the same file."""
        current = self._current.position() if self._current is not None else {"file": None}
        return {"done": list(self._done), **current}

    def close(self) -> None:
        """Close the file being read."""
        if self._current is not None:
            self._current.close()
            self._current = None


class _OpenFile:
    """A file being read, with what is needed to know it again: its size and a hash of its beginning.

    With a position it goes on from there. Raises UsageError when this is not the file that the position was taken in.
    """

    def __init__(
        self,
        file: str,
        format: Format,
        make_reader: Callable[[io.BufferedReader], RecordReader],
        position: dict[str, Any] | None,
    ):
        self.file = file
        try:
            self._raw = Path(file).open("rb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise UnavailableError("source", file, error.strerror or error) from error
        try:
            self._size = os.fstat(self._raw.fileno()).st_size
            self._head = self._raw.read(_HEAD_BYTES)
            self._raw.seek(0)
            is_plain = Path(file).suffix.lower() not in _COMPRESSIONS
            if position is not None:
                self._check_same(position, is_plain)
            stream = self._decompressed(format)
            self._stream = io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER_BYTES)
            self._reader = self._translated(make_reader, self._stream)
            if position is not None:
                skip = functools.partial(self._reader.skip_to, seek=is_plain)
                self._translated(skip, position["offset"], position["line"])
        except BaseException:
            self._raw.close()
            raise

    def _decompressed(self, format: Format) -> IO[bytes] | io.RawIOBase:
        suffix = Path(self.file).suffix.lower()
        if suffix == ".gz":
            return cast(IO[bytes], gzip.GzipFile(fileobj=self._raw, mode="rb"))
        if suffix == ".zst":
            return _ZstdFile(self._raw)
        if suffix == ".zip":
            member = _member_of(self.file, format)
            return cast(IO[bytes], self._translated(lambda: zipfile.ZipFile(self._raw).open(member)))
        return self._raw

    def _translated(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of `function`, with the errors of damaged data made ours."""
        try:
            return function(*arguments)
        except (zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, zstandard.ZstdError, EOFError) as error:
            raise CorruptionError(self.file, f"its compressed data is damaged: {error}") from error
        except OSError as error:
            if isinstance(error, UnavailableError | CorruptionError):
                raise
            raise UnavailableError("source", self.file, error.strerror or error) from error

    def read(self, count: int) -> list[Any] | None:
        """Events of the next `count` records, None at the end."""
        return cast("list[Any] | None", self._translated(self._reader.read, count))

    def position(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "offset": self._reader.offset,
            "line": self._reader.line,
            "size": self._size,
            "head_bytes": len(self._head),
            "head_hash": xxhash.xxh3_64_hexdigest(self._head),
        }

    def _check_same(self, position: dict[str, Any], is_plain: bool) -> None:
        least = position["offset"] if is_plain else position["size"]
        if self._size < least:
            raise UsageError(
                f"{self.file} has become shorter ({self._size} bytes) than when the checkpoint was made: "
                "put the old file back, or start over with --restore none"
            )
        if xxhash.xxh3_64_hexdigest(self._head[: position["head_bytes"]]) != position["head_hash"]:
            raise UsageError(
                f"{self.file} begins differently than when the checkpoint was made: "
                "put the old file back, or start over with --restore none"
            )

    def close(self) -> None:
        self._stream.close()
        self._raw.close()


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of all frames of a file; unlike zstandard's own reader it notices that the last one is cut off."""

    def __init__(self, raw: io.FileIO):
        self._raw = raw
        self._frame: Any = None
        self._waiting = b""

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`. Raises EOFError when the file ends within a frame."""
        while not self._waiting:
            data = self._raw.read(_BUFFER_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self._waiting = self._decompress(data)
        count = min(len(buffer), len(self._waiting))
        buffer[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        pieces = []
        while data:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            pieces.append(self._frame.decompress(data))
            data = b""
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
        return b"".join(pieces)


def _member_of(file: str, format: Format | None) -> str:
    """The file in a zip archive that is read: the first whose name tells the format, else the first."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [
                name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")
            ]
    except (OSError, zipfile.BadZipFile) as error:
        raise CorruptionError(file, f"it is no zip archive: {error}") from error
    if not members:
        raise CorruptionError(file, "the zip archive is empty")
    fitting = (name for name in members if format in (None, _FORMATS.get(Path(name).suffix.lower())))
    known = (name for name in fitting if Path(name).suffix.lower() in _FORMATS)
    return next(known, members[0])
