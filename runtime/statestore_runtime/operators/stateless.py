"""Operators without state: sources, sinks, and what makes events of events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any

from statestore.clock import Clock
from statestore_runtime.functions import UserCodeError
from statestore_runtime.operators.base import Guard, Operator, TaskContext, Times, repeated
from statestore_runtime.sinks.base import Sink
from statestore_runtime.sources.base import Source
from statestore_runtime.watermarks import MAX_WATERMARK, WatermarkGenerator, WatermarkStrategy


class SourceOperator(Operator):
    """Where a source's batches and watermarks enter, by `push`, `on_watermark` and `on_idle`.

    Attributes
    ----------
    watermarks
        Makes the generators of the event times of the source's splits; None when its events have none.
    rate_limit
        Events per second over all workers, None for no limit.
    """

    def __init__(
        self, uid: str, source: Source, watermarks: WatermarkStrategy | None = None, rate_limit: float | None = None
    ):
        super().__init__(uid)
        self.source, self.watermarks, self.rate_limit = source, watermarks, rate_limit
        self.add_input()


class SinkOperator(Operator):
    """Where events leave.

    Attributes
    ----------
    write
        Called with each batch. By default the sink's.
    """

    def __init__(self, uid: str, sink: Sink):
        super().__init__(uid)
        self.sink = sink
        self.write: Callable[[list[Any]], None] = sink.write

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Write to the sink."""
        with Guard(self.uid):
            self.write(batch)


class UnionOperator(Operator):
    """The events of several streams; event time is where the last of them has come."""


class FunctionOperator(Operator, ABC):
    """One comprehension over the batch."""

    def __init__(self, uid: str, function: Callable[[Any], Any]):
        super().__init__(uid)
        self._function = function

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Apply the function."""
        events = iter(batch)
        with Guard(self.uid, batch, events):
            made = self._apply(events)
        self._emit_made(made, batch, times)

    @abstractmethod
    def _apply(self, events: Iterable[Any]) -> list[Any]:
        """What the function makes of a batch."""

    def _emit_made(self, made: list[Any], batch: list[Any], times: Times) -> None:
        """Emit it, with the times that go with it; an error gets the index that it has in `batch`."""
        self.emit(made, times)


class MapOperator(FunctionOperator):
    """One event for each."""

    def _apply(self, events: Iterable[Any]) -> list[Any]:
        function = self._function
        return [function(event) for event in events]


class FilterOperator(FunctionOperator):
    """The events for which the function is true."""

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Filter events, and their times alike."""
        if times is None:
            super().push(batch)
            return
        function, events = self._function, iter(batch)
        with Guard(self.uid, batch, events):
            chosen = [bool(function(event)) for event in events]
        self._emit_made(list(compress(batch, chosen)), batch, list(compress(times, chosen)))

    def _apply(self, events: Iterable[Any]) -> list[Any]:
        function = self._function
        return [event for event in events if function(event)]

    def _emit_made(self, made: list[Any], batch: list[Any], times: Times) -> None:
        try:
            self.emit(made, times)
        except UserCodeError as error:
            error.index = _index_before(made, batch, error.index)
            raise


def _index_before(made: list[Any], batch: list[Any], index: int | None) -> int | None:
    """Where the event at `index` of a filtered batch was in the whole one."""
    if index is None:
        return None
    found = -1
    for event in made[: index + 1]:
        found = next(place for place in range(found + 1, len(batch)) if batch[place] is event)
    return found


class FlatMapOperator(Operator):
    """Any number of events for each."""

    def __init__(self, uid: str, function: Callable[[Any], Iterable[Any]]):
        super().__init__(uid)
        self._function = function

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Apply the function; what it makes of an event has the event's time."""
        function, events = self._function, iter(batch)
        made: list[Any] = []
        ends: list[int] = []
        extend, end, length = made.extend, ends.append, made.__len__
        with Guard(self.uid, batch, events):
            for event in events:
                extend(function(event))
                end(length())
        self.emit_made(made, None if times is None else repeated(times, ends), ends)


class AssignTimestampsOperator(Operator):
    """Gives events their times and makes the watermark of them; that of its input counts no more, but for the end."""

    def __init__(self, uid: str, strategy: WatermarkStrategy):
        super().__init__(uid)
        self._strategy = strategy
        self._clock: Clock
        self._generator: WatermarkGenerator
        self._is_input_idle = False
        self._is_marked = self._has_stamped = False  # since the mark
        self._newest: int | None = None  # as of the mark

    def open(self, context: TaskContext) -> None:
        """Begin."""
        self._clock = context.clock
        self._generator = self._strategy.generator(self.uid, self._clock.monotonic())

    def snapshot(self) -> Any | None:
        """The newest event time, None before the first event."""
        return {"newest": self._generator.snapshot()}

    def restore(self, states: list[Any]) -> None:
        """Go on from where the last of the subtasks was; where one had seen nothing yet, nothing is known."""
        known = [state.get("newest") for state in states]
        newest = None if None in known else min(known)
        self._generator = self._strategy.generator(self.uid, self._clock.monotonic(), newest)

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Stamp the events."""
        self._is_input_idle = False
        self.emit(batch, self._generator.stamp(batch))
        self._has_stamped = True
        if not self._is_marked:
            self._go_on()

    def mark(self) -> None:
        """Remember the newest event time. Event time does not go on before the batch is through: it could not go back."""
        self._is_marked, self._has_stamped, self._newest = True, False, self._generator.snapshot()

    def rollback(self) -> None:
        """Go back to it."""
        self._is_marked = False
        self._generator = self._strategy.generator(self.uid, self._clock.monotonic(), self._newest)

    def keep(self) -> None:
        """Let event time go on."""
        self._is_marked = False
        if self._has_stamped:
            self._has_stamped = False
            self._go_on()

    def on_watermark(self, watermark: int, port: int = 0) -> None:
        """Only the end counts."""
        self._is_input_idle = False
        if watermark >= MAX_WATERMARK:
            super().on_watermark(watermark, port)

    def on_idle(self, port: int = 0) -> None:
        """Nothing can come, as of a source of which this worker has no split: event time goes on without it until something does."""
        self._is_input_idle = True
        super().on_idle(port)

    def on_processing_time(self, now_ms: int) -> None:
        """See whether it has become idle."""
        self._go_on()

    def _go_on(self) -> None:
        if self._is_input_idle:
            return
        watermark = self._generator.current(self._clock.monotonic())
        if watermark is None:
            super().on_idle()
        else:
            super().on_watermark(watermark)
