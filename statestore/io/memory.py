"""Objects in this process's memory."""

from __future__ import annotations

import errno
import math
import threading

from statestore.clock import Clock, SystemClock
from statestore.io.base import Appender, AppendStorage, checked_name


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

    durable = False

    def __init__(self, url: str = "memory:", clock: Clock | None = None):
        self.url = url
        self.objects: dict[str, bytes] = {}
        self._creating = threading.Lock()
        self._clock, self._modified = clock or SystemClock(), dict[str, float]()

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
        self._modified[checked_name(name)] = self._clock.time()
        self.objects[name] = data

    def create(self, name: str, data: bytes) -> None:
        """Set the object if it is not there; atomic between threads."""
        with self._creating:
            if checked_name(name) in self.objects:
                raise FileExistsError(errno.EEXIST, "object exists", f"{self.url}/{name}")
            self._modified[name] = self._clock.time()
            self.objects[name] = data

    def delete(self, name: str) -> None:
        """Forget the object."""
        self.objects.pop(checked_name(name), None)
        self._modified.pop(name, None)

    def size(self, name: str) -> int:
        """Length of the object."""
        return len(self._held(name))

    def modified(self, name: str) -> float:
        """When it was set, by this storage's clock."""
        self._held(name)
        return self._modified.get(name, math.inf)  # it is being set just now

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
