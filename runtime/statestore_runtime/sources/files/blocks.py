"""Blocks of whole lines, which threads work on ahead of their reader."""

from __future__ import annotations

import functools
import io
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import IO, Generic, NamedTuple, TypeVar

T = TypeVar("T")

BLOCK_BYTES = 1 << 20
"""What is worked on stays in the processor's cache; and memory that was used once is used again."""

AHEAD_BYTES = 24 << 20
"""Of blocks that wait, at most: what a thread can do while a batch is processed."""

LINES_COUNTED = 4096
"""Up to so many lines a block is exactly as many as were asked for."""


class Block(NamedTuple, Generic[T]):
    """Whole lines, and what becomes of them."""

    data: bytes
    made: Future[T]


class Blocks(Generic[T]):
    """The lines of a stream, block by block.

    Parameters
    ----------
    stream
        Only the caller's thread reads from it.
    work
        What threads do with each block.
    """

    def __init__(self, stream: io.BufferedReader, work: Callable[[bytes], T]):
        self._stream, self._work = stream, work
        self._head = io.BytesIO()
        self._waiting: deque[Block[T]] = deque()
        self._waiting_bytes = 0
        self._has_ended = False

    def begin_with(self, head: bytes) -> None:
        """There are whole lines before those of the stream."""
        self._head = io.BytesIO(head)

    def skip(self, count: int) -> None:
        """Pass over so many bytes, before anything is taken."""
        for stream in (self._head, self._stream):
            while count > 0 and (data := stream.read(min(count, BLOCK_BYTES))):
                count -= len(data)

    def unread(self, data: bytes) -> None:
        """Put whole lines before those that are to come."""
        if data:
            self._waiting.appendleft(self._begun(data))

    def take(self, count: int) -> Block[T] | None:
        """The next block, of about 1 MiB, or of `count` lines if these are few; None at the end."""
        depth = AHEAD_BYTES if count > LINES_COUNTED else 1
        while not self._has_ended and (self._waiting_bytes < depth or not self._waiting):
            data = self._read(count)
            if not data:
                self._has_ended = True
                break
            self._waiting.append(self._begun(data))
        if not self._waiting:
            return None
        block = self._waiting.popleft()
        self._waiting_bytes -= len(block.data)
        return block

    def _read(self, count: int) -> bytes:
        for stream in (self._head, self._stream):
            data = b"".join(islice(stream, count)) if count <= LINES_COUNTED else read_lines(stream)
            if data:
                return data
        return b""

    def _begun(self, data: bytes) -> Block[T]:
        self._waiting_bytes += len(data)
        return Block(data, _pool().submit(self._work, data))


class Refilled(io.RawIOBase):
    """A block as a stream that goes on with the next ones when more is asked for.

    Parameters
    ----------
    count
        Lines of the next ones, as of `Blocks.take`.

    Attributes
    ----------
    data : bytes
        All that it has given.
    """

    def __init__(self, data: bytes, blocks: Blocks[T], count: int):
        self.data = data
        self._blocks, self._count, self._place = blocks, count, 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer`."""
        if self._place == len(self.data):
            block = self._blocks.take(self._count)
            self.data += block.data if block is not None else b""
        piece = self.data[self._place : self._place + len(buffer)]
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)


def read_lines(stream: IO[bytes]) -> bytes:
    """About 1 MiB of whole lines."""
    data = stream.read(BLOCK_BYTES)
    return data if data.endswith(b"\n") else data + stream.readline()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="statestore-blocks")
