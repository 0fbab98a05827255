"""Joins the events of two keyed streams that lie close enough in event time.

    left, right          map state: event time -> events of that time
    event-time-timers    when some of them are needed no more

Of a left event at t the partners are the right events from t + lower to t + upper. Events up to the watermark are late, so it is needed
until the watermark comes to t + upper, and a right event until it comes to t - lower. Timers are set for coarser times than that, so that
one serves many events; what is there a little longer finds no partner any more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

from statestore.ttl import TimeDomain
from statestore_runtime.functions import CheckpointListener
from statestore_runtime.joins import JoinContext, ProcessJoinFunction
from statestore_runtime.operators.base import Guard, TaskContext, Times
from statestore_runtime.operators.timed import Fired, LateOperator, check_times
from statestore_runtime.watermarks import MIN_WATERMARK

TIMERS_PER_SPAN = 4
"""Timers of a key while as much time passes as lies between the two bounds."""


class IntervalJoinOperator(LateOperator):
    """Joins two streams: port 0 is the left one."""

    def __init__(
        self,
        uid: str,
        key_type: Any,
        function: ProcessJoinFunction[Any, Any, Any, Any],
        lower_ms: int,
        upper_ms: int,
        types: tuple[Any, Any],
        late_output: str | None = None,
    ):
        super().__init__(uid, key_type, late_output)
        self.function = function
        self._lower, self._upper, self._types = lower_ms, upper_ms, types
        self._needed_for = (upper_ms, -lower_ms)
        self._step = max(1, (upper_ms - lower_ms) // TIMERS_PER_SPAN)
        self._pair_context: JoinContext[Any] = JoinContext(self.timers, self.side)

    def open(self, context: TaskContext) -> None:
        """Register the states, open the function."""
        super().open(context)
        self.timers.register(self.scope, "event-time")
        self._buffers = [
            self.scope.map_state(name, int, list[type_], ttl=0)  # type: ignore[valid-type]
            for name, type_ in zip(("left", "right"), self._types, strict=True)
        ]
        with Guard(self.uid):
            self.function.open(self.runtime_context())

    def close(self) -> None:
        """Close the function."""
        self.function.close()

    @property
    def listener(self) -> CheckpointListener:
        """The function."""
        return self.function

    def push_keyed(self, keys: list[Any], batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Join the events of one stream with those there are of the other, and keep them for those to come."""
        events = iter(batch)
        with Guard(self.uid, batch, events):
            known = check_times(self.uid, times)
            self.scope.begin_batch(keys)
            made, made_times, ends, late = self._join(keys, events, known, port)
        self.emit_made(made, made_times, ends)
        self._emit_side()
        self._put_aside(late, batch, known)

    def _join(
        self, keys: list[Any], events: Iterator[Any], times: list[int], port: int
    ) -> tuple[list[Any], list[int], list[int], list[int]]:
        """Results, their times, where those of each event end, and which events were late."""
        made: list[Any] = []
        made_times: list[int] = []
        ends: list[int] = []
        late: list[int] = []
        watermark = MIN_WATERMARK if self.watermark is None else self.watermark
        low, high = (self._lower, self._upper) if port == 0 else (-self._upper, -self._lower)
        others = self._buffers[1 - port]
        other_times: dict[Any, list[int]] = {}
        for place, (key, event, time) in enumerate(zip(keys, events, times, strict=True)):
            if time <= watermark:
                late.append(place)
                ends.append(len(made))
                continue
            self.scope.key = key
            self._keep(event, time, port, watermark)
            candidates = other_times.get(key)
            if candidates is None:
                candidates = other_times[key] = sorted(others.keys())
            for other_time in candidates[bisect_left(candidates, time + low) : bisect_right(candidates, time + high)]:
                for other in others[other_time]:
                    pair = (event, other, time, other_time) if port == 0 else (other, event, other_time, time)
                    made.extend(self._results(key, *pair))
                made_times += [max(time, other_time)] * (len(made) - len(made_times))
            ends.append(len(made))
        return made, made_times, ends, late

    def _results(self, key: Any, left: Any, right: Any, left_time: int, right_time: int) -> Any:
        context = self._pair_context
        context.key, context.left_timestamp, context.right_timestamp = key, left_time, right_time
        return self.function.process(left, right, context) or ()

    def _keep(self, event: Any, time: int, port: int, watermark: int) -> None:
        until = time + self._needed_for[port]
        if until > watermark:
            buffer = self._buffers[port]
            buffer.put(time, [*(buffer.get(time) or ()), event])
            self._set_timer(until)

    def _set_timer(self, until: int) -> None:
        self.timers.register_event_time_timer(-(-until // self._step) * self._step)

    def _on_timers(self, due: Iterator[tuple[int, Any]], domain: TimeDomain) -> Fired:
        for _ in due:
            watermark = self.watermark
            assert watermark is not None, "all timers are of event time"
            for buffer, needed_for in zip(self._buffers, self._needed_for, strict=True):
                times = sorted(buffer.keys())
                kept = bisect_right(times, watermark - needed_for)
                for time in times[:kept]:
                    buffer.remove(time)
                if kept < len(times):  # has a timer already, unless the bounds have changed
                    self._set_timer(times[kept] + needed_for)
        return Fired([], [], True)
