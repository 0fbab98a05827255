"""One file being read: whether it still is the file that a position was taken in, and what becomes of one that grows."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from statestore.errors import CorruptionError, StateStoreError, UnavailableError, UsageError
from statestore_runtime.sources.base import SplitReader
from statestore_runtime.sources.files.compression import DAMAGED
from statestore_runtime.sources.files.records import RecordReader

_HEAD_BYTES = 4096

_MEND = "put the old file back, or start over with --restore none"


class FileReader(SplitReader):
    """Reads a file's records; a position has what is needed to know the file again: its size and a hash of its beginning.

    Parameters
    ----------
    file
        Its path.
    make_reader
        Makes the reader of its records from the open file.
    position
        From where it goes on; None: from the beginning.
    batch_size
        Records of a batch.
    may_grow
        Whether a position stays good when bytes have been appended; for a file that is read as it is, unlike a packed one.
    is_fixed
        Whether a position is only good when the file has the same size.
    is_followed
        Whether the end of the file is not the end of the split.

    Raises
    ------
    UsageError
        This is not the file that the position was taken in.
    UnavailableError, CorruptionError
        It can't be opened, or is damaged.
    """

    def __init__(
        self,
        file: str,
        make_reader: Callable[[io.FileIO], RecordReader],
        position: dict[str, Any] | None,
        *,
        batch_size: int,
        may_grow: bool,
        is_fixed: bool,
        is_followed: bool,
    ):
        self._file, self._batch_size, self._is_followed = file, batch_size, is_followed
        self._end_size: int | None = None
        try:
            self._raw = Path(file).open("rb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise UnavailableError("source", file, error.strerror or error) from error
        try:
            self._size = os.fstat(self._raw.fileno()).st_size
            self._head = os.pread(self._raw.fileno(), _HEAD_BYTES, 0)
            if position is not None:
                self._check_same(position, position["offset"] if may_grow else position["size"], is_fixed)
            self._reader: RecordReader = self._translated(make_reader, self._raw)
            if position is not None:
                self._translated(self._reader.go_to, position)
        except BaseException:
            self._raw.close()
            raise

    def _check_same(self, position: dict[str, Any], least: int, is_fixed: bool) -> None:
        if self._size < least:
            raise UsageError(
                f"{self._file} has become shorter ({self._size} bytes) than when the checkpoint was made: {_MEND}"
            )
        if is_fixed and self._size != position["size"]:
            raise UsageError(
                f"{self._file} has another size ({self._size} bytes) than when the checkpoint was made: {_MEND}"
            )
        if xxhash.xxh3_64_hexdigest(self._head[: position["head_bytes"]]) != position["head_hash"]:
            raise UsageError(f"{self._file} begins differently than when the checkpoint was made: {_MEND}")

    def _translated(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of `function`, with the errors of damaged data made ours."""
        try:
            return function(*arguments)
        except DAMAGED as error:
            raise CorruptionError(self._file, f"its compressed data is damaged: {error}") from error
        except OSError as error:
            if isinstance(error, StateStoreError):
                raise
            raise UnavailableError("source", self._file, error.strerror or error) from error

    def next_batch(self) -> list[Any] | None:
        """Events of up to `batch_size` records; empty when all of them were bad, or a followed file has no more just now."""
        return self._next_of_followed() if self._is_followed else self._read()

    def _read(self) -> list[Any] | None:
        events: list[Any] | None = self._translated(self._reader.read, self._batch_size)
        return events

    def _next_of_followed(self) -> list[Any]:
        size = os.fstat(self._raw.fileno()).st_size  # before reading, so that what is appended meanwhile is not missed
        if self._end_size is not None:
            self._check_followed()
            if size == self._end_size:  # what is not complete is not read again and again
                return []
        events = self._read()
        self._end_size = size if events is None else None
        if len(self._head) < _HEAD_BYTES:  # what is known of the file grows with it
            self._head = os.pread(self._raw.fileno(), _HEAD_BYTES, 0)
        return events or []

    def _check_followed(self) -> None:
        """Raise UsageError when what the path names is not the file that is open, or has lost some of it."""
        descriptor = self._raw.fileno()
        opened = os.fstat(descriptor)
        read_bytes = self._reader.place()["offset"]
        try:
            named = Path(self._file).stat()
        except OSError as error:
            problem: str | None = f"is not there any more ({error.strerror})"
        else:
            if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
                problem = "has been replaced by another file"
            elif opened.st_size < read_bytes:
                problem = f"has been cut down to {opened.st_size} bytes, {read_bytes} had been read"
            elif os.pread(descriptor, len(self._head), 0) != self._head:
                problem = "has been written anew from its beginning"
            else:
                problem = None
        if problem:
            raise UsageError(
                f"{self._file}, which is followed, {problem}: let each file only grow, under a name that it keeps, "
                "and begin new ones under names that `path` matches"
            )

    def position(self) -> dict[str, Any]:
        """The place in the file, with what tells whether it is still the same file."""
        return {
            **self._reader.place(),
            "size": self._size,
            "head_bytes": len(self._head),
            "head_hash": xxhash.xxh3_64_hexdigest(self._head),
        }

    def close(self) -> None:
        """Close the file."""
        self._raw.close()
