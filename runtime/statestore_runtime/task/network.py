"""How batches, watermarks and barriers pass between the workers of a job.

A frame is a tuple: what it is, the number of the edge it belongs to, and its content.

    (BATCH, edge, keys | None, events, times | None)
    (WATERMARK, edge, milliseconds)
    (IDLE, edge)
    (BARRIER, edge, checkpoint)
    (CREDIT, edge, batches)                 the other way: so many have been processed

Frames of one worker to another arrive in the order they were sent, or the deployment fails.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol

BATCH: Final = 0
WATERMARK: Final = 1
IDLE: Final = 2
BARRIER: Final = 3
CREDIT: Final = 4

EVENTS: Final = 3
"""Where they stand in the frame of a batch."""

Frame = tuple[Any, ...]


class Network(Protocol):
    """One worker's connections with all workers, itself included."""

    subtask: int
    parallelism: int

    def send(self, to: int, frame: Frame) -> None:
        """Send a frame; never waits. Raises UnavailableError when the connection is gone."""
        ...

    def receive(self) -> list[tuple[int, Frame]]:
        """What has arrived, and from whom; never waits. Raises UnavailableError when a connection is gone."""
        ...


class LocalNetwork:
    """Connects workers within a process: what is sent is there at once."""

    def __init__(self, parallelism: int):
        self._arrived: list[deque[tuple[int, Frame]]] = [deque() for _ in range(parallelism)]

    def of(self, subtask: int) -> LocalConnections:
        """The connections of one worker."""
        return LocalConnections(subtask, self._arrived)


class LocalConnections:
    """See `LocalNetwork`."""

    def __init__(self, subtask: int, arrived: list[deque[tuple[int, Frame]]]):
        self.subtask, self.parallelism, self._arrived = subtask, len(arrived), arrived

    def send(self, to: int, frame: Frame) -> None:
        """Put it to what has arrived there."""
        self._arrived[to].append((self.subtask, frame))

    def receive(self) -> list[tuple[int, Frame]]:
        """What has arrived."""
        arrived = self._arrived[self.subtask]
        received = list(arrived)
        arrived.clear()
        return received
