"""Streams in windows, and streams that are joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from statestore.errors import UsageError
from statestore.state import AggregateFunction
from statestore.versions import Upcast
from statestore_runtime.arguments import check_aggregate, check_callable, check_function, function_copy, kind_of
from statestore_runtime.job import Output
from statestore_runtime.joins import MapPairs, ProcessJoinFunction
from statestore_runtime.operators import AlignedWindowOperator, IntervalJoinOperator, Operator, SessionOperator
from statestore_runtime.operators.contents import Contents, Folded, Kept
from statestore_runtime.streams import KeyedStream, ProcessedStream
from statestore_runtime.watermarks import Duration, duration_ms, signed_ms
from statestore_runtime.windows import ProcessWindowFunction, Session, Sliding, Tumbling, WindowResult, Windows

T = TypeVar("T")
T2 = TypeVar("T2")
U = TypeVar("U")
K = TypeVar("K")


class WindowedStream(Generic[K, T]):
    """A keyed stream in windows; made by `window`.

    The aggregations keep one accumulator per key and window, and emit a `WindowResult` with key, start, end and value.
    """

    def __init__(self, keyed: KeyedStream[K, T], windows: Windows, allowed_lateness: Duration, late_output: str | None):
        if not isinstance(windows, Tumbling | Sliding | Session):
            raise UsageError(f"window() takes Tumbling(...), Sliding(...) or Session(...), not {kind_of(windows)}")
        check_tag("window", late_output)
        keyed.check_timed("window")
        self._keyed, self._windows, self._late_output = keyed, windows, late_output
        self._lateness_ms = duration_ms(allowed_lateness, "allowed_lateness")

    def _then(self, uid: str | None, contents: Callable[[str], Contents]) -> ProcessedStream[Any]:
        keyed, windows, lateness_ms, late_output = self._keyed, self._windows, self._lateness_ms, self._late_output

        def make(uid: str) -> Operator:
            if isinstance(windows, Session):
                return SessionOperator(uid, keyed.key_type, windows, contents(uid), lateness_ms, late_output)
            return AlignedWindowOperator(uid, keyed.key_type, windows, contents(uid), lateness_ms, late_output)

        return ProcessedStream(keyed.job, Output(keyed.job.add("window", uid, make, keyed.output)))

    def reduce(
        self, function: Callable[[T, T], T], type: Any, uid: str | None = None, *, upcast: Upcast | None = None
    ) -> ProcessedStream[WindowResult]:
        """The events of each window combined.

        Parameters
        ----------
        function
            Combines what there is with the next event; the first event stands for itself. Must be associative where windows are sessions.
        type
            Of the events, and so of the state.
        upcast
            Makes values of this type of those that were stored with a type it can't read.
        """
        check_callable("reduce", function)

        def contents(uid: str) -> Contents:
            return Folded(
                type, lambda event: event, lambda event, before: function(before, event), function, None, upcast
            )

        return self._then(uid, contents)

    def aggregate(
        self,
        function: AggregateFunction,
        accumulator_type: Any,
        uid: str | None = None,
        *,
        upcast: Upcast | None = None,
    ) -> ProcessedStream[WindowResult]:
        """The result of an accumulator of the events of each window. `upcast` as of `reduce`; sessions are merged with `function.merge`."""
        check_aggregate(function)

        def contents(uid: str) -> Contents:
            create, add = function.create_accumulator, function.add
            return Folded(
                accumulator_type, lambda event: add(event, create()), add, function.merge, function.get_result, upcast
            )

        return self._then(uid, contents)

    def count(self, uid: str | None = None) -> ProcessedStream[WindowResult]:
        """How many events there are in each window."""
        return self._then(uid, lambda uid: Folded(int, lambda event: 1, lambda event, n: n + 1, lambda n, m: n + m))

    def sum(self, of: Callable[[T], Any], type: Any, uid: str | None = None) -> ProcessedStream[WindowResult]:
        """The sum of a number of each event.

        Parameters
        ----------
        of
            Gives the number.
        type
            Its type: int, float or Decimal.
        """
        check_callable("sum", of)
        return self._then(uid, lambda uid: Folded(type, of, lambda event, total: total + of(event), lambda a, b: a + b))

    def process(
        self,
        function: ProcessWindowFunction[K, T, U],
        type: Any,
        uid: str | None = None,
        *,
        upcast: Upcast | None = None,
    ) -> ProcessedStream[U]:
        """What a function returns for all events of each window.

        Parameters
        ----------
        function
            Called when a window is over.
        type
            Of the events, which are kept as state until then.
        upcast
            Makes events of this type of those that were stored with a type it can't read.
        """
        check_function("process", function, ProcessWindowFunction)
        return self._then(uid, lambda uid: Kept(function_copy(uid, function), type, upcast))


class IntervalJoin(Generic[K, T, T2]):
    """Two keyed streams to be joined; made by `interval_join`."""

    def __init__(
        self,
        left: KeyedStream[K, T],
        right: KeyedStream[K, T2],
        lower: Duration,
        upper: Duration,
        types: tuple[Any, Any],
        late_output: str | None,
    ):
        self._lower, self._upper = signed_ms(lower, "the lower bound"), signed_ms(upper, "the upper bound")
        if self._lower > self._upper:
            raise UsageError(f"interval_join()'s lower bound {lower!r} is above its upper bound {upper!r}")
        if not isinstance(types, tuple) or len(types) != 2:
            raise UsageError(
                f"interval_join()'s types are a pair, of this stream's events and the other's, not {types!r}"
            )
        check_tag("interval_join", late_output)
        for stream in (left, right):
            stream.check_timed("interval_join")
        self._left, self._right, self._types, self._late_output = left, right, types, late_output

    def process(self, function: ProcessJoinFunction[K, T, T2, U], uid: str | None = None) -> ProcessedStream[U]:
        """What a function returns for each pair."""
        check_function("process", function, ProcessJoinFunction)
        left, bounds, types, late_output = self._left, (self._lower, self._upper), self._types, self._late_output

        def make(uid: str) -> Operator:
            return IntervalJoinOperator(uid, left.key_type, function_copy(uid, function), *bounds, types, late_output)

        return ProcessedStream(left.job, Output(left.job.add("join", uid, make, left.output, self._right.output)))

    def map(self, function: Callable[[T, T2], U], uid: str | None = None) -> ProcessedStream[U]:
        """What `function` returns for each pair: one result."""
        check_callable("map", function)
        return self.process(MapPairs(function), uid)


def check_tag(verb: str, tag: object) -> None:
    """Raise UsageError unless it is a tag or None."""
    if tag is not None and not isinstance(tag, str):
        raise UsageError(f"{verb}()'s late_output is the tag of a side output, a text, not {tag!r}")
