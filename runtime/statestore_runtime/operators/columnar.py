"""Operators whose batches are Arrow record batches, and the aggregation that makes keyed events of them. Need the extra `arrow`.

An aggregation has two phases, as Flink's mini-batch aggregation has. The edge to the workers that own the keys makes the partial
accumulators of each record batch, one per key in it: what goes over the edge are ordinary events with keys. Behind it they are merged into
the state, with one read and one write for all keys of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from statestore.errors import UsageError
from statestore.reading.arrow import import_pyarrow
from statestore.versions import StateOptions
from statestore_runtime.aggregations import Aggregation, merging, results
from statestore_runtime.functions import UserCodeError
from statestore_runtime.operators.base import Guard, Operator, TaskContext, Times
from statestore_runtime.operators.exchange import KeyByOperator
from statestore_runtime.operators.grouping import Grouping
from statestore_runtime.operators.keyed import KeyedOperator

if TYPE_CHECKING:
    import pyarrow


class ColumnarOperator(Operator):
    """Base of the operators that take record batches and emit something for each."""

    def open(self, context: TaskContext) -> None:
        """Import pyarrow. Raises ConfigError when it is not installed."""
        self._pa = import_pyarrow()

    def push(self, batch: Any, times: Times = None, port: int = 0) -> None:
        """Process a record batch."""
        with Guard(self.uid):
            made = self._process(batch)
        self.emit_anew(made)

    @abstractmethod
    def _process(self, batch: pyarrow.RecordBatch) -> Any:
        """What the operator makes of a record batch: another one, or events."""


class MapBatchesOperator(ColumnarOperator):
    """Another record batch for each."""

    def __init__(self, uid: str, function: Callable[[pyarrow.RecordBatch], pyarrow.RecordBatch]):
        super().__init__(uid)
        self._function = function

    def _process(self, batch: pyarrow.RecordBatch) -> Any:
        made = self._function(batch)
        if not isinstance(made, self._pa.RecordBatch):
            raise UsageError(
                f"the function of map() returned {type(made).__name__}: let it return a pyarrow.RecordBatch"
            )
        return made


class FilterBatchesOperator(ColumnarOperator):
    """The rows for which an expression, or what a function returns, is true."""

    def __init__(self, uid: str, condition: Any):
        super().__init__(uid)
        self._condition = condition

    def _process(self, batch: pyarrow.RecordBatch) -> Any:
        condition = self._condition
        return batch.filter(condition(batch) if callable(condition) else condition)


class RowsOperator(ColumnarOperator):
    """The rows one by one."""

    def _process(self, batch: pyarrow.RecordBatch) -> Any:
        return batch.to_pylist()


class LocalAggregateOperator(KeyByOperator):
    """The edge: emits (key, partial accumulators) for each key of a record batch."""

    def __init__(self, uid: str, columns: Sequence[str], key_type: Any, aggregations: Sequence[Aggregation]):
        super().__init__(uid, _no_events, key_type)
        self._columns, self._aggregations = columns, aggregations

    def open(self, context: TaskContext) -> None:
        """Import pyarrow. Raises ConfigError when it is not installed."""
        self._grouping = Grouping(self._columns, self.key_codec, self._aggregations)

    def push(self, batch: Any, times: Times = None, port: int = 0) -> None:
        """Aggregate a record batch."""
        with Guard(self.uid):
            keys, partial = self._grouping.aggregate(batch)
        try:
            self.send(keys, partial, None)
        except UserCodeError as error:
            error.index = None  # it is of the accumulators
            raise


class GlobalAggregateOperator(KeyedOperator):
    """Merges partial accumulators into the state; emits (key, results) for each key of a batch."""

    def __init__(
        self, uid: str, key_type: Any, aggregations: Sequence[Aggregation], options: StateOptions | None = None
    ):
        super().__init__(uid, key_type)
        self._options = options or {}
        self._accumulators = [each for one in aggregations for each in one.accumulators()]
        self._merge, self._results = merging(aggregations), results(aggregations)

    def open(self, context: TaskContext) -> None:
        """Register the state."""
        super().open(context)
        declared: Any = tuple.__class_getitem__(tuple(each.type for each in self._accumulators))
        initial = tuple(each.initial for each in self._accumulators)
        self._state = self.scope.value_state("accumulators", declared, initial, **self._options)

    def push_keyed(self, keys: list[Any], batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Merge partial accumulators with their keys."""
        with Guard(self.uid):
            if len(set(keys)) < len(keys):  # of several batches, from another worker
                keys, batch = self._merged_by_key(keys, batch)
            merged = self._merge(self._state.get_many(keys), batch)
            self._state.update_many(keys, merged)
            made = list(zip(keys, self._results(merged), strict=True))
        self.emit_anew(made)

    def _merged_by_key(self, keys: list[Any], batch: list[Any]) -> tuple[list[Any], list[Any]]:
        by_key: dict[Any, Any] = {}
        for key, partial in zip(keys, batch, strict=True):
            known = by_key.get(key)
            by_key[key] = partial if known is None else self._merge([known], [partial])[0]
        return list(by_key), list(by_key.values())


def _no_events(event: Any) -> Any:
    raise AssertionError("record batches have columns of keys")
