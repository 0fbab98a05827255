"""Operators that run a user's function with state, timers and side outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from statestore.ttl import TimeDomain
from statestore_runtime.functions import (
    CheckpointListener,
    KeyContext,
    KeyedCoProcessFunction,
    KeyedFunction,
    KeyedProcessFunction,
    TimerContext,
)
from statestore_runtime.operators.base import Guard, TaskContext, Times, repeated
from statestore_runtime.operators.timed import RESULTS_TOGETHER, Fired, TimedOperator

Process = Callable[[Any, Any], Iterable[Any] | None]


class KeyedFunctionOperator(TimedOperator):
    """Base of the operators that run a `KeyedFunction`."""

    def __init__(self, uid: str, key_type: Any, function: KeyedFunction[Any, Any]):
        super().__init__(uid, key_type)
        self.function = function
        self._key_context: KeyContext[Any] = KeyContext(self.timers, self.side)
        self._timer_context: TimerContext[Any] = TimerContext(self.timers, self.side)

    def open(self, context: TaskContext) -> None:
        """Open the function."""
        super().open(context)
        if type(self.function).on_timer is not KeyedFunction.on_timer:
            self.timers.register(self.scope, "event-time", "processing-time")
        with Guard(self.uid):
            self.function.open(self.runtime_context())

    def close(self) -> None:
        """Close the function."""
        self.function.close()

    @property
    def listener(self) -> CheckpointListener:
        """The function."""
        return self.function

    def _process_batch(self, process: Process, keys: list[Any], batch: list[Any], times: Times) -> None:
        """Call `process` with each event and emit what it makes."""
        made: list[Any] = []
        ends: list[int] = []
        extend, scope, context, events = made.extend, self.scope, self._key_context, iter(batch)
        with Guard(self.uid, batch, events):
            scope.begin_batch(keys)
            if times is None:
                context.timestamp = None
                for key, event in zip(keys, events, strict=True):
                    scope.key = context.key = key
                    result = process(event, context)
                    if result is not None:
                        extend(result)
            else:
                end, length = ends.append, made.__len__
                for key, event, context.timestamp in zip(keys, events, times, strict=True):
                    scope.key = context.key = key
                    result = process(event, context)
                    if result is not None:
                        extend(result)
                    end(length())
        if times is None:
            self.emit_anew(made)
        else:
            self.emit_made(made, repeated(times, ends), ends)
        self._emit_side()

    def _on_timers(self, due: Iterator[tuple[int, Any]], domain: TimeDomain) -> Fired:
        made: list[Any] = []
        times: list[int] = []
        context, on_timer, in_event_time = self._timer_context, self.function.on_timer, domain == "event-time"
        context.time_domain = domain
        for time, context.key in due:
            context.timestamp = time if in_event_time else None
            result = on_timer(time, context)
            if result is not None:
                made.extend(result)
                times += [time] * (len(made) - len(times))
            if len(made) + self.side.count >= RESULTS_TOGETHER:
                return Fired(made, times if in_event_time else None, False)
        return Fired(made, times if in_event_time else None, True)


class ProcessOperator(KeyedFunctionOperator):
    """Runs a `KeyedProcessFunction`."""

    function: KeyedProcessFunction[Any, Any, Any]

    def push_keyed(self, keys: list[Any], batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Process events with their keys."""
        self._process_batch(self.function.process, keys, batch, times)


class CoProcessOperator(KeyedFunctionOperator):
    """Runs a `KeyedCoProcessFunction`: port 0 is the first stream."""

    function: KeyedCoProcessFunction[Any, Any, Any, Any]

    def push_keyed(self, keys: list[Any], batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Process events of one of the streams with their keys."""
        function = self.function
        self._process_batch(function.process2 if port else function.process1, keys, batch, times)
