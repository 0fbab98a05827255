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

CONFLICTS_MAX = 5
"""Answers 409 in a row (another put of the same name goes on) before the storage counts as unavailable."""


class FsspecStorage(Storage):
    """A folder of any fsspec file system that is not the local one.

    `create` uses the file system's exclusive mode, which is a real conditional put on S3 and in memory. Where it is none, it still
    never replaces what was there before it looked, and what was written is read back: only racers within that instant could both win.
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
        """A look, one conditional put, read back."""
        path = self._path(name)
        if self.exists(name):
            self._check_ours(name, data)
            return
        for attempt in range(CONFLICTS_MAX):
            try:
                self._files.makedirs(posixpath.dirname(path), exist_ok=True)
                self._files.pipe_file(path, data, mode="create")
                break
            except Exception as error:
                if self.exists(name):
                    break
                if not (_is_conflict(error) and attempt + 1 < CONFLICTS_MAX):
                    raise unavailable(f"{self.url}/{name}", error) from error
        self._check_ours(name, data)

    def _check_ours(self, name: str, data: bytes) -> None:
        """Raise FileExistsError unless `name` is what we put: the reply to our put may have been lost, or the driver have sent it twice."""
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

    def modified(self, name: str) -> float:
        """Ask the file system, past its listing cache."""
        with self._translated(name):
            self._files.invalidate_cache()
            try:
                return float(self._files.modified(self._path(name)).timestamp())
            except NotImplementedError:  # how fsspec says that a file system can't
                raise unavailable(self.url, OSError("the place does not tell when an object was written")) from None

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


def _is_conflict(error: BaseException | None) -> bool:
    """Whether an HTTP server said 409: it decided nothing, so the same put may be sent again."""
    while error is not None:
        response = getattr(error, "response", None)
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        if 409 in (status, getattr(error, "status", None)):
            return True
        error = error.__cause__
    return False
