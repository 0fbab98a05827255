"""The connections of a worker process with the other workers: a socket to each, and events as pickles.

Pickles pass only between processes that one JobManager has started from one job file, over sockets that nobody else can open. What can hand
out its memory (NumPy arrays, Arrow buffers) is sent from where it lies, without a copy on this side.
"""

from __future__ import annotations

import pickle
import selectors
import socket
import struct
from collections import deque
from collections.abc import Sequence
from itertools import starmap
from typing import Any

import msgspec

from statestore.errors import StateStoreError
from statestore_runtime.deployment.wire import FrameSocket
from statestore_runtime.task.network import BATCH, EVENTS, Frame

_COUNT = struct.Struct(">H")
_SIZE = struct.Struct(">I")


class PeerLostError(StateStoreError, ConnectionError):
    """The connection with another worker is gone, mostly because that worker is: the JobManager starts all of them again."""

    exit_code = 3

    def __init__(self, worker: int, other: int):
        self.worker, self.other = worker, other
        super().__init__(f"worker {worker} lost its connection with worker {other}")


class PeerNetwork:
    """See `task.network.Network`.

    Parameters
    ----------
    sockets
        To each worker, None to itself.
    """

    def __init__(self, subtask: int, sockets: Sequence[socket.socket | None]):
        self.subtask, self.parallelism = subtask, len(sockets)
        self._peers = [FrameSocket(each) if each is not None else None for each in sockets]
        self._own: deque[tuple[int, Frame]] = deque()
        self._selector = selectors.DefaultSelector()
        self._writing: set[int] = set()
        for worker, peer in enumerate(self._peers):
            if peer is not None:
                self._selector.register(peer, selectors.EVENT_READ, worker)

    def watch(self, wake: int) -> None:
        """Let `wait` end when there is something to read from this descriptor too."""
        self._selector.register(wake, selectors.EVENT_READ, None)

    def send(self, to: int, frame: Frame) -> None:
        """See `Network.send`."""
        peer = self._peers[to]
        if peer is None:
            self._own.append((self.subtask, frame))
            return
        peer.send(pack(frame))
        self._set_writing(to, peer)
        if not peer.is_heard:
            raise PeerLostError(self.subtask, to)

    def _set_writing(self, worker: int, peer: FrameSocket) -> None:
        """Have `wait` end when the other end reads again, as long as something waits for it."""
        if peer.has_unsent == (worker in self._writing) or not peer.is_open:
            return
        if peer.has_unsent:
            self._writing.add(worker)
            self._selector.modify(peer, selectors.EVENT_READ | selectors.EVENT_WRITE, worker)
        else:
            self._writing.discard(worker)
            self._selector.modify(peer, selectors.EVENT_READ, worker)

    def receive(self) -> list[tuple[int, Frame]]:
        """See `Network.receive`."""
        received = list(self._own)
        self._own.clear()
        for worker, peer in enumerate(self._peers):
            if peer is None:
                continue
            if peer.has_unsent:
                peer.flush()
                self._set_writing(worker, peer)
            received += [(worker, unpack(data)) for data in peer.receive()]
            if not peer.is_open:
                raise PeerLostError(self.subtask, worker)
        return received

    def wait(self, seconds: float) -> None:
        """Until something has come, or that much time has passed."""
        if not self._own:
            self._selector.select(seconds)

    def close(self) -> None:
        """Hang up."""
        self._selector.close()
        for peer in self._peers:
            if peer is not None:
                peer.close()


def pack(frame: Frame) -> list[bytes | memoryview]:
    """Buffers of a frame: how many there are, their sizes, the pickle, and what is sent from where it lies."""
    aside: list[pickle.PickleBuffer] = []
    if frame[0] == BATCH and _are_alike(frame[EVENTS]):
        frame = (*frame[:EVENTS], _Alike(frame[EVENTS]), *frame[EVENTS + 1 :])
    data = pickle.dumps(frame, protocol=5, buffer_callback=aside.append)
    buffers: list[bytes | memoryview] = [data, *(buffer.raw() for buffer in aside)]
    head = _COUNT.pack(len(buffers)) + b"".join(_SIZE.pack(len(buffer)) for buffer in buffers)
    return [head, *buffers]


def unpack(data: bytes) -> Frame:
    """Frame of its bytes."""
    view = memoryview(data)
    (count,) = _COUNT.unpack_from(view)
    offset = _COUNT.size + count * _SIZE.size
    buffers = []
    for index in range(count):
        (size,) = _SIZE.unpack_from(view, _COUNT.size + index * _SIZE.size)
        buffers.append(view[offset : offset + size])
        offset += size
    frame: Frame = pickle.loads(buffers[0], buffers=buffers[1:])
    return frame


class _Alike:
    """Structs of one class, as a list of them comes out of the pickle: their class stands in it once, and not as a call for each."""

    def __init__(self, events: list[msgspec.Struct]):
        self._events = events

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self._events[0]), list(map(msgspec.structs.astuple, self._events)))


def _made(class_: type[msgspec.Struct], rows: list[tuple[Any, ...]]) -> list[msgspec.Struct]:
    return list(starmap(class_, rows))


def _are_alike(events: list[Any]) -> bool:
    """Whether they are structs of one class that are pickled as calls of it with all fields in their order."""
    if not events or not isinstance(events[0], msgspec.Struct) or len(set(map(type, events))) > 1:
        return False
    class_ = type(events[0])
    is_plain = class_.__reduce__ is msgspec.Struct.__reduce__ and class_.__reduce_ex__ is object.__reduce_ex__
    return is_plain and events[0].__reduce__()[0] is class_  # which it is not where fields are given by name
