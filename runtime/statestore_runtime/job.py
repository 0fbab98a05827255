"""The graph of a job, as a program writes it down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from statestore.checkpoint.storage import checked_job_name
from statestore.config import Config, load_config
from statestore.errors import UsageError
from statestore.keys import KeyCodec
from statestore.state import AggregateFunction
from statestore_runtime.functions import KeyedProcessFunction
from statestore_runtime.operators import (
    AggregateOperator,
    FilterOperator,
    FlatMapOperator,
    KeyByOperator,
    MapOperator,
    Operator,
    ProcessOperator,
    ReduceOperator,
    SinkOperator,
    SourceOperator,
)
from statestore_runtime.sinks import CallableSink, PrintSink, Sink
from statestore_runtime.sources import Source

if TYPE_CHECKING:
    from statestore_runtime.messages import Finished

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")

MakeOperator = Callable[[str], Operator]


class Node:
    """An operator of the graph: how it is made for a run, and whose events it takes."""

    def __init__(self, uid: str, make: MakeOperator, inputs: list[Node]):
        self.uid, self.make, self.inputs = uid, make, inputs


class Job:
    """A named streaming job: sources, operators, sinks.

    Operators are known in checkpoints by their uid: `kind-n`, the n-th of its kind, unless it is given.

    Parameters
    ----------
    name
        1 to 128 letters, digits, '.', '_' or '-'. State and checkpoints are found by it.
    defaults
        Settings of the job by dotted key, such as {"checkpointing.interval": "1s"}; file, environment and command line go before them.

    Raises
    ------
    UsageError
        The name is no good.
    """

    def __init__(self, name: str, defaults: Mapping[str, Any] | None = None):
        self.name = checked_job_name(name)
        self.defaults: dict[str, Any] = dict(defaults or {})
        self.nodes: list[Node] = []

    def __repr__(self) -> str:
        return f"Job({self.name!r}: {', '.join(node.uid for node in self.nodes)})"

    def source(self, source: Source, uid: str | None = None) -> Stream[Any]:
        """The stream of a source's events.

        Raises
        ------
        UsageError
            It is no source, or the uid is taken.
        """
        if not isinstance(source, Source):
            raise UsageError(f"source() takes a source such as FileSource(...), not {_kind(source)}")
        return Stream(self, self.add("source", uid, lambda uid: SourceOperator(uid, source), []))

    def add(self, kind: str, uid: str | None, make: MakeOperator, inputs: list[Node]) -> Node:
        """Add an operator; streams call this. Raises UsageError when the uid is taken or no good."""
        taken = {node.uid for node in self.nodes}
        if uid is None:
            number = 1
            while (uid := f"{kind}-{number}") in taken:
                number += 1
        if uid in taken:
            raise UsageError(f"uid '{uid}' is taken: each operator needs its own")
        if not uid or "/" in uid:
            raise UsageError(f"uid {uid!r} must not be empty or contain '/'")
        node = Node(uid, make, inputs)
        self.nodes.append(node)
        return node

    def build(self) -> list[Operator]:
        """Operators for one run, connected, each after those whose events it takes.

        Raises
        ------
        UsageError
            There is no source or no sink, or two sinks write to one place.
        """
        operators: dict[Node, Operator] = {}
        for node in self.nodes:
            operators[node] = node.make(node.uid)
            for node_before in node.inputs:
                operators[node_before].consumers.append(operators[node])
        if not any(isinstance(operator, SourceOperator) for operator in operators.values()):
            raise UsageError(f"job '{self.name}' has no source: begin with job.source(...)")
        places: dict[str, str] = {}
        sinks = [operator for operator in operators.values() if isinstance(operator, SinkOperator)]
        for operator in sinks:
            place = operator.sink.place
            if place is not None and places.setdefault(os.path.realpath(place), operator.uid) != operator.uid:
                raise UsageError(f"two sinks write to {place}: give each its own")
        if not sinks:
            raise UsageError(f"job '{self.name}' has no sink: end with .sink(...) or .print()")
        return list(operators.values())

    def run(self, config: Config | None = None, *, restore: str | None = None, **overrides: Any) -> Finished:
        """Run the job in this process until its sources end.

        Parameters
        ----------
        config
            Default: the job's own settings and the environment.
        restore
            None: start empty, unless the last run did not finish, which is a UsageError. "latest": the newest checkpoint. A checkpoint's
            path: that one. "none": start empty.
        overrides
            Settings by dotted key that go before all others, as in run(**{"state.backend": "memory"}); only without `config`.

        Raises
        ------
        StateStoreError
            Of the kind that says what to do about it. Nothing after the last checkpoint counts then.
        """
        from statestore_runtime.executor import run_job  # builds on this module

        if config is not None and overrides:
            raise UsageError("give run() either a config or overrides")
        if config is None:
            config = load_config(
                defaults=self.defaults,
                environ=os.environ,
                overrides=[f"{key}={value}" for key, value in overrides.items()],
            )
        return run_job(self, config, restore=restore)


class Stream(Generic[T]):
    """Events without a key. Any number of operators may take them."""

    def __init__(self, job: Job, node: Node):
        self._job, self._node = job, node

    def _then(self, kind: str, uid: str | None, make: MakeOperator) -> Stream[Any]:
        return Stream(self._job, self._job.add(kind, uid, make, [self._node]))

    def map(self, function: Callable[[T], U], uid: str | None = None) -> Stream[U]:
        """What `function` returns for each event."""
        _check_callable("map", function)
        return self._then("map", uid, lambda uid: MapOperator(uid, function))

    def filter(self, function: Callable[[T], object], uid: str | None = None) -> Stream[T]:
        """The events for which `function` is true."""
        _check_callable("filter", function)
        return self._then("filter", uid, lambda uid: FilterOperator(uid, function))

    def flat_map(self, function: Callable[[T], Iterable[U]], uid: str | None = None) -> Stream[U]:
        """All that `function` returns, or yields, for each event."""
        _check_callable("flat_map", function)
        return self._then("flat-map", uid, lambda uid: FlatMapOperator(uid, function))

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
        _check_callable("key_by", function)
        KeyCodec(key_type)
        node = self._job.add("key-by", uid, lambda uid: KeyByOperator(uid, function), [self._node])
        return KeyedStream(self._job, node, key_type)

    def union(self, *others: Stream[Any], uid: str | None = None) -> Stream[Any]:
        """The events of this stream and the others. Raises UsageError when one is of another job."""
        for other in others:
            if not isinstance(other, Stream) or other._job is not self._job:
                raise UsageError("union() takes streams of the same job")
        nodes = [self._node, *(other._node for other in others)]
        return Stream(self._job, self._job.add("union", uid, Operator, nodes))

    def sink(self, sink: Sink | Callable[[T], object], uid: str | None = None) -> None:
        """Send the events out of the job, to a sink or to a function that is called with each."""
        if not isinstance(sink, Sink):
            if isinstance(sink, type) or not callable(sink):
                raise UsageError(f"sink() takes a sink such as FileSink(...), or a function, not {_kind(sink)}")
            sink = CallableSink(sink)
        target = sink
        self._then("sink", uid, lambda uid: SinkOperator(uid, target))

    def print(self, uid: str | None = None) -> None:
        """Print each event."""
        self.sink(PrintSink(), uid)


class KeyedStream(Generic[K, T]):
    """Events with a key, for operators with state per key."""

    def __init__(self, job: Job, node: Node, key_type: type[K]):
        self._job, self._node, self._key_type = job, node, key_type

    def _then(self, kind: str, uid: str | None, make: MakeOperator) -> Stream[Any]:
        return Stream(self._job, self._job.add(kind, uid, make, [self._node]))

    def process(self, function: KeyedProcessFunction[K, T, U], uid: str | None = None) -> Stream[U]:
        """What a function with state returns for each event."""
        if not isinstance(function, KeyedProcessFunction):
            raise UsageError(f"process() takes an object of a KeyedProcessFunction, not {_kind(function)}")
        return self._then("process", uid, lambda uid: ProcessOperator(uid, self._key_type, function))

    def reduce(self, function: Callable[[T, T], T], type: Any, uid: str | None = None) -> Stream[T]:
        """The events of each key combined so far, after each event.

        Parameters
        ----------
        function
            Combines what there is with the next event; the first event stands for itself.
        type
            Of the events, and so of the state.
        """
        _check_callable("reduce", function)
        return self._then("reduce", uid, lambda uid: ReduceOperator(uid, self._key_type, function, type))

    def aggregate(
        self, function: AggregateFunction, accumulator_type: Any, uid: str | None = None
    ) -> Stream[tuple[K, Any]]:
        """(key, result) after each event, of an accumulator of the declared type."""
        if isinstance(function, type) or not isinstance(function, AggregateFunction):
            raise UsageError(
                f"aggregate() takes an object with create_accumulator, add, get_result and merge, not {_kind(function)}"
            )
        return self._then(
            "aggregate", uid, lambda uid: AggregateOperator(uid, self._key_type, function, accumulator_type)
        )


def _kind(value: object) -> str:
    return f"the class {value.__name__}: make an object of it" if isinstance(value, type) else type(value).__name__


def _check_callable(verb: str, function: object) -> None:
    if not callable(function):
        raise UsageError(f"{verb}() takes a function, not {type(function).__name__}")
