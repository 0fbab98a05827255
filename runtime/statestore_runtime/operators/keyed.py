"""Operators with state per key that need no time: `reduce` and `aggregate`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from statestore.keyed import KeyedState
from statestore.state import AggregateFunction
from statestore.versions import StateOptions
from statestore_runtime.operators.base import Guard, Operator, TaskContext, Times


class KeyedOperator(Operator, ABC):
    """Base of the operators with state."""

    scope: KeyedState

    def __init__(self, uid: str, key_type: Any):
        super().__init__(uid)
        self._key_type = key_type

    def open(self, context: TaskContext) -> None:
        """Register the states."""
        self._context = context
        self.scope = context.store.keyed(self.uid, self._key_type)

    def snapshot(self) -> Any | None:
        """How far event time has come, so that it does not begin anew."""
        return None if self._watermark_before_end is None else {"watermark": self._watermark_before_end}

    def restore(self, states: list[Any]) -> None:
        """Go on from where the last of the subtasks was. Inputs that have ended do not count: there may be more of them now."""
        watermarks = [state["watermark"] for state in states if "watermark" in state]
        if watermarks:
            self.watermark = self._watermark_before_end = min(watermarks)
            self._context.event_times.advance(self.uid, self.watermark)

    def advance(self, watermark: int) -> None:
        """Tell the store."""
        self._context.event_times.advance(self.uid, watermark)


class RollingOperator(KeyedOperator):
    """Base of the operators that emit one event for each."""

    def push_keyed(self, keys: list[Any], batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Process events with their keys. Raises UserCodeError, and UsageError for a key of another type."""
        events = iter(batch)
        with Guard(self.uid, batch, events):
            made = self._process(keys, events)
        self.emit(made, times)

    @abstractmethod
    def _process(self, keys: list[Any], events: Iterator[Any]) -> list[Any]:
        """What the operator makes of a batch: one event for each."""


class ReduceOperator(RollingOperator):
    """Combines the events of a key; emits the new value after each event."""

    def __init__(
        self,
        uid: str,
        key_type: Any,
        function: Callable[[Any, Any], Any],
        type: Any,
        options: StateOptions | None = None,
    ):
        super().__init__(uid, key_type)
        self._function, self._type, self._options = function, type, options or {}

    def open(self, context: TaskContext) -> None:
        """Register the state."""
        super().open(context)
        self._state = self.scope.value_state("value", self._type, **self._options)

    def _process(self, keys: list[Any], events: Iterator[Any]) -> list[Any]:
        function = self._function
        current = dict(zip(keys, self._state.get_many(keys), strict=True))
        made = []
        for key, event in zip(keys, events, strict=True):
            before = current[key]
            current[key] = after = event if before is None else function(before, event)
            made.append(after)
        self._state.update_many(list(current), list(current.values()))
        return made


class AggregateOperator(RollingOperator):
    """Adds the events of a key to an accumulator; emits (key, result) after each event."""

    def __init__(
        self,
        uid: str,
        key_type: Any,
        function: AggregateFunction,
        accumulator_type: Any,
        options: StateOptions | None = None,
    ):
        super().__init__(uid, key_type)
        self._function, self._type, self._options = function, accumulator_type, options or {}

    def open(self, context: TaskContext) -> None:
        """Register the state."""
        super().open(context)
        self._state = self.scope.value_state("accumulator", self._type, **self._options)

    def _process(self, keys: list[Any], events: Iterator[Any]) -> list[Any]:
        create, add, result = self._function.create_accumulator, self._function.add, self._function.get_result
        current = dict(zip(keys, self._state.get_many(keys), strict=True))
        made = []
        for key, event in zip(keys, events, strict=True):
            before = current[key]
            current[key] = after = add(event, create() if before is None else before)
            made.append((key, result(after)))
        self._state.update_many(list(current), list(current.values()))
        return made
