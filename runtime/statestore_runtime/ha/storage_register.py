"""A register in any storage that creates an object only if it is absent: local files and object stores.

    <folder>/values/<n>      the n-th value, created if absent
    <folder>/blocks/<b>      block b of 1024 values is begun; empty, and there for ever

Invariants:
- values have no gaps, so the newest is found by asking for the next until there is none; a block is begun only when the one before is full;
- a value goes only when the block after the next of its own is begun. So whoever creates a value and then finds no such block has not
  brought back a number that was removed, however long it has slept: what it created is the newest value, or was when it was created;
- nothing is listed, and no lock is held: a process that stands still holds up nobody.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from statestore.errors import StateStoreError, UnavailableError
from statestore.io import Storage

logger = logging.getLogger("statestore.ha")

BLOCK_VALUES = 1024


class StorageRegister:
    """A value in a `Storage`; see `Register` for what it promises.

    A read costs two requests, a replacement about six.

    Parameters
    ----------
    folder
        Where in the storage; nothing else may be in it.
    block_values
        Values in a block: twice as many are kept. All users of a folder must agree on it.
    """

    def __init__(self, storage: Storage, folder: str, block_values: int = BLOCK_VALUES):
        self._storage, self._folder, self._block_values = storage, folder, block_values
        self.where = f"{storage.url.rstrip('/')}/{folder}"
        # Number and value of the newest that this process knows of. Old knowledge costs time, never a decision; it is replaced as a whole,
        # because a call that was given up may go on in its own thread.
        self._known: tuple[int, bytes | None] = 0, None

    def read(self) -> bytes | None:
        """Ask for the value after the newest known one, and for the next block."""
        with self._translated():
            while True:
                number, value = self._known
                newest = self._newest(number)
                if newest == number:
                    return value
                with contextlib.suppress(FileNotFoundError):  # so old by now that it was removed
                    self._known = newest, self._storage.read(self._value_name(newest))

    def replace(self, expected: bytes | None, value: bytes) -> bool:
        """Create the next value, unless somebody else did. What was replaced by so many others meanwhile counts as not set, too."""
        if self._known[1] != expected and self.read() != expected:
            return False
        newest, held = self._known
        if held != expected:
            return False
        with self._translated():
            return self._create(newest + 1, value)

    def _create(self, number: int, value: bytes) -> bool:
        block = self._block_of(number)
        try:
            if block != self._block_of(number - 1):
                with contextlib.suppress(FileExistsError):
                    self._storage.create(self._block_name(block), b"")
            self._storage.create(self._value_name(number), value)
        except FileExistsError:
            return False
        if self._storage.exists(self._block_name(block + 2)):
            self._remove(number)
            return False
        if number > 1 and not self._storage.exists(self._value_name(number - 1)):
            self._remove(number)
            self._known = 0, None
            raise UnavailableError("register", self.where, "its newest value is gone", hint="was the folder emptied?")
        self._known = number, value
        if block >= 2:
            self._remove(number - 2 * self._block_values)
        return True

    def _newest(self, known: int) -> int:
        """Number of the newest value, 0 when there is none."""
        while True:
            block = _greatest(lambda number: self._storage.exists(self._block_name(number)), self._block_of(known))
            first = block * self._block_values
            newest = _greatest(lambda number: self._storage.exists(self._value_name(number)), max(known, first))
            # Asked last: as long as this block is the newest, nothing of it is removed, so what was not found was not there.
            if not self._storage.exists(self._block_name(block + 1)):
                return newest
            known = newest

    def _block_of(self, number: int) -> int:
        return max(number - 1, 0) // self._block_values

    def _value_name(self, number: int) -> str:
        return f"{self._folder}/values/{number}"

    def _block_name(self, block: int) -> str:
        return f"{self._folder}/blocks/{block}"

    def _remove(self, number: int) -> None:
        try:
            self._storage.delete(self._value_name(number))
        except UnavailableError as error:
            logger.info("%s/values/%d, which nobody needs, stays: %s", self.where, number, error)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Make errors of the operating system ours."""
        try:
            yield
        except StateStoreError:
            raise
        except OSError as error:
            raise UnavailableError("register", self.where, error.strerror or error) from error


def _greatest(exists: Callable[[int], bool], known: int) -> int:
    """Greatest number that exists, when all from `known`, which does, to it do: by steps that double, and then by halving."""
    low, step = known, 1
    while exists(low + step):
        low, step = low + step, step * 2
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if exists(middle) else (low, middle)
    return low
