"""What a storage promises, and the names and errors that all of them share."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from statestore.errors import UnavailableError, UsageError


class Storage(ABC):
    """Named objects below a root. Names are relative, with '/' between parts."""

    url: str
    """Where the root is, without secrets: for messages and manifests."""

    durable = True
    """Whether the objects outlive the process."""

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

    @abstractmethod
    def modified(self, name: str) -> float:
        """When `name` was last written, in seconds since the Unix epoch by the clock of the place. Raises FileNotFoundError.

        Raises UnavailableError where the place does not tell."""

    def tidy(self, folder: str, before: float) -> int:
        """Remove what no one can name, of before this moment: what interrupted writes left below `folder`, and empty folders.

        Returns the number of files removed; most places keep nothing of the kind."""
        return 0

    def link(self, name: str, path: Path) -> bool:
        """Give the object the further name `path` on the local disk; False where it has to be copied. Raises FileNotFoundError."""
        return False

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


@lru_cache(4096)
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


def unavailable(url: str, error: Exception) -> UnavailableError:
    """What a failed operation of the operating system or of a driver means to the caller."""
    number, text = getattr(error, "errno", None), getattr(error, "strerror", None)
    hint = "free some space" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
    return UnavailableError("storage", url, text or error, hint=hint)


def ends_in_zeros(data: bytes, offset: int) -> bool:
    """Whether a file ends in so long a run of zeros, begun behind `offset`, that nothing that was written can have ended so."""
    tail = data[offset:]
    return len(tail) - len(tail.rstrip(b"\0")) >= min(16, len(tail))
