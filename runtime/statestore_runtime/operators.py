"""Operators of a running job. Each takes a batch, a plain list, and pushes what it makes of it to its consumers.

The cost per event is what counts here: loops are comprehensions, nothing is allocated per event, keys are checked a batch at a time.
A batch belongs to nobody: no operator changes one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from statestore.errors import StateStoreError
from statestore.keyed import KeyedState
from statestore.state import AggregateFunction
from statestore.store import StateStore
from statestore_runtime.functions import KeyContext, KeyedProcessFunction, RuntimeContext, UserCodeError
from statestore_runtime.sinks.base import Sink
from statestore_runtime.sources.base import Source


class Operator:
    """One vertex of the running graph; passes everything on."""

    def __init__(self, uid: str):
        self.uid = uid
        self.consumers: list[Operator] = []

    def push(self, batch: list[Any]) -> None:
        """Process events that have no key. Raises UserCodeError when a function fails."""
        self.emit(batch)

    def push_keyed(self, keys: list[Any], batch: list[Any]) -> None:
        """Process events with their keys."""
        raise AssertionError(f"operator '{self.uid}' takes no keys")

    def emit(self, batch: list[Any]) -> None:
        """Push to the consumers."""
        if batch:
            for consumer in self.consumers:
                consumer.push(batch)


class SourceOperator(Operator):
    """Where a source's batches enter."""

    def __init__(self, uid: str, source: Source):
        super().__init__(uid)
        self.source = source


class FunctionOperator(Operator, ABC):
    """Stateless: one comprehension over the batch."""

    def __init__(self, uid: str, function: Callable[[Any], Any]):
        super().__init__(uid)
        self._function = function

    def push(self, batch: list[Any]) -> None:
        """Apply the function."""
        try:
            made = self._apply(self._function, batch)
        except StateStoreError:
            raise
        except Exception as error:
            raise UserCodeError.of(self.uid, error) from error
        self.emit(made)

    @staticmethod
    @abstractmethod
    def _apply(function: Callable[[Any], Any], batch: list[Any]) -> list[Any]:
        """What the function makes of a batch."""


class MapOperator(FunctionOperator):
    """One event for each."""

    @staticmethod
    def _apply(function: Callable[[Any], Any], batch: list[Any]) -> list[Any]:
        return [function(event) for event in batch]


class FilterOperator(FunctionOperator):
    """The events for which the function is true."""

    @staticmethod
    def _apply(function: Callable[[Any], Any], batch: list[Any]) -> list[Any]:
        return [event for event in batch if function(event)]


class FlatMapOperator(FunctionOperator):
    """Any number of events for each."""

    @staticmethod
    def _apply(function: Callable[[Any], Iterable[Any]], batch: list[Any]) -> list[Any]:
        return [made for event in batch for made in function(event)]


class KeyByOperator(Operator):
    """Gives each event its key."""

    def __init__(self, uid: str, function: Callable[[Any], Any]):
        super().__init__(uid)
        self._function = function

    def push(self, batch: list[Any]) -> None:
        """Find the keys, once for all consumers."""
        function = self._function
        try:
            keys = [function(event) for event in batch]
        except StateStoreError:
            raise
        except Exception as error:
            raise UserCodeError.of(self.uid, error) from error
        for consumer in self.consumers:
            consumer.push_keyed(keys, batch)


class KeyedOperator(Operator, ABC):
    """Base of the operators with state."""

    scope: KeyedState

    def __init__(self, uid: str, key_type: Any):
        super().__init__(uid)
        self._key_type = key_type

    def open(self, store: StateStore) -> None:
        """Register the states. Raises as handles do, and UserCodeError."""
        self.scope = store.keyed(self.uid, self._key_type)

    def close(self) -> None:
        """Tell the function that the run has ended."""

    def push_keyed(self, keys: list[Any], batch: list[Any]) -> None:
        """Process events with their keys. Raises UserCodeError, and UsageError for a key of another type."""
        try:
            made = self._process(keys, batch)
        except StateStoreError as error:
            error.add_note(f"in operator '{self.uid}'")
            raise
        except Exception as error:
            raise UserCodeError.of(self.uid, error) from error
        self.emit(made)

    @abstractmethod
    def _process(self, keys: Sequence[Any], batch: list[Any]) -> list[Any]:
        """What the operator makes of a batch."""


class ProcessOperator(KeyedOperator):
    """Runs a `KeyedProcessFunction`."""

    def __init__(self, uid: str, key_type: Any, function: KeyedProcessFunction[Any, Any, Any]):
        super().__init__(uid, key_type)
        self.function = function

    def open(self, store: StateStore) -> None:
        """Open the function."""
        super().open(store)
        self._context: KeyContext[Any] = KeyContext()
        try:
            self.function.open(RuntimeContext(store.job, self.uid, store.attempt, self.scope))
        except StateStoreError:
            raise
        except Exception as error:
            raise UserCodeError.of(self.uid, error) from error

    def close(self) -> None:
        """Close the function."""
        self.function.close()

    def _process(self, keys: Sequence[Any], batch: list[Any]) -> list[Any]:
        self.scope.begin_batch(keys)
        made: list[Any] = []
        extend, process, scope, context = made.extend, self.function.process, self.scope, self._context
        for key, event in zip(keys, batch, strict=True):
            scope.key = context.key = key
            result = process(event, context)
            if result is not None:
                extend(result)
        return made


class ReduceOperator(KeyedOperator):
    """Combines the events of a key; emits the new value after each event."""

    def __init__(self, uid: str, key_type: Any, function: Callable[[Any, Any], Any], type: Any):
        super().__init__(uid, key_type)
        self._function, self._type = function, type

    def open(self, store: StateStore) -> None:
        """Register the state."""
        super().open(store)
        self._state = self.scope.value_state("value", self._type)

    def _process(self, keys: Sequence[Any], batch: list[Any]) -> list[Any]:
        function = self._function
        current = dict(zip(keys, self._state.get_many(keys), strict=True))
        made = []
        for key, event in zip(keys, batch, strict=True):
            before = current[key]
            current[key] = after = event if before is None else function(before, event)
            made.append(after)
        self._state.update_many(list(current), list(current.values()))
        return made


class AggregateOperator(KeyedOperator):
    """Adds the events of a key to an accumulator; emits (key, result) after each event."""

    def __init__(self, uid: str, key_type: Any, function: AggregateFunction, accumulator_type: Any):
        super().__init__(uid, key_type)
        self._function, self._type = function, accumulator_type

    def open(self, store: StateStore) -> None:
        """Register the state."""
        super().open(store)
        self._state = self.scope.value_state("accumulator", self._type)

    def _process(self, keys: Sequence[Any], batch: list[Any]) -> list[Any]:
        create, add, result = self._function.create_accumulator, self._function.add, self._function.get_result
        current = dict(zip(keys, self._state.get_many(keys), strict=True))
        made = []
        for key, event in zip(keys, batch, strict=True):
            before = current[key]
            current[key] = after = add(event, create() if before is None else before)
            made.append((key, result(after)))
        self._state.update_many(list(current), list(current.values()))
        return made


class SinkOperator(Operator):
    """Where events leave."""

    def __init__(self, uid: str, sink: Sink):
        super().__init__(uid)
        self.sink = sink

    def push(self, batch: list[Any]) -> None:
        """Write to the sink."""
        try:
            self.sink.write(batch)
        except StateStoreError:
            raise
        except Exception as error:
            raise UserCodeError.of(self.uid, error) from error
