"""Objects in any fsspec file system: object stores, remote file systems."""

from __future__ import annotations

import contextlib
import errno
import posixpath
from collections.abc import Iterator
from typing import Any

from statestore.errors import ConfigError, StateStoreError
from statestore.io.base import Storage, checked_name, unavailable
from statestore.io.urls import redacted


class FsspecStorage(Storage):
    """A folder of any fsspec file system that is not the local one.

    `create` uses the file system's exclusive mode, which is a real conditional put on S3 and in memory. Where it is not, two
    racers could both win, so what was written is read back, which narrows the race to none for writers that differ in content.
    """

    def __init__(self, url: str, **options: Any):
        import fsspec

        self.url = redacted(url)
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, **options)
            self._files.makedirs(self._root, exist_ok=True)
        except ImportError as error:
            scheme = url.split(":", 1)[0]
            hint = f"install the extra 'statestore[{scheme}]'" if scheme in ("s3",) else "install the package it names"
            raise ConfigError(f"no driver for '{scheme}' URLs: {error}", hint=hint) from error
        except ValueError as error:
            raise ConfigError(f"bad storage URL {self.url}: {error}") from error
        except Exception as error:  # drivers have exceptions of their own
            raise unavailable(self.url, error) from error

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, checked_name(name))

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """One ranged read."""
        if length == 0:
            return b""
        with self._translated(name):
            end = None if length is None else start + length
            return bytes(self._files.cat_file(self._path(name), start=start or None, end=end))

    def write(self, name: str, data: bytes) -> None:
        """One put."""
        path = self._path(name)
        with self._translated(name):
            self._files.makedirs(posixpath.dirname(path), exist_ok=True)
            self._files.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> None:
        """One conditional put, read back."""
        path = self._path(name)
        try:
            self._files.makedirs(posixpath.dirname(path), exist_ok=True)
            self._files.pipe_file(path, data, mode="create")
        except Exception as error:
            if self.exists(name):
                if self.read(name) == data:
                    return  # ours: the reply to our put was lost, or the driver sent it twice
                raise FileExistsError(errno.EEXIST, "object exists", f"{self.url}/{name}") from error
            raise unavailable(f"{self.url}/{name}", error) from error
        if self.read(name) != data:
            raise FileExistsError(errno.EEXIST, "object exists", f"{self.url}/{name}")

    def delete(self, name: str) -> None:
        """Remove the object."""
        with self._translated(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def size(self, name: str) -> int:
        """Ask the file system, past its listing cache."""
        with self._translated(name):
            self._files.invalidate_cache()
            return int(self._files.info(self._path(name))["size"])

    def list(self, folder: str = "") -> list[str]:
        """Find all below the folder."""
        base = self._root.rstrip("/") + "/"
        with self._translated(folder):
            self._files.invalidate_cache()
            found = self._files.find(posixpath.join(self._root, folder) if folder else self._root)
        return sorted(str(path).split(base, 1)[1] for path in found if base in str(path))

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Make the file system's errors ours; a missing object stays a FileNotFoundError."""
        try:
            yield
        except (FileNotFoundError, StateStoreError):
            raise
        except Exception as error:  # drivers have exceptions of their own
            raise unavailable(f"{self.url}/{name}", error) from error
