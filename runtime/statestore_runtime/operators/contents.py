"""What a window holds: an accumulator that each event is added to, or the events themselves.

Both keep an accumulator per window. That of kept events says where they are:

    accumulator = [(part, number of events), ...]     the parts of a session are those of the sessions it was merged from
    events      map state: (part, chunk number) -> up to 64 events

so that an event costs a chunk and not a window, and merging moves nothing. A part is named by the start of the window it was begun in; no
two windows of a key have the same at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from statestore.versions import Upcast
from statestore_runtime.functions import CheckpointListener, RuntimeContext
from statestore_runtime.timers import SideOutputs, TimerService
from statestore_runtime.windows import ProcessWindowFunction, Window, WindowContext, WindowResult

CHUNK_EVENTS = 64


class Contents(ABC):
    """What a window operator keeps of events. The current key of the scope is that of the event or window in question.

    Attributes
    ----------
    accumulator_type
        What is kept in the state of the windows.
    upcast
        Makes an accumulator of one that was stored with another type.
    first
        Makes the accumulator of a new window, of its first event and its start.
    add
        Makes the accumulator with one event more, of the event and the one before.
    merge
        Makes one accumulator of two.
    """

    accumulator_type: Any
    upcast: Upcast | None = None
    first: Callable[[Any, int], Any]
    add: Callable[[Any, Any], Any]
    merge: Callable[[Any, Any], Any]
    listener: CheckpointListener = CheckpointListener()

    def open(self, context: RuntimeContext, timers: TimerService, side: SideOutputs) -> None:
        """Register states."""

    @abstractmethod
    def results(self, key: Any, window: Window, accumulator: Any) -> Iterable[Any] | None:
        """What a window emits."""

    def drop(self, accumulator: Any) -> None:
        """The window is gone."""

    def close(self) -> None:
        """The run has ended."""


class Folded(Contents):
    """An accumulator.

    Parameters
    ----------
    accumulator_type
        Of the state.
    first
        Makes one of an event.
    add, merge, upcast
        As of `Contents`.
    result
        Result of an accumulator; by default itself.
    """

    def __init__(
        self,
        accumulator_type: Any,
        first: Callable[[Any], Any],
        add: Callable[[Any, Any], Any],
        merge: Callable[[Any, Any], Any],
        result: Callable[[Any], Any] | None = None,
        upcast: Upcast | None = None,
    ):
        self.accumulator_type, self.upcast, self._result = accumulator_type, upcast, result
        self.first, self.add, self.merge = lambda event, start: first(event), add, merge

    def results(self, key: Any, window: Window, accumulator: Any) -> Iterable[Any]:
        """One `WindowResult`."""
        value = accumulator if self._result is None else self._result(accumulator)
        return (WindowResult(key, window.start, window.end, value),)


class Kept(Contents):
    """The events, for a `ProcessWindowFunction`."""

    accumulator_type = list[tuple[int, int]]

    def __init__(self, function: ProcessWindowFunction[Any, Any, Any], type: Any, upcast: Upcast | None = None):
        self.function = self.listener = function
        self._type, self._upcast_event = type, upcast
        self.first, self.add, self.merge = self._begin, self._append, self._join

    def open(self, context: RuntimeContext, timers: TimerService, side: SideOutputs) -> None:
        """Register the state of the events, and open the function."""
        upcast = self._upcast_event
        self._events = context.map_state(
            "events",
            tuple[int, int],
            list[self._type],  # type: ignore[name-defined]
            ttl=0,
            upcast=None if upcast is None else lambda events: [upcast(event) for event in events],
        )
        self._context: WindowContext[Any] = WindowContext(timers, side)
        self.function.open(context)

    def _begin(self, event: Any, start: int) -> list[tuple[int, int]]:
        return self._append(event, [(start, 0)])

    def _append(self, event: Any, parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
        part, count = parts[-1]
        place = (part, count // CHUNK_EVENTS)
        events = self._events.get(place) if count % CHUNK_EVENTS else None
        self._events.put(place, [*(events or ()), event])
        parts[-1] = (part, count + 1)
        return parts

    @staticmethod
    def _join(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return one + other

    @staticmethod
    def _chunks(parts: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        return ((part, chunk) for part, count in parts for chunk in range(-(-count // CHUNK_EVENTS)))

    def results(self, key: Any, window: Window, accumulator: Any) -> Iterable[Any] | None:
        """What the function makes of the events."""
        context = self._context
        context.key, context.window = key, window
        return self.function.process(
            [event for place in self._chunks(accumulator) for event in self._events[place]], context
        )

    def drop(self, accumulator: Any) -> None:
        """Forget the events."""
        for place in self._chunks(accumulator):
            self._events.remove(place)

    def close(self) -> None:
        """Close the function."""
        self.function.close()
