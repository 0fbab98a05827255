"""Files of the local disk, and the lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from statestore.clock import Clock
from statestore.errors import ClosedError, CorruptionError, UnavailableError
from statestore.io.base import Appender, AppendStorage, checked_name, unavailable

TEMPORARY_PREFIX = ".tmp-"
HASTEN_MIN_BYTES = 256 << 10
"""The disk begins at once to write what is as long as this, so that there is less to wait for when it is synced."""


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
            raise unavailable(str(self._path), error) from error
        if len(data) >= HASTEN_MIN_BYTES:
            self._hasten(len(data))

    def _hasten(self, size: int) -> None:
        """Have the disk begin to write the last `size` bytes, where the system takes the hint; `sync` still tells whether it could."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                # Linux begins to write what it is told to drop from its cache, and drops what is written already.
                os.posix_fadvise(self._file.fileno(), self._file.tell() - size, size, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Flush the file's data to the disk."""
        if self._file is None:
            raise ClosedError(f"{self._path} is closed")
        try:
            os.fdatasync(self._file.fileno()) if hasattr(os, "fdatasync") else os.fsync(self._file.fileno())
        except OSError as error:
            raise unavailable(str(self._path), error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class LocalStorage(AppendStorage):
    """A folder of the local file system, with every file and folder entry synced.

    Folders may be symbolic links, objects not: reading one raises CorruptionError.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root).absolute()
        self.url = str(self.root)
        try:
            self._make_folder(self.root)
        except OSError as error:
            raise unavailable(self.url, error) from error

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
        descriptor = self._opened(f"{self.url}/{checked_name(name)}")  # a Path would take as long as the reading
        try:
            if length is None:
                with FileIO(descriptor, closefd=False) as file:
                    file.seek(start)
                    return file.read()
            data = os.pread(descriptor, length, start)
            while len(data) < length and (more := os.pread(descriptor, length - len(data), start + len(data))):
                data += more
            return data
        finally:
            os.close(descriptor)

    @staticmethod
    def _opened(path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CorruptionError(path, "it is a symbolic link, which nothing here makes") from error
            raise

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
            try:
                file = self._temporary(temporary)
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
            raise unavailable(str(path), error) from error

    def _temporary(self, path: Path) -> LocalAppender:
        self._make_folder(path.parent)
        try:
            return LocalAppender(path)
        except FileNotFoundError:  # the folder was empty, and tidied away just now
            self._make_folder(path.parent)
            return LocalAppender(path)

    def delete(self, name: str) -> None:
        """Unlink the file and sync its folder."""
        path = self._path(name)
        try:
            path.unlink()
            sync_folder(path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise unavailable(str(path), error) from error

    def size(self, name: str) -> int:
        """Size from the file system; of a symbolic link, not of what it leads to."""
        return self._path(name).lstat().st_size

    def modified(self, name: str) -> float:
        """Modification time from the file system."""
        return self._path(name).lstat().st_mtime

    def tidy(self, folder: str, before: float) -> int:
        """Remove old temporary files and old empty folders; `folder` itself stays."""
        removed, top = 0, self._path(folder)
        for base, folders, files in os.walk(top, topdown=False):
            for name in files:
                if name.startswith(TEMPORARY_PREFIX):
                    removed += _removed_if_old(Path(base, name), before, Path.unlink)
            for name in folders:
                _removed_if_old(Path(base, name), before, Path.rmdir)  # refused where something is in it
        return removed

    def identity(self, name: str) -> tuple[int, int, int]:
        """Size, inode and time of change: what differs between files that are not the same."""
        status = self._path(name).stat()
        return status.st_size, status.st_ino, status.st_mtime_ns

    def list(self, folder: str = "") -> list[str]:
        """Walk the folder; temporary files are left out, symbolic links not followed."""
        names = []
        for base, _, files in os.walk(self.root / folder):
            relative = Path(base).relative_to(self.root)
            names += [(relative / file).as_posix() for file in files if not file.startswith(TEMPORARY_PREFIX)]
        return sorted(names)

    def link(self, name: str, path: Path) -> bool:
        """Hard-link the file, where both are in one file system that has such links."""
        try:
            path.hardlink_to(self._path(name))
        except FileNotFoundError:
            raise
        except OSError:
            return False
        return True

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
            raise unavailable(str(path), error) from error
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
            raise unavailable(str(path), error) from error


def _removed_if_old(path: Path, before: float, remove: Callable[[Path], None]) -> bool:
    try:
        if path.is_symlink() or path.stat().st_mtime >= before:
            return False
        remove(path)
    except OSError:  # someone uses it, or was faster
        return False
    return True


class FolderLock:
    """Exclusive use of a local folder by one process, held until `release` or the process's end.

    Who holds it may remove the folder: others who wait for it then make it again.

    Raises
    ------
    UnavailableError
        Another process still holds it after `wait_seconds`; names its process id.
    """

    def __init__(self, folder: str | os.PathLike[str], clock: Clock, *, wait_seconds: float = 10.0):
        path = Path(folder) / "lock"
        deadline = clock.monotonic() + wait_seconds
        while True:
            self._open(path)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
                self.release()
                if clock.monotonic() >= deadline:
                    hint = "stop that process, or give this one another state.dir"
                    raise UnavailableError(
                        "state folder", str(folder), f"process {holder} uses it", hint=hint
                    ) from error
                clock.sleep(0.05)
                continue
            if self._is_in_place(path):
                break
            self.release()  # who held it before has removed the folder
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def _open(self, path: Path) -> None:
        try:
            LocalStorage(path.parent)  # makes the folder durably
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise unavailable(str(path.parent), error) from error

    def _is_in_place(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others in; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
