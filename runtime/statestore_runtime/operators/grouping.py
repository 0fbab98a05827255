"""Partial accumulators of a record batch, one set of them per key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from statestore.errors import UsageError
from statestore.keys import KeyCodec
from statestore.reading.arrow import import_pyarrow
from statestore_runtime.aggregations import Accumulator, Aggregation

if TYPE_CHECKING:
    import pyarrow

HALF_BITS = 32
"""A number is high · 2³² + low; sums of either half over fewer than 2³¹ rows have less than 64 bits."""


class Grouping:
    """Groups the rows of record batches by key.

    Parameters
    ----------
    columns
        With the keys, or with their parts.

    Raises
    ------
    ConfigError
        pyarrow is not installed.
    """

    def __init__(self, columns: Sequence[str], key_codec: KeyCodec, aggregations: Sequence[Aggregation]):
        self._pa = import_pyarrow()
        from pyarrow import compute

        self._compute: Any = compute
        self._columns, self._codec = list(columns), key_codec
        self._accumulators = [each for one in aggregations for each in one.accumulators()]
        self._sum_options = compute.ScalarAggregateOptions(skip_nulls=True, min_count=0)

    def aggregate(self, rows: pyarrow.RecordBatch) -> tuple[list[Any], list[Any]]:
        """Keys and their partial accumulators.

        Raises
        ------
        UsageError
            A column is missing, or can't be of keys or of numbers, or a row has no key.
        """
        keys = {
            f"key-{number}": self._keys(rows, name, part.declared)
            for number, (name, part) in enumerate(zip(self._columns, self._codec.parts or [self._codec], strict=True))
        }
        columns: dict[str, pyarrow.Array] = {}
        wanted: list[Any] = []
        for number, each in enumerate(self._accumulators):
            found = self._values(rows, each)
            if not found:
                wanted.append(([], each.function))
            for half, values in enumerate(found):
                columns[f"{number}-{half}"] = values
                options = (self._sum_options,) if each.function == "sum" else ()
                wanted.append((f"{number}-{half}", each.function, *options))
        grouped = self._pa.table({**keys, **columns}).group_by(list(keys), use_threads=False)
        lists = iter([column.to_pylist() for column in grouped.aggregate(wanted).columns])
        parts = [next(lists) for _ in keys]
        made = []
        for number in range(len(self._accumulators)):
            values, is_split = next(lists), f"{number}-1" in columns
            made.append(_whole(values, next(lists)) if is_split else values)
        return self._put_together(parts), list(zip(*made, strict=True))

    def _column(self, rows: pyarrow.RecordBatch, name: str) -> pyarrow.Array:
        if name not in rows.schema.names:
            raise UsageError(f"the record batches have no column '{name}': they have {', '.join(rows.schema.names)}")
        return rows.column(name)

    def _keys(self, rows: pyarrow.RecordBatch, name: str, declared: Any) -> pyarrow.Array:
        tests, column = self._pa.types, self._column(rows, name)
        if tests.is_dictionary(column.type):
            column = column.dictionary_decode()
        kind = column.type
        fits = {
            str: tests.is_string(kind) or tests.is_large_string(kind),
            int: tests.is_integer(kind),
            bytes: tests.is_binary(kind) or tests.is_large_binary(kind),
            bool: tests.is_boolean(kind),
        }[declared]
        if not fits:
            raise UsageError(f"column '{name}' is {kind}, its keys are declared to be {declared.__name__}")
        if column.null_count:
            first = self._compute.index(column.is_null(), True).as_py()
            raise UsageError(
                f"column '{name}' has no key in {column.null_count} rows, the first of them is {rows.slice(first, 1).to_pylist()[0]}: "
                "filter them out, or fill it in"
            )
        return column

    def _values(self, rows: pyarrow.RecordBatch, accumulator: Accumulator) -> list[pyarrow.Array]:
        """What is aggregated: nothing for a number of rows; low and high halves for a sum that may be too large for Arrow."""
        if accumulator.column is None:
            return []
        tests, column = self._pa.types, self._column(rows, accumulator.column)
        kind = column.type
        if accumulator.function == "count":
            return [column]
        if tests.is_floating(kind):
            return [column.cast(self._pa.float64())]
        if not tests.is_integer(kind):
            raise UsageError(f"column '{accumulator.column}' is {kind}: {accumulator.function} takes numbers")
        if accumulator.function == "sum" and self._may_overflow(column):
            return self._halves(column if kind == self._pa.uint64() else column.cast(self._pa.int64()))
        return [column]

    def _may_overflow(self, numbers: pyarrow.Array) -> bool:
        """Whether the sum of all may have more than 64 bits, which Arrow would not tell."""
        least, greatest = self._compute.min_max(numbers).as_py().values()
        return least is not None and max(-least, greatest) * len(numbers) >= 1 << 63

    def _halves(self, numbers: pyarrow.Array) -> list[pyarrow.Array]:
        compute, half = self._compute, self._pa.scalar(HALF_BITS, numbers.type)
        high = compute.shift_right(numbers, half)
        return [compute.subtract(numbers, compute.shift_left(high, half)), high]

    def _put_together(self, parts: list[list[Any]]) -> list[Any]:
        """Keys of their parts."""
        if self._codec.is_scalar:
            return parts[0]
        keys = zip(*parts, strict=True)
        return list(keys) if self._codec.runtime_type is tuple else [self._codec.runtime_type(*key) for key in keys]


def _whole(low: list[int], high: list[int]) -> list[int]:
    return [(above << HALF_BITS) + below for below, above in zip(low, high, strict=True)]
