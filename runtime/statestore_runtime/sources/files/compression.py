"""The bytes of a file that may be compressed."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from statestore.errors import ConfigError, CorruptionError

COMPRESSIONS = (".gz", ".zst", ".zip")
DAMAGED = (zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, zstandard.ZstdError, EOFError)
"""What reading damaged data raises."""

BUFFER_BYTES = 256 * 1024


def compression_of(file: str) -> str | None:
    """The suffix that says how a file is compressed."""
    suffix = Path(file).suffix.lower()
    return suffix if suffix in COMPRESSIONS else None


def unpacked(raw: io.RawIOBase, file: str, is_wanted: Callable[[str], bool]) -> io.BufferedReader:
    """A stream of a file's bytes.

    Parameters
    ----------
    raw
        The open file; closing the stream need not close it.
    is_wanted
        Which names of a zip archive's members are of the format that is read.

    Raises
    ------
    CorruptionError
        It is no such archive, or it is empty.
    ConfigError
        The archive's file has a password, or is packed in a way that can't be read.
    """
    compression = compression_of(file)
    stream: Any = raw
    if compression == ".gz":
        stream = gzip.GzipFile(fileobj=cast(Any, raw), mode="rb")
    elif compression == ".zst":
        stream = _ZstdFile(raw)
    elif compression == ".zip":
        stream = _unzipped(raw, file, is_wanted)
    return io.BufferedReader(cast(io.RawIOBase, stream), BUFFER_BYTES)


def _unzipped(raw: io.RawIOBase, file: str, is_wanted: Callable[[str], bool]) -> IO[bytes]:
    member = zip_member(raw, file, is_wanted)
    try:
        return zipfile.ZipFile(cast(IO[bytes], raw)).open(member)
    except (RuntimeError, NotImplementedError) as error:
        hint = "unpack it, or pack it with Deflate and without a password"
        raise ConfigError(f"'{member}' in {file} can't be read: {error}", key="source", hint=hint) from error


def zip_member(raw: io.RawIOBase, file: str, is_wanted: Callable[[str], bool]) -> str:
    """The file in a zip archive that is read: the first that is wanted, else the first. Raises CorruptionError."""
    try:
        with zipfile.ZipFile(cast(IO[bytes], raw)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise CorruptionError(file, f"it is no zip archive: {error}") from error
    members = [name for name in names if not name.endswith("/") and not name.startswith("__MACOSX")]
    if not members:
        raise CorruptionError(file, "the zip archive is empty")
    return next(filter(is_wanted, members), members[0])


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of all frames of a file; unlike zstandard's own reader it notices that the last one is cut off."""

    def __init__(self, raw: io.RawIOBase):
        self._raw = raw
        self._frame: Any = None
        self._waiting = b""

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`. Raises EOFError when the file ends within a frame."""
        while not self._waiting:
            data = self._raw.read(BUFFER_BYTES)
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
