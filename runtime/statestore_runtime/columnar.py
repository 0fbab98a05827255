"""Columnar streams: batches stay Arrow record batches from the file to the aggregation. Need the extra `arrow`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, Unpack, runtime_checkable

from statestore.errors import UsageError
from statestore.keys import KeyCodec
from statestore.versions import StateOptions
from statestore_runtime.aggregations import Aggregation
from statestore_runtime.arguments import check_callable, kind_of
from statestore_runtime.job import Job, MakeOperator, Output
from statestore_runtime.operators.columnar import (
    FilterBatchesOperator,
    GlobalAggregateOperator,
    LocalAggregateOperator,
    MapBatchesOperator,
    RowsOperator,
)
from statestore_runtime.sources import Source
from statestore_runtime.streams import Stream

if TYPE_CHECKING:
    import pyarrow

K = TypeVar("K")

DEFAULT_BATCH_ROWS = 1 << 20
"""Each key in a batch costs a read, a write and an event of its own: the more rows have the same key, the less. A row costs a few bytes
more than its values."""


@runtime_checkable
class SupportsRecordBatches(Protocol):
    """A source that can read record batches."""

    def record_batches(self, batch_rows: int) -> Source:
        """The same source, whose batches are Arrow record batches of about so many rows.

        Raises
        ------
        UsageError, ConfigError
            It can't.
        """
        ...


class ColumnarStream:
    """Rows without a key, in Arrow record batches. Any number of operators may take them.

    Rows are what counts: in reports, rate limits, and where a function fails. A job that passes over events on which a function fails
    calls it again with fewer and fewer rows, to find the one.
    """

    def __init__(self, job: Job, output: Output):
        self._job, self._output = job, output

    def _then(self, kind: str, uid: str | None, make: MakeOperator) -> Output:
        return Output(self._job.add(kind, uid, make, self._output))

    def map(
        self, function: Callable[[pyarrow.RecordBatch], pyarrow.RecordBatch], uid: str | None = None
    ) -> ColumnarStream:
        """What `function` returns for each record batch: another one. It must not depend on how rows are cut into batches."""
        check_callable("map", function)
        return ColumnarStream(self._job, self._then("map", uid, lambda uid: MapBatchesOperator(uid, function)))

    def filter(
        self, condition: pyarrow.compute.Expression | Callable[[pyarrow.RecordBatch], Any], uid: str | None = None
    ) -> ColumnarStream:
        """The rows for which a condition is true.

        Parameters
        ----------
        condition
            An expression such as `pyarrow.compute.field("value") > 10`, or a function that makes an array of truths of a record batch.

        Raises
        ------
        UsageError
            It is none of these.
        """
        if not (callable(condition) or _is_expression(condition)):
            raise UsageError(f"filter() takes an expression of pyarrow.compute or a function, not {kind_of(condition)}")
        return ColumnarStream(self._job, self._then("filter", uid, lambda uid: FilterBatchesOperator(uid, condition)))

    def key_by(self, columns: str | Sequence[str], key_type: type[K], uid: str | None = None) -> KeyedColumnarStream[K]:
        """The rows with a key each.

        Parameters
        ----------
        columns
            Name of the column with the keys, or names of those with the parts of keys.
        key_type
            str, int, bytes or bool; of several columns a tuple of these, or a frozen msgspec.Struct with as many fields. A key that is null
            or of another type ends the job.

        Raises
        ------
        UsageError
            The key type is none of these, or has another number of parts.
        """
        names = [columns] if isinstance(columns, str) else list(columns)
        codec = KeyCodec(key_type)
        if len(codec.parts or [codec]) != len(names) or not all(part.is_scalar for part in codec.parts):
            raise UsageError(f"key_by() takes one column for each part of a key: {codec.name} can't be of {names}")
        return KeyedColumnarStream(self._job, self._output, names, key_type, uid)

    def rows(self, uid: str | None = None) -> Stream[dict[str, Any]]:
        """The rows one by one, as dicts."""
        return Stream(self._job, self._then("rows", uid, RowsOperator))


class KeyedColumnarStream(Generic[K]):
    """Rows with a key, for an aggregation."""

    def __init__(self, job: Job, output: Output, columns: list[str], key_type: type[K], uid: str | None):
        self._job, self._output, self._columns, self._key_type, self._uid = job, output, columns, key_type, uid

    def aggregate(
        self, *aggregations: Aggregation, uid: str | None = None, **options: Unpack[StateOptions]
    ) -> Stream[tuple[K, tuple[Any, ...]]]:
        """(key, results) for each key of each batch: what the aggregations make of all its rows so far.

        Parameters
        ----------
        aggregations
            `Count()`, `Sum("value")`, `Min`, `Max`, `Mean`; the results are in this order.
        **options
            Of the state, which is named `accumulators`: as of `KeyedStream.reduce`.

        Raises
        ------
        UsageError
            There is none, or one is something else.
        """
        for each in aggregations:
            if not isinstance(each, Aggregation):
                raise UsageError(f"aggregate() takes aggregations such as Sum('value'), not {kind_of(each)}")
        if not aggregations:
            raise UsageError("aggregate() takes at least one aggregation, such as Count()")
        from pyarrow import acero, compute  # noqa: F401  # the run needs them, and would wait for them

        columns, key_type = self._columns, self._key_type

        def edge(uid: str) -> LocalAggregateOperator:
            return LocalAggregateOperator(uid, columns, key_type, aggregations)

        keyed = Output(self._job.add("key-by", self._uid, edge, self._output))

        def make(uid: str) -> GlobalAggregateOperator:
            return GlobalAggregateOperator(uid, key_type, aggregations, options)

        return Stream(self._job, Output(self._job.add("aggregate", uid, make, keyed)))


def _is_expression(condition: object) -> bool:
    from pyarrow import compute

    return isinstance(condition, compute.Expression)
