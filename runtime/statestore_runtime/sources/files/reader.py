"""One file being read: whether it still is the file that a position was taken in, and what becomes of one that grows."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import xxhash

from statestore.errors import CorruptionError, StateStoreError, UnavailableError, UsageError
from statestore_runtime.sources.base import SplitReader
from statestore_runtime.sources.files.compression import DAMAGED
from statestore_runtime.sources.files.places import OpenedFile, is_remote
from statestore_runtime.sources.files.records import RecordReader

_HEAD_BYTES = 4096

_MEND = "put the old file back, or start over with --restore none"


class FileReader(SplitReader):
    """Reads a file's records; a position has what is needed to know the file again: its size and a hash of its beginning.

    Parameters
    ----------
    file
        Its name.
    opened
        The file; it is closed with the reader, also when that can't be made.
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
        opened: OpenedFile,
        make_reader: Callable[[io.RawIOBase], RecordReader],
        position: dict[str, Any] | None,
        *,
        batch_size: int,
        may_grow: bool,
        is_fixed: bool,
        is_followed: bool,
    ):
        self._file, self._opened, self._batch_size, self._is_followed = file, opened, batch_size, is_followed
        self._end_size: int | None = None
        try:
            self._size = opened.size()
            self._head = opened.read_at(0, _HEAD_BYTES)
            if position is not None:
                self._check_same(position, position["offset"] if may_grow else position["size"], is_fixed)
                if may_grow:
                    self._check_last_line(position)
            self._reader: RecordReader = self._translated(make_reader, opened.raw)
            if position is not None:
                self._translated(self._reader.go_to, position)
        except BaseException:
            opened.close()
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

    def _check_last_line(self, position: dict[str, Any]) -> None:
        """Raise UsageError when the last line had no newline, was taken for a whole one, and has been continued since."""
        if position["line"] == 0:
            return
        before, after = (self._opened.read_at(position["offset"] + step, 1) for step in (-1, 0))
        if before != b"\n" and after not in (b"", b"\r", b"\n"):
            raise UsageError(
                f"{self._file}: line {position['line']} has become longer since it was read: {_MEND}; "
                "a file to which lines are being written is read with follow=True"
            )

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
        if self._is_followed:
            return self._next_of_followed()
        events = self._read()
        if events is None:
            self._translated(self._check_unchanged)
        return events

    def _check_unchanged(self) -> None:
        """Raise UsageError when what was read as one file may be of two, or the rest of it is gone."""
        if self._opened.size() < self._size:
            problem: str | None = "has been cut down"
        elif self._opened.read_at(0, len(self._head)) != self._head:
            problem = "has been written anew"
        else:
            problem = self._opened.replaced() if is_remote(self._file) else None
        if problem:
            raise UsageError(
                f"{self._file} {problem} while it was read, so that some of it may be missing: "
                "restore a checkpoint from before, with the old file back, or start over with --restore none"
            )

    def _read(self) -> list[Any] | None:
        events: list[Any] | None = self._translated(self._reader.read, self._batch_size)
        return events

    def _next_of_followed(self) -> list[Any]:
        size = self._opened.size()  # before reading, so that what is appended meanwhile is not missed
        if self._end_size is not None:
            self._check_followed()
            if size == self._end_size:  # what is not complete is not read again and again
                return []
        events = self._read()
        self._end_size = size if events is None else None
        if len(self._head) < _HEAD_BYTES:  # what is known of the file grows with it
            self._head = self._opened.read_at(0, _HEAD_BYTES)
        return events or []

    def _check_followed(self) -> None:
        """Raise UsageError when what the path names is not the file that is open, or has lost some of it."""
        read_bytes, size = self._reader.place()["offset"], self._opened.size()
        problem = self._opened.replaced()
        if problem is None and size < read_bytes:
            problem = f"has been cut down to {size} bytes, {read_bytes} had been read"
        elif problem is None and self._opened.read_at(0, len(self._head)) != self._head:
            problem = "has been written anew from its beginning"
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
        self._opened.close()
