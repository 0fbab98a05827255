"""Where files are: on the local disk, or in anything that fsspec knows."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from statestore.errors import ConfigError, StateStoreError, UnavailableError
from statestore.io import local_path, redacted

BLOCK_BYTES = 4 << 20
"""What is fetched of a remote file at a time."""

_TAGS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "modificationTime", "created")
"""What file systems call that which differs when a file was written anew."""


class OpenedFile(ABC):
    """A file that is open. Methods raise OSError, a remote one's UnavailableError."""

    raw: io.RawIOBase
    """Its bytes."""

    @abstractmethod
    def size(self) -> int:
        """How long it is now."""

    @abstractmethod
    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of it; what `raw` reads next stays the same."""

    @abstractmethod
    def replaced(self) -> str | None:
        """What has become of its name, when that does not lead here any more."""

    def close(self) -> None:
        """Close it; idempotent."""
        self.raw.close()


class OpenedLocalFile(OpenedFile):
    """A file of the local disk."""

    def __init__(self, path: str):
        self._path = Path(path)
        self._file = self._path.open("rb", buffering=0)
        self.raw = self._file

    def size(self) -> int:
        """See `OpenedFile.size`."""
        return os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """See `OpenedFile.read_at`."""
        return os.pread(self._file.fileno(), length, offset)

    def replaced(self) -> str | None:
        """See `OpenedFile.replaced`."""
        opened = os.fstat(self._file.fileno())
        try:
            named = self._path.stat()
        except OSError as error:
            return f"is not there any more ({error.strerror})"
        is_same = (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
        return None if is_same else "has been replaced by another file"


class OpenedRemoteFile(OpenedFile):
    """A file that fsspec reads in ranges."""

    def __init__(self, files: Any, path: str, url: str):
        self._files, self._path, self._url = files, path, url
        info = info_of(files, path, url)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", url)
        if info.get("size") is None:
            raise ConfigError(f"the server does not tell the size of {url}", key="source", hint="copy the file first")
        self._size, self._tag = int(info["size"]), _tag_of(info)
        with translated(url):
            self.raw = _RemoteBytes(files.open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead"), url)

    def size(self) -> int:
        """How long it was when it was opened: a file elsewhere is replaced as a whole."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """See `OpenedFile.read_at`."""
        before = self.raw.tell()
        self.raw.seek(offset)
        data = io.BufferedReader(self.raw, max(1, length))
        try:
            return data.read(length)
        finally:
            data.detach().seek(before)

    def replaced(self) -> str | None:
        """See `OpenedFile.replaced`."""
        info = info_of(self._files, self._path, self._url)
        if info is None or (info["size"], _tag_of(info)) == (self._size, self._tag):
            return None  # one that is gone can't be read further by anybody, which is noticed then
        return "has been replaced by another file"


class _RemoteBytes(io.RawIOBase):
    """A file of fsspec, with the errors of its driver made ours."""

    def __init__(self, file: Any, url: str):
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with translated(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Places:
    """Finds and opens files by path or URL.

    Parameters
    ----------
    options
        What fsspec's file systems are made with, such as credentials.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._options = dict(options)

    def find(self, pattern: str) -> list[str]:
        """Names of the files that match a glob pattern, sorted; a pattern that is a file's own name, or none, is that."""
        if not glob.has_magic(pattern) or self.is_file(pattern):
            return [pattern]
        if not is_remote(pattern):
            if Path(pattern).exists():
                return [pattern]
            return sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())  # noqa: PTH207
        files, path = self._files_of(pattern)
        with translated(pattern):
            files.invalidate_cache()
            found: dict[str, dict[str, Any]] = files.glob(path, detail=True)
        wants_hidden = posixpath.basename(path).startswith(".")  # as glob has it on the local disk
        prefix = pattern.removesuffix(path)
        return sorted(
            prefix + name
            for name, info in found.items()
            if info["type"] == "file" and (wants_hidden or not posixpath.basename(name).startswith("."))
        )

    def is_file(self, file: str) -> bool:
        """Whether there is such a file. Raises UnavailableError when the place does not answer."""
        if not is_remote(file):
            return Path(file).is_file()
        info = info_of(*self._files_of(file), file)
        return info is not None and info["type"] == "file"

    def is_folder(self, file: str) -> bool:
        """Whether it is one."""
        if not is_remote(file):
            return Path(file).is_dir()
        info = info_of(*self._files_of(file), file)
        return info is not None and info["type"] == "directory"

    def open(self, file: str) -> OpenedFile:
        """Open a file. Raises FileNotFoundError when there is none, UnavailableError when it can't be read."""
        if is_remote(file):
            return OpenedRemoteFile(*self._files_of(file), file)
        try:
            return OpenedLocalFile(file)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnavailableError("source", file, error.strerror or error) from error

    def _files_of(self, url: str) -> tuple[Any, str]:
        """The file system of a URL, and the path in it. Raises ConfigError when there is none."""
        import fsspec

        scheme = url.partition("://")[0]
        try:
            return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **self._options))
        except ImportError as error:
            hint = f"install the extra 'statestore[{scheme}]'" if scheme == "s3" else "install the package it names"
            raise ConfigError(f"no driver for '{scheme}' URLs: {error}", key="source", hint=hint) from error
        except ValueError as error:
            raise ConfigError(
                f"{url} can't be read: {error}", key="source", hint="a path, or a URL of fsspec"
            ) from error
        except Exception as error:  # drivers have exceptions of their own
            raise UnavailableError("source", url, error) from error


def is_remote(file: str) -> bool:
    """Whether it is a URL of another place than the local disk."""
    return local_path(file) is None


def named(file: str) -> str:
    """A path or URL as the name of a split. Raises ConfigError for one with secrets, as names are in checkpoints and messages."""
    path = local_path(file)
    if path is not None:
        return path
    parts = urlsplit(file)
    if parts.password is not None or (parts.scheme in ("http", "https") and parts.query):
        raise ConfigError(f"{redacted(file)} holds a secret", key="source", hint="give it as storage_options=")
    if "::" in file:
        raise ConfigError(f"'{file}' is a chain of URLs", key="source", hint="give one URL")
    return file


def _tag_of(info: Mapping[str, Any]) -> str:
    return str(next((info[name] for name in _TAGS if info.get(name) is not None), ""))


def info_of(files: Any, path: str, url: str) -> dict[str, Any] | None:
    """What a file system knows of a path now; None when nothing is there."""
    with translated(url):
        files.invalidate_cache()
        try:
            info: dict[str, Any] = files.info(path)
        except FileNotFoundError:
            return None
        return info


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Make the errors of a driver ours."""
    try:
        yield
    except StateStoreError:
        raise
    except Exception as error:  # drivers have exceptions of their own
        raise UnavailableError("source", url, str(error) or type(error).__name__) from error
