"""Aggregations of columns: what a keyed columnar stream counts and sums.

Each keeps one accumulator per key, or several, and is made in two steps: Arrow makes the partial accumulators of a record batch, one per
key that is in it, and these are merged into what the state holds.

Nulls are passed over, as everywhere in the field: `Count()` counts rows, `Count("column")` values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from statestore.errors import UsageError

Function = Literal["count_all", "count", "sum", "min", "max"]


class Accumulator(NamedTuple):
    """One number per key.

    Attributes
    ----------
    function
        Of Arrow, which makes the partial ones.
    column
        Of what; None: of whole rows.
    type
        As the state keeps it.
    initial
        Of a key that there was not yet.
    merged
        Expression of the one made of two, `{0}` and `{1}`.
    """

    function: Function
    column: str | None
    type: Any
    initial: Any
    merged: str


class Aggregation(ABC):
    """What is known of all rows with a key.

    Parameters
    ----------
    column
        Of what.

    Raises
    ------
    UsageError
        It is no name.
    """

    result: ClassVar[str] = "{0}"
    """Expression of the result, of the accumulators."""

    def __init__(self, column: str):
        if not isinstance(column, str):
            raise UsageError(f"{type(self).__name__}() takes the name of a column, not {column!r}")
        self.column: str | None = column

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.column is None else repr(self.column)})"

    @abstractmethod
    def accumulators(self) -> Sequence[Accumulator]:
        """What is kept."""


class Count(Aggregation):
    """Number of rows, or of the values in a column that are not null."""

    def __init__(self, column: str | None = None):
        if column is None:
            self.column = None
        else:
            super().__init__(column)

    def accumulators(self) -> Sequence[Accumulator]:
        """One number."""
        return [Accumulator("count_all" if self.column is None else "count", self.column, int, 0, "{0} + {1}")]


class Sum(Aggregation):
    """Sum of a column of numbers: of integers exact, however large; 0 where all are null."""

    def accumulators(self) -> Sequence[Accumulator]:
        """One number."""
        return [Accumulator("sum", self.column, int | float, 0, "{0} + {1}")]


class Min(Aggregation):
    """Least number of a column; None where all are null. What is not a number (NaN) does not count."""

    def accumulators(self) -> Sequence[Accumulator]:
        """One number, or None."""
        merged = "{0} if {1} is None or ({0} is not None and {0} <= {1}) else {1}"
        return [Accumulator("min", self.column, int | float | None, None, merged)]


class Max(Aggregation):
    """Greatest number of a column; None where all are null. What is not a number (NaN) does not count."""

    def accumulators(self) -> Sequence[Accumulator]:
        """One number, or None."""
        merged = "{0} if {1} is None or ({0} is not None and {0} >= {1}) else {1}"
        return [Accumulator("max", self.column, int | float | None, None, merged)]


class Mean(Aggregation):
    """Mean of a column of numbers; None where all are null."""

    result = "{0} / {1} if {1} else None"

    def accumulators(self) -> Sequence[Accumulator]:
        """Sum and number."""
        return [*Sum(str(self.column)).accumulators(), *Count(self.column).accumulators()]


def merging(aggregations: Sequence[Aggregation]) -> Callable[[list[Any], list[Any]], list[Any]]:
    """Function that merges two lists of accumulators, one tuple per key.

    It is one comprehension, written for these aggregations: that takes a third of the time of a loop over them for each key.
    """
    accumulators = [each for one in aggregations for each in one.accumulators()]
    merged = ", ".join(each.merged.format(f"a{n}", f"b{n}") for n, each in enumerate(accumulators))
    old, new = (", ".join(f"{side}{n}" for n in range(len(accumulators))) for side in "ab")
    return _function("old, new", f"[({merged},) for ({old},), ({new},) in zip(old, new, strict=True)]")


def results(aggregations: Sequence[Aggregation]) -> Callable[[list[Any]], list[Any]]:
    """Function that makes results of accumulators, one tuple per key."""
    counts = [len(each.accumulators()) for each in aggregations]
    if all(each.result == "{0}" for each in aggregations):
        return lambda accumulators: accumulators
    names = [f"a{n}" for n in range(sum(counts))]
    made = (one.result.format(*names[sum(counts[:n]) :]) for n, one in enumerate(aggregations))
    return _function("accumulators", f"[({', '.join(made)},) for ({', '.join(names)},) in accumulators]")


def _function(arguments: str, expression: str) -> Callable[..., list[Any]]:
    made: Callable[..., list[Any]] = eval(f"lambda {arguments}: {expression}")  # of the expressions of this module only
    return made
