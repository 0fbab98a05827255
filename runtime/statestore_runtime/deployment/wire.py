"""Frames on a socket: a length of four bytes, big-endian, and so many bytes."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 18
_PIECES = 64
"""Buffers that are handed to the system at once."""

Buffer = bytes | bytearray | memoryview


class FrameReader:
    """Puts frames together from what a socket gives."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Frames that are whole with these bytes."""
        self._data += data
        frames = []
        begin, size = 0, len(self._data)
        while size - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data, begin)
            if size - begin < _LENGTH.size + length:
                break
            frames.append(bytes(self._data[begin + _LENGTH.size : begin + _LENGTH.size + length]))
            begin += _LENGTH.size + length
        del self._data[:begin]
        return frames


class FrameSocket:
    """One end of a connection that never waits: what can't be sent now is kept, in order.

    Attributes
    ----------
    is_open : bool
        Whether there may be something to read still: the other end has not hung up, or it is not known yet.
    is_heard : bool
        Whether the other end still takes what is sent.
    """

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        self.socket, self.is_open, self.is_heard = connection, True, True
        self._reader = FrameReader()
        self._unsent: deque[Any] = deque()

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether something waits for the other end to read."""
        return bool(self._unsent)

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send one frame of these buffers, which must not change any more; nothing to an end that has hung up."""
        if not self.is_heard:
            return
        self._unsent.append(_LENGTH.pack(sum(len(buffer) for buffer in buffers)))
        self._unsent.extend(buffers)
        self.flush()

    def flush(self) -> None:
        """Send as much as goes."""
        while self._unsent:
            pieces = [self._unsent[index] for index in range(min(len(self._unsent), _PIECES))]
            try:
                sent = self.socket.sendmsg(pieces)
            except BlockingIOError:
                return
            except OSError:  # what it has said before that is to be read still
                self.is_heard = False
                self._unsent.clear()
                return
            self._drop(sent)

    def _drop(self, sent: int) -> None:
        """Forget what was sent."""
        while sent:
            first = self._unsent[0]
            if sent < len(first):
                self._unsent[0] = memoryview(first)[sent:]
                return
            sent -= len(first)
            self._unsent.popleft()
        while self._unsent and not len(self._unsent[0]):
            self._unsent.popleft()

    def receive(self) -> list[bytes]:
        """Frames that have arrived whole."""
        frames: list[bytes] = []
        while self.is_open:
            try:
                data = self.socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.is_open = False
                break
            frames += self._reader.feed(data)
            if len(data) < _READ_BYTES:
                break
        return frames

    def close(self) -> None:
        """Hang up."""
        self.is_open = self.is_heard = False
        self.socket.close()


def receive_frame(connection: socket.socket) -> bytes | None:
    """Wait for one frame on a socket that may wait; None at its end."""
    head = _receive_exactly(connection, _LENGTH.size)
    return None if head is None else _receive_exactly(connection, _LENGTH.unpack(head)[0])


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def framed(data: bytes) -> bytes:
    """A frame's bytes."""
    return _LENGTH.pack(len(data)) + data
