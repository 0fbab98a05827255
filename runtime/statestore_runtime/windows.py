"""Windows: which part of event time is looked at together.

A window holds the events of one key from `start` up to, and without, `end`, in milliseconds. Its result comes when the watermark passes
its last millisecond, and has that as its time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from statestore.errors import UsageError
from statestore_runtime.functions import CheckpointListener, RuntimeContext
from statestore_runtime.timers import SideOutputs, TimerService
from statestore_runtime.watermarks import Duration, duration_ms

K = TypeVar("K")
E = TypeVar("E")
R = TypeVar("R")


class Window(NamedTuple):
    """A part of event time, in milliseconds."""

    start: int
    end: int
    """The first millisecond behind it."""

    @property
    def max_timestamp(self) -> int:
        """Its last millisecond, which is the time of its results."""
        return self.end - 1


class WindowResult(msgspec.Struct, frozen=True):
    """What the aggregation of a window emits."""

    key: Any
    start: int
    end: int
    value: Any


def _positive_ms(value: Duration, what: str) -> int:
    milliseconds = duration_ms(value, what)
    if milliseconds == 0:
        raise UsageError(f"{what} is {value!r}: it must be a millisecond at least")
    return milliseconds


@dataclass(frozen=True)
class Tumbling:
    """Windows of one length, one behind the other.

    Parameters
    ----------
    size
        "1min", seconds, or a timedelta.
    offset
        When one of them begins, counted from 1970-01-01 00:00 UTC: the days of a place two hours ahead of it are
        `Tumbling("1d", offset="22h")`.

    Raises
    ------
    UsageError
        An argument is no length of time, or the size is 0.
    """

    size: Duration
    offset: Duration = 0

    def __post_init__(self) -> None:
        _ = self.size_ms, self.offset_ms  # which checks them

    @property
    def size_ms(self) -> int:
        """Length of a window."""
        return _positive_ms(self.size, "the size of a window")

    @property
    def slide_ms(self) -> int:
        """From the beginning of one window to that of the next."""
        return self.size_ms

    @property
    def offset_ms(self) -> int:
        """When one of them begins."""
        return duration_ms(self.offset, "the offset of a window")


@dataclass(frozen=True)
class Sliding:
    """Windows of one length that begin every `slide`: they overlap, so that an event belongs to several, or leave gaps.

    Parameters
    ----------
    size, slide, offset
        As the size and offset of `Tumbling`.

    Raises
    ------
    UsageError
        An argument is no length of time, or size or slide is 0.
    """

    size: Duration
    slide: Duration
    offset: Duration = 0

    def __post_init__(self) -> None:
        _ = self.size_ms, self.slide_ms, self.offset_ms

    @property
    def size_ms(self) -> int:
        """Length of a window."""
        return _positive_ms(self.size, "the size of a window")

    @property
    def slide_ms(self) -> int:
        """From the beginning of one window to that of the next."""
        return _positive_ms(self.slide, "the slide of windows")

    @property
    def offset_ms(self) -> int:
        """When one of them begins."""
        return duration_ms(self.offset, "the offset of a window")


@dataclass(frozen=True)
class Session:
    """A window for each stretch of a key's events that lie no further apart than `gap`; it ends that long after the last of them.

    Parameters
    ----------
    gap
        "30min", seconds, or a timedelta.

    Raises
    ------
    UsageError
        It is none of these, or 0.
    """

    gap: Duration

    def __post_init__(self) -> None:
        _ = self.gap_ms

    @property
    def gap_ms(self) -> int:
        """Length of the silence that ends a session."""
        return _positive_ms(self.gap, "the gap of sessions")


Windows = Tumbling | Sliding | Session


class WindowContext(Generic[K]):
    """What a `ProcessWindowFunction` is given with the events of a window; the same object every time.

    Attributes
    ----------
    key
        The key of the events, which all state handles work on.
    window : Window
        Its beginning and end.
    """

    __slots__ = ("_side", "_timers", "key", "window")

    key: K
    window: Window

    def __init__(self, timers: TimerService, side: SideOutputs):
        self._timers, self._side = timers, side

    @property
    def current_watermark(self) -> int | None:
        """How far event time has come, in milliseconds."""
        return self._timers.current_watermark

    def output(self, tag: str, value: Any) -> None:
        """Send `value` to the side output `tag`, which `stream.side_output(tag)` takes; it goes nowhere when nobody does."""
        self._side.add(tag, value, self.window.max_timestamp)


class ProcessWindowFunction(CheckpointListener, ABC, Generic[K, E, R]):
    """A function of all events of a window. They are kept until then: where an aggregation will do, it costs less.

    Each worker works with a copy of its own, made by `copy.deepcopy` before `open`.
    """

    def open(self, ctx: RuntimeContext) -> None:
        """Called once before the first event of a run: register states here, which are the key's, not the window's."""

    @abstractmethod
    def process(self, events: list[E], ctx: WindowContext[K]) -> Iterable[R] | None:
        """Called when a window is over, with its events in the order they came in, and again with each event that is late but allowed.

        The events of sessions that became one are together, those of the earlier session first.
        """

    def close(self) -> None:
        """Called once at the end of a run, also of a failed one."""
