"""The one seam through which the engine's bytes reach a disk or an object store.

Only this module opens, syncs, renames, lists or deletes. So a test can put a faulty or crashing storage below everything.

- `Storage` holds named, immutable-by-convention objects below a root: checkpoint storage and the filesystem backend use it.
- `AppendStorage` can also append to one object and sync it: the write-ahead log uses it.

Durability: when `write`, `create`, `delete` or `Appender.sync` has returned, its effect survives the death of the machine, as
far as the place can promise that (`LocalStorage` syncs the file and the folders that name it).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import posixpath
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from statestore.clock import Clock
from statestore.errors import ClosedError, ConfigError, StateStoreError, UnavailableError, UsageError

TEMPORARY_PREFIX = ".tmp-"


class Storage(ABC):
    """Named objects below a root. Names are relative, with '/' between parts."""

    url: str
    """Where the root is, without secrets: for messages and manifests."""

    @abstractmethod
    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of `name` from `start`, at most `length` of them. Raises FileNotFoundError when there is no such object."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Store `data` as `name`, replacing what was there: readers see the old bytes or the new, never a part."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Like `write`, but FileExistsError when `name` exists: of several racers exactly one returns."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove `name`; nothing happens when it is not there."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Length of `name` in bytes. Raises FileNotFoundError."""

    @abstractmethod
    def list(self, folder: str = "") -> list[str]:
        """Names below `folder`, whole and sorted, at any depth. A hint: never decide on recovery by it."""

    def exists(self, name: str) -> bool:
        """Whether `name` is there."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True


class Appender(Protocol):
    """An object being written from its beginning, in pieces."""

    def write(self, data: bytes) -> None:
        """Append `data`; not durable yet."""
        ...

    def sync(self) -> None:
        """Make all that was written durable. After an error the object must not be written again."""
        ...

    def close(self) -> None:
        """Release the object without syncing; idempotent."""
        ...


class AppendStorage(Storage):
    """Storage whose objects can grow."""

    @abstractmethod
    def appender(self, name: str) -> Appender:
        """Create `name` (FileExistsError when it is there), durable as an empty object, and append to it."""

    @abstractmethod
    def truncate(self, name: str, size: int) -> None:
        """Cut `name` to its first `size` bytes, durably."""


def checked_name(name: str) -> str:
    """`name` itself, if it stays below the root.

    Raises
    ------
    UsageError
        The name is empty, absolute, has a drive, a backslash, a NUL or a `..` part.
    """
    parts = name.split("/")
    if (
        not name
        or name.startswith("/")
        or "\\" in name
        or "\0" in name
        or ":" in parts[0]
        or {"", ".", ".."} & set(parts)
    ):
        raise UsageError(f"unsafe object name {name!r}: it must be relative, without '..'")
    return name


def _unavailable(url: str, error: Exception) -> UnavailableError:
    number, text = getattr(error, "errno", None), getattr(error, "strerror", None)
    hint = "free some space" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
    return UnavailableError("storage", url, text or error, hint=hint)


def sync_folder(path: Path) -> None:
    """Make the names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalAppender:
    """Appender on a local file."""

    def __init__(self, path: Path):
        self._path = path
        self._file: Any = path.open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append `data` with as few system calls as it takes."""
        if self._file is None:
            raise ClosedError(f"{self._path} is closed")
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _unavailable(str(self._path), error) from error

    def sync(self) -> None:
        """Flush the file's data to the disk."""
        if self._file is None:
            raise ClosedError(f"{self._path} is closed")
        try:
            os.fdatasync(self._file.fileno()) if hasattr(os, "fdatasync") else os.fsync(self._file.fileno())
        except OSError as error:
            raise _unavailable(str(self._path), error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class LocalStorage(AppendStorage):
    """A folder of the local file system, with every file and folder entry synced."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root).absolute()
        self.url = str(self.root)
        try:
            self._make_folder(self.root)
        except OSError as error:
            raise _unavailable(self.url, error) from error

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name)

    def _make_folder(self, folder: Path) -> None:
        """Create `folder` and its missing parents, each durable in its own parent."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        sync_folder(folder.parent)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read from the file."""
        with self._path(name).open("rb", buffering=0) as file:
            if start:
                file.seek(start)
            if length is None:
                return file.read()
            data = file.read(length)
            while len(data) < length and (more := file.read(length - len(data))):
                data += more
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write a temporary file, sync it, rename it over `name`, sync the folder."""
        self._place(name, data, lambda temporary, path: temporary.replace(path))

    def create(self, name: str, data: bytes) -> None:
        """Write a temporary file, sync it, hard-link it as `name` (which fails when that exists), sync the folder."""
        self._place(name, data, lambda temporary, path: path.hardlink_to(temporary))

    def _place(self, name: str, data: bytes, publish: Callable[[Path, Path], object]) -> None:
        path = self._path(name)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}")
        try:
            self._make_folder(path.parent)
            try:
                file = LocalAppender(temporary)
                try:
                    file.write(data)
                    file.sync()
                finally:
                    file.close()
                publish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)
        except (FileExistsError, UnavailableError):
            raise
        except OSError as error:
            raise _unavailable(str(path), error) from error

    def delete(self, name: str) -> None:
        """Unlink the file and sync its folder."""
        path = self._path(name)
        try:
            path.unlink()
            sync_folder(path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unavailable(str(path), error) from error

    def size(self, name: str) -> int:
        """Size from the file system."""
        return self._path(name).stat().st_size

    def list(self, folder: str = "") -> list[str]:
        """Walk the folder; temporary files are left out, symbolic links not followed."""
        names = []
        for base, _, files in os.walk(self.root / folder):
            relative = Path(base).relative_to(self.root)
            names += [(relative / file).as_posix() for file in files if not file.startswith(TEMPORARY_PREFIX)]
        return sorted(names)

    def appender(self, name: str) -> Appender:
        """Create the file, sync its folder, append."""
        path = self._path(name)
        try:
            self._make_folder(path.parent)
            appender = LocalAppender(path)
            sync_folder(path.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise _unavailable(str(path), error) from error
        return appender

    def truncate(self, name: str, size: int) -> None:
        """Cut the file and sync it."""
        path = self._path(name)
        try:
            with path.open("r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unavailable(str(path), error) from error


class MemoryAppender:
    """Appender on an object of a `MemoryStorage`."""

    def __init__(self, objects: dict[str, bytes], name: str):
        self._objects, self._name = objects, name

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._objects[self._name] += data

    def sync(self) -> None:
        """Nothing to do: memory is as durable as it gets."""

    def close(self) -> None:
        """Nothing to release."""


class MemoryStorage(AppendStorage):
    """Objects in this process's memory, for stores that need not outlive it."""

    def __init__(self, url: str = "memory:"):
        self.url = url
        self.objects: dict[str, bytes] = {}

    def _held(self, name: str) -> bytes:
        try:
            return self.objects[checked_name(name)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such object", f"{self.url}/{name}") from None

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Slice the object."""
        return self._held(name)[start : None if length is None else start + length]

    def write(self, name: str, data: bytes) -> None:
        """Set the object."""
        self.objects[checked_name(name)] = data

    def create(self, name: str, data: bytes) -> None:
        """Set the object if it is not there; atomic between threads."""
        if self.objects.setdefault(checked_name(name), data) is not data:
            raise FileExistsError(errno.EEXIST, "object exists", f"{self.url}/{name}")

    def delete(self, name: str) -> None:
        """Forget the object."""
        self.objects.pop(checked_name(name), None)

    def size(self, name: str) -> int:
        """Length of the object."""
        return len(self._held(name))

    def list(self, folder: str = "") -> list[str]:
        """All names that start with the folder."""
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        return sorted(name for name in list(self.objects) if name.startswith(prefix))

    def appender(self, name: str) -> Appender:
        """Start an empty object."""
        self.create(name, b"")
        return MemoryAppender(self.objects, name)

    def truncate(self, name: str, size: int) -> None:
        """Keep the first `size` bytes."""
        self.objects[checked_name(name)] = self._held(name)[:size]


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
            raise _unavailable(self.url, error) from error

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
            raise _unavailable(f"{self.url}/{name}", error) from error
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
            raise _unavailable(f"{self.url}/{name}", error) from error


def redacted(url: str) -> str:
    """`url` without the password and query that may hold secrets."""
    parts = urlsplit(url)
    if parts.password is None and not parts.query:
        return url
    host = parts.netloc.rsplit("@", 1)
    user = f"{parts.username or ''}:***@" if parts.password is not None else (f"{host[0]}@" if len(host) == 2 else "")
    return urlunsplit((parts.scheme, user + host[-1], parts.path, "", ""))


def local_path(url: str) -> str | None:
    """Path of a local URL or plain path, None for a remote URL."""
    if url.startswith("file://"):
        return url[len("file://") :] or "/"
    return None if "://" in url else url


def open_storage(url: str, **options: Any) -> Storage:
    """Storage at a local path, a `file://` URL or any URL that fsspec knows.

    Raises
    ------
    ConfigError
        The URL's scheme is unknown, or its driver is not installed.
    UnavailableError
        The place can't be reached or written.
    """
    path = local_path(url)
    return FsspecStorage(url, **options) if path is None else LocalStorage(path)


class FolderLock:
    """Exclusive use of a local folder by one process, held until `release` or the process's end.

    Raises
    ------
    UnavailableError
        Another process still holds it after `wait_seconds`; names its process id.
    """

    def __init__(self, folder: str | os.PathLike[str], clock: Clock, *, wait_seconds: float = 10.0):
        path = Path(folder) / "lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unavailable(str(folder), error) from error
        deadline = clock.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if clock.monotonic() >= deadline:
                    holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
                    os.close(self._descriptor)
                    hint = "stop that process, or give this one another state.dir"
                    raise UnavailableError(
                        "state folder", str(folder), f"process {holder} uses it", hint=hint
                    ) from error
                clock.sleep(0.05)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let others in; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
