"""What users write to join two streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from statestore_runtime.functions import CheckpointListener, RuntimeContext
from statestore_runtime.timers import SideOutputs, TimerService

K = TypeVar("K")
E = TypeVar("E")
E2 = TypeVar("E2")
R = TypeVar("R")


class JoinContext(Generic[K]):
    """What a `ProcessJoinFunction` is given with a pair of events; the same object every time.

    Attributes
    ----------
    key
        The key of both.
    left_timestamp, right_timestamp : int
        Their times in milliseconds.
    """

    __slots__ = ("_side", "_timers", "key", "left_timestamp", "right_timestamp")

    key: K
    left_timestamp: int
    right_timestamp: int

    def __init__(self, timers: TimerService, side: SideOutputs):
        self._timers, self._side = timers, side

    @property
    def timestamp(self) -> int:
        """The later of the two times, which is that of the results."""
        return max(self.left_timestamp, self.right_timestamp)

    @property
    def current_watermark(self) -> int | None:
        """How far event time has come, in milliseconds; None while that is not known."""
        return self._timers.current_watermark

    def output(self, tag: str, value: Any) -> None:
        """Send `value` to the side output `tag`, which `stream.side_output(tag)` takes; it goes nowhere when nobody does."""
        self._side.add(tag, value, self.timestamp)


class ProcessJoinFunction(CheckpointListener, ABC, Generic[K, E, E2, R]):
    """A function of pairs of events.

    Each worker works with a copy of its own, made by `copy.deepcopy` before `open`.
    """

    def open(self, ctx: RuntimeContext) -> None:
        """Called once before the first event of a run."""

    @abstractmethod
    def process(self, left: E, right: E2, ctx: JoinContext[K]) -> Iterable[R] | None:
        """Called with each pair of events of one key whose times are close enough."""

    def close(self) -> None:
        """Called once at the end of a run, also of a failed one."""


class MapPairs(ProcessJoinFunction[K, E, E2, R]):
    """One result for each pair."""

    def __init__(self, function: Callable[[E, E2], R]):
        self._function = function

    def process(self, left: E, right: E2, ctx: JoinContext[K]) -> Iterable[R]:
        """Call the function."""
        return (self._function(left, right),)
