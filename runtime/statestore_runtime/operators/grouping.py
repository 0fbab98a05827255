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

_HALF_BITS = 32


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
            A column is missing, or can't be of keys or of numbers.
        """
        pa, columns = self._pa, {}
        for number, (name, part) in enumerate(zip(self._columns, self._codec.parts or [self._codec], strict=True)):
            columns[f"key-{number}"] = self._keys(self._column(rows, name), name, part.declared)
        wanted: list[Any] = []
        halves: list[int] = []
        for number, each in enumerate(self._accumulators):
            name = f"value-{number}"
            if each.column is None:
                wanted.append(([], each.function))
                continue
            values = self._column(rows, each.column)
            if each.function == "count":
                wanted.append((name, "count"))
            elif each.function == "sum" and self._may_overflow(values := self._numbers(values, each)):
                halves.append(number)
                wanted += [(name, "sum", self._sum_options), (f"{name}-high", "sum", self._sum_options)]
                columns[f"{name}-high"], values = self._split(values)
            else:
                values = self._numbers(values, each)
                options = (self._sum_options,) if each.function == "sum" else ()
                wanted.append((name, each.function, *options))
            columns[name] = values
        keys = [name for name in columns if name.startswith("key-")]
        made = pa.table(columns).group_by(keys, use_threads=False).aggregate(wanted)
        lists = [column.to_pylist() for column in made.columns]
        return self._put_together(lists[: len(keys)]), list(zip(*self._whole(lists[len(keys) :], halves), strict=True))

    def _column(self, rows: pyarrow.RecordBatch, name: str) -> pyarrow.Array:
        if name not in rows.schema.names:
            raise UsageError(f"the record batches have no column '{name}': they have {', '.join(rows.schema.names)}")
        return rows.column(name)

    def _keys(self, column: pyarrow.Array, name: str, declared: Any) -> pyarrow.Array:
        tests = self._pa.types
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
            raise UsageError(
                f"column '{name}' has {column.null_count} rows without a key: filter them out, or fill them in"
            )
        return column

    def _numbers(self, column: pyarrow.Array, accumulator: Accumulator) -> pyarrow.Array:
        tests, kind = self._pa.types, column.type
        if tests.is_floating(kind):
            return column.cast(self._pa.float64())
        if tests.is_integer(kind):
            return column if kind == self._pa.uint64() else column.cast(self._pa.int64())
        raise UsageError(f"column '{accumulator.column}' is {kind}, {accumulator.function} takes numbers")

    def _may_overflow(self, numbers: pyarrow.Array) -> bool:
        """Whether the sum of all may be more than Arrow has bits for, which would not say so."""
        if not self._pa.types.is_integer(numbers.type):
            return False
        least, greatest = self._compute.min_max(numbers).as_py().values()
        return least is not None and max(-least, greatest) * len(numbers) >= 1 << 63

    def _split(self, numbers: pyarrow.Array) -> tuple[pyarrow.Array, pyarrow.Array]:
        """High and low half of each; numbers = high · 2³² + low."""
        compute, half = self._compute, self._pa.scalar(_HALF_BITS, numbers.type)
        high = compute.shift_right(numbers, half)
        return high, compute.subtract(numbers, compute.shift_left(high, half))

    @staticmethod
    def _whole(lists: list[list[Any]], halves: list[int]) -> list[list[Any]]:
        """The sums whose halves were summed up, as one."""
        for number in halves:
            low, high = lists[number], lists.pop(number + 1)
            lists[number] = [(above << _HALF_BITS) + below for above, below in zip(high, low, strict=True)]
        return lists

    def _put_together(self, parts: list[list[Any]]) -> list[Any]:
        """Keys of their parts."""
        if self._codec.is_scalar:
            return parts[0]
        keys = zip(*parts, strict=True)
        return list(keys) if self._codec.runtime_type is tuple else [self._codec.runtime_type(*key) for key in keys]
