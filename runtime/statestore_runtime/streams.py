"""Streams: what a program writes down between a source and a sink."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, overload

from statestore.codecs import Codec
from statestore.errors import UsageError
from statestore.keys import KeyCodec
from statestore.state import AggregateFunction
from statestore.versions import StateOptions
from statestore_runtime.arguments import check_aggregate, check_callable, check_function, function_copy, kind_of
from statestore_runtime.functions import (
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
)
from statestore_runtime.job import Job, MakeOperator, Output
from statestore_runtime.operators import (
    AggregateOperator,
    AssignTimestampsOperator,
    BroadcastOperator,
    BroadcastProcessOperator,
    CoProcessOperator,
    FilterOperator,
    FlatMapOperator,
    KeyByOperator,
    MapOperator,
    ProcessOperator,
    ReduceOperator,
    SinkOperator,
    UnionOperator,
)
from statestore_runtime.sinks import CallableSink, PrintSink, Sink
from statestore_runtime.watermarks import Duration, WatermarkStrategy
from statestore_runtime.windows import Windows

if TYPE_CHECKING:
    from statestore_runtime.windowing import IntervalJoin, WindowedStream

T = TypeVar("T")
T2 = TypeVar("T2")
U = TypeVar("U")
K = TypeVar("K")


class Stream(Generic[T]):
    """Events without a key. Any number of operators may take them."""

    def __init__(self, job: Job, output: Output):
        self._job, self._output = job, output

    def _then(self, kind: str, uid: str | None, make: MakeOperator) -> Stream[Any]:
        return Stream(self._job, Output(self._job.add(kind, uid, make, self._output)))

    def map(self, function: Callable[[T], U], uid: str | None = None) -> Stream[U]:
        """What `function` returns for each event."""
        check_callable("map", function)
        return self._then("map", uid, lambda uid: MapOperator(uid, function))

    def filter(self, function: Callable[[T], object], uid: str | None = None) -> Stream[T]:
        """The events for which `function` is true."""
        check_callable("filter", function)
        return self._then("filter", uid, lambda uid: FilterOperator(uid, function))

    def flat_map(self, function: Callable[[T], Iterable[U]], uid: str | None = None) -> Stream[U]:
        """All that `function` returns, or yields, for each event."""
        check_callable("flat_map", function)
        return self._then("flat-map", uid, lambda uid: FlatMapOperator(uid, function))

    def assign_timestamps(self, strategy: WatermarkStrategy, uid: str | None = None) -> Stream[T]:
        """The same events with new event times, where the source knows none, or others.

        Each worker makes one watermark of all events that it sees. Where the splits of a source are not in step, give the strategy to
        `job.source(..., watermarks=strategy)`, which makes one for each.

        Raises
        ------
        UsageError
            It is no strategy.
        """
        if not isinstance(strategy, WatermarkStrategy):
            raise UsageError(f"assign_timestamps() takes a WatermarkStrategy, not {kind_of(strategy)}")
        node = self._job.add(
            "timestamps", uid, lambda uid: AssignTimestampsOperator(uid, strategy), self._output, is_timed=True
        )
        return Stream(self._job, Output(node))

    def key_by(self, function: Callable[[T], K], key_type: type[K], uid: str | None = None) -> KeyedStream[K, T]:
        """The events with a key each.

        Parameters
        ----------
        function
            Gives an event's key.
        key_type
            str, int, bytes, bool, a tuple of these, or a frozen msgspec.Struct of these. A key of another type ends the job.

        Raises
        ------
        UsageError
            The key type is none of these.
        """
        check_callable("key_by", function)
        KeyCodec(key_type)
        node = self._job.add("key-by", uid, lambda uid: KeyByOperator(uid, function, key_type), self._output)
        return KeyedStream(self._job, Output(node), key_type)

    def union(self, *others: Stream[Any], uid: str | None = None) -> Stream[Any]:
        """The events of this stream and the others; event time is where the last of them has come.

        Raises
        ------
        UsageError
            One is of another job.
        """
        for other in others:
            if not isinstance(other, Stream) or other._job is not self._job:
                raise UsageError("union() takes streams of the same job")
        outputs = [self._output, *(other._output for other in others)]
        return Stream(self._job, Output(self._job.add("union", uid, UnionOperator, *outputs)))

    def broadcast(self, name: str, key_type: Any, value_type: Any, uid: str | None = None) -> BroadcastStream[T]:
        """The events for every worker, to `connect` a keyed stream with: they fill a map that all its keys read.

        Parameters
        ----------
        name
            Of the map, which is found again by it.
        key_type, value_type
            Of its entries.

        Raises
        ------
        UsageError
            Values of a type can't be stored.
        """
        state_type = dict[key_type, value_type]
        Codec(state_type)
        node = self._job.add("broadcast", uid, BroadcastOperator, self._output)
        return BroadcastStream(self._job, Output(node), name, state_type)

    def sink(self, sink: Sink | Callable[[T], object], uid: str | None = None) -> None:
        """Send the events out of the job, to a sink or to a function that is called with each."""
        if not isinstance(sink, Sink):
            if isinstance(sink, type) or not callable(sink):
                raise UsageError(f"sink() takes a sink such as FileSink(...), or a function, not {kind_of(sink)}")
            sink = CallableSink(sink)
        target = sink
        if not isinstance(target, CallableSink):  # which keeps nothing
            if any(target is other for other in self._job.sinks):
                raise UsageError(
                    f"{kind_of(target)} takes one stream: give each its own, or make one of them with union()"
                )
            self._job.sinks.append(target)
        self._then("sink", uid, lambda uid: SinkOperator(uid, copy.copy(target)))

    def print(self, uid: str | None = None) -> None:
        """Print each event."""
        self.sink(PrintSink(), uid)


class ProcessedStream(Stream[T]):
    """What an operator with side outputs emits."""

    def side_output(self, tag: str) -> Stream[Any]:
        """What the operator's function has sent to this side output, and late events, where it is the one for them."""
        return Stream(self._job, Output(self._output.node, tag))


class BroadcastStream(Generic[T]):
    """Events that go to every worker."""

    def __init__(self, job: Job, output: Output, name: str, state_type: Any):
        self.job, self.output, self.name, self.state_type = job, output, name, state_type


class KeyedStream(Generic[K, T]):
    """Events with a key, for operators with state per key."""

    def __init__(self, job: Job, output: Output, key_type: type[K]):
        self.job, self.output, self.key_type = job, output, key_type

    def _then(self, kind: str, uid: str | None, make: MakeOperator, *others: Output) -> ProcessedStream[Any]:
        return ProcessedStream(self.job, Output(self.job.add(kind, uid, make, self.output, *others)))

    def process(self, function: KeyedProcessFunction[K, T, U], uid: str | None = None) -> ProcessedStream[U]:
        """What a function with state returns for each event and timer."""
        check_function("process", function, KeyedProcessFunction)
        key_type = self.key_type
        return self._then("process", uid, lambda uid: ProcessOperator(uid, key_type, function_copy(uid, function)))

    def reduce(
        self, function: Callable[[T, T], T], type: Any, uid: str | None = None, **options: Unpack[StateOptions]
    ) -> Stream[T]:
        """The events of each key combined so far, after each event.

        Parameters
        ----------
        function
            Combines what there is with the next event; the first event stands for itself.
        type
            Of the events, and so of the state.
        **options
            Of the state, which is named `value`: `ttl`, `upcast`, `renamed_from` and `codec`; see `StateOptions`.
        """
        check_callable("reduce", function)
        key_type = self.key_type
        return self._then("reduce", uid, lambda uid: ReduceOperator(uid, key_type, function, type, options))

    def aggregate(
        self,
        function: AggregateFunction,
        accumulator_type: Any,
        uid: str | None = None,
        **options: Unpack[StateOptions],
    ) -> Stream[tuple[K, Any]]:
        """(key, result) after each event, of an accumulator of the declared type.

        Options as of `reduce`; the state is named `accumulator`.
        """
        check_aggregate(function)
        key_type = self.key_type
        return self._then(
            "aggregate", uid, lambda uid: AggregateOperator(uid, key_type, function, accumulator_type, options)
        )

    def window(
        self, windows: Windows, *, allowed_lateness: Duration = 0, late_output: str | None = None
    ) -> WindowedStream[K, T]:
        """The events in windows of event time.

        Parameters
        ----------
        windows
            `Tumbling("1min")`, `Sliding("1h", "5min")` or `Session("30min")`.
        allowed_lateness
            How long a window is kept once it is over: an event that comes until then changes its result, which is emitted again.
        late_output
            Tag of the side output that takes events which come later still; without it they are dropped, and counted.

        Raises
        ------
        UsageError
            An argument is none of these, or the events have no event times.
        """
        from statestore_runtime.windowing import WindowedStream  # builds on this module

        return WindowedStream(self, windows, allowed_lateness, late_output)

    @overload
    def connect(self, other: KeyedStream[K, T2]) -> ConnectedStreams[K, T, T2]: ...

    @overload
    def connect(self, other: BroadcastStream[T2]) -> BroadcastConnectedStream[K, T, T2]: ...

    def connect(
        self, other: KeyedStream[K, T2] | BroadcastStream[T2]
    ) -> ConnectedStreams[K, T, T2] | BroadcastConnectedStream[K, T, T2]:
        """This stream together with another one, for a function of both.

        Parameters
        ----------
        other
            A stream with keys of the same type, for `process(KeyedCoProcessFunction)`; or a broadcast one, for
            `process(KeyedBroadcastProcessFunction)`.

        Raises
        ------
        UsageError
            It is none of these, of another job, or has other keys.
        """
        if isinstance(other, BroadcastStream):
            self.check_same_job("connect", other.job)
            return BroadcastConnectedStream(self, other)
        self.check_joinable("connect", other)
        return ConnectedStreams(self, other)

    def interval_join(
        self,
        other: KeyedStream[K, T2],
        lower: Duration,
        upper: Duration,
        types: tuple[Any, Any],
        *,
        late_output: str | None = None,
    ) -> IntervalJoin[K, T, T2]:
        """Pairs of an event of this stream and one of the other, with the same key, that lie close enough in event time.

        Parameters
        ----------
        lower, upper
            The other event's time less this one's, both included: ("-5s", "10s") takes those from five seconds before to ten after.
        types
            Types of the events of this stream and of the other, which are kept as state until nothing can join them any more.
        late_output
            Tag of the side output that takes the events of either stream that come after the watermark; without it they are dropped, and
            counted.

        Raises
        ------
        UsageError
            An argument is none of these, the other stream is of another job or has other keys, or events have no event times.
        """
        from statestore_runtime.windowing import IntervalJoin  # builds on this module

        self.check_joinable("interval_join", other)
        return IntervalJoin(self, other, lower, upper, types, late_output)

    # What the classes above check

    def check_same_job(self, verb: str, job: Job) -> None:
        """Raise UsageError when `job` is another."""
        if job is not self.job:
            raise UsageError(f"{verb}() takes streams of the same job")

    def check_joinable(self, verb: str, other: object) -> None:
        """Raise UsageError unless `other` is a keyed stream of the same job with keys of the same type."""
        if not isinstance(other, KeyedStream):
            raise UsageError(f"{verb}() takes a stream with keys, made by key_by(...), not {kind_of(other)}")
        self.check_same_job(verb, other.job)
        mine, theirs = KeyCodec(self.key_type).name, KeyCodec(other.key_type).name
        if mine != theirs:
            raise UsageError(f"{verb}() takes streams with the same type of keys: one has {mine}, the other {theirs}")

    def check_timed(self, verb: str) -> None:
        """Raise UsageError when the events have no event times."""
        if not self.output.node.is_timed:
            raise UsageError(
                f"{verb}() goes by event time, and these events have none: give the source watermarks=, or call assign_timestamps(...)"
            )


class ConnectedStreams(Generic[K, T, T2]):
    """Two streams with the same type of keys."""

    def __init__(self, first: KeyedStream[K, T], second: KeyedStream[K, T2]):
        self._first, self._second = first, second

    def process(self, function: KeyedCoProcessFunction[K, T, T2, U], uid: str | None = None) -> ProcessedStream[U]:
        """What a function with state returns for each event of either stream and each timer."""
        check_function("process", function, KeyedCoProcessFunction)
        first = self._first

        def make(uid: str) -> CoProcessOperator:
            return CoProcessOperator(uid, first.key_type, function_copy(uid, function))

        node = first.job.add("process", uid, make, first.output, self._second.output)
        return ProcessedStream(first.job, Output(node))


class BroadcastConnectedStream(Generic[K, T, T2]):
    """A keyed stream and a broadcast one."""

    def __init__(self, keyed: KeyedStream[K, T], broadcast: BroadcastStream[T2]):
        self._keyed, self._broadcast = keyed, broadcast

    def process(
        self, function: KeyedBroadcastProcessFunction[K, T, T2, U], uid: str | None = None
    ) -> ProcessedStream[U]:
        """What a function with state returns for each event of either stream and each timer."""
        check_function("process", function, KeyedBroadcastProcessFunction)
        keyed, broadcast = self._keyed, self._broadcast

        def make(uid: str) -> BroadcastProcessOperator:
            copied = function_copy(uid, function)
            return BroadcastProcessOperator(uid, keyed.key_type, copied, broadcast.name, broadcast.state_type)

        node = keyed.job.add("process", uid, make, keyed.output, broadcast.output)
        return ProcessedStream(keyed.job, Output(node))
