"""The graph of a job, as a program writes it down."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from statestore.checkpoint.storage import checked_job_name
from statestore.config import Config, load_config
from statestore.errors import UsageError
from statestore_runtime.arguments import kind_of
from statestore_runtime.functions import CheckpointListener
from statestore_runtime.operators import Operator, SinkOperator, SourceOperator
from statestore_runtime.sinks import Sink
from statestore_runtime.sources import Source
from statestore_runtime.watermarks import WatermarkStrategy

if TYPE_CHECKING:
    from statestore_runtime.columnar import ColumnarStream
    from statestore_runtime.messages import Finished
    from statestore_runtime.streams import Stream

MakeOperator = Callable[[str], Operator]


class Output(NamedTuple):
    """What an operator of the graph emits, or what it emits with a tag."""

    node: Node
    tag: str | None = None


class Node:
    """An operator of the graph: how it is made for a worker, whose events it takes, and whether these may have event times."""

    def __init__(self, uid: str, make: MakeOperator, inputs: Sequence[Output], is_timed: bool):
        self.uid, self.make, self.inputs, self.is_timed = uid, make, inputs, is_timed


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
        self.sinks: list[Sink] = []
        self.listeners: list[CheckpointListener] = []

    def listen(self, listener: CheckpointListener) -> None:
        """Have an object told of the job's checkpoints, once each, in the process of the JobManager.

        It is called between other things that the JobManager does, so it must return quickly. What it raises is logged.

        Raises
        ------
        UsageError
            It is no CheckpointListener.
        """
        if not isinstance(listener, CheckpointListener):
            raise UsageError(f"listen() takes an object of a CheckpointListener, not {type(listener).__name__}")
        self.listeners.append(listener)

    def __repr__(self) -> str:
        return f"Job({self.name!r}: {', '.join(node.uid for node in self.nodes)})"

    def source(
        self,
        source: Source,
        uid: str | None = None,
        *,
        watermarks: WatermarkStrategy | None = None,
        rate_limit: float | None = None,
    ) -> Stream[Any]:
        """The stream of a source's events.

        Parameters
        ----------
        watermarks
            Gives the events their times; without it they have none.
        rate_limit
            Events per second that are read at most, over all workers.

        Raises
        ------
        UsageError
            It is no source, an argument is of another kind, or the uid is taken.
        """
        from statestore_runtime.streams import Stream  # builds on this module

        if not isinstance(source, Source):
            raise UsageError(f"source() takes a source such as FileSource(...), not {kind_of(source)}")
        if watermarks is not None and not isinstance(watermarks, WatermarkStrategy):
            raise UsageError(
                f"watermarks= takes a WatermarkStrategy such as WatermarkStrategy.monotonous(...), not {kind_of(watermarks)}"
            )
        if rate_limit is not None and not (isinstance(rate_limit, int | float) and rate_limit > 0):
            raise UsageError(f"rate_limit is {rate_limit!r}: it must be more than 0 events per second, or None")

        def make(uid: str) -> Operator:
            return SourceOperator(uid, source, watermarks, rate_limit)

        return Stream(self, Output(self.add("source", uid, make, is_timed=watermarks is not None)))

    def record_batches(
        self,
        source: Source,
        uid: str | None = None,
        *,
        batch_rows: int | None = None,
        rate_limit: float | None = None,
        watermarks: WatermarkStrategy | None = None,
    ) -> ColumnarStream:
        """The rows of a source's events, in Arrow record batches. Needs the extra `arrow`.

        Parameters
        ----------
        source
            A FileSource; of JSON lines or CSV with `type=`, a msgspec.Struct or a dataclass with fields of str, int, float, bool and bytes,
            or one of these and None. Integers have 64 bits: others are bad records.
        batch_rows
            About so many rows a batch has; default 1,048,576. The more, the fewer keys are merged into the state; a checkpoint waits for
            the end of a batch.
        rate_limit
            Rows per second that are read at most, over all workers; a batch has no more than that.
        watermarks
            Not to be had: rows have event times once they are events, by `rows().assign_timestamps(...)`.

        Raises
        ------
        UsageError
            The source has no record batches, or an argument is no good.
        ConfigError
            pyarrow is not installed.
        """
        from statestore_runtime.columnar import DEFAULT_BATCH_ROWS, ColumnarStream, SupportsRecordBatches

        if not isinstance(source, SupportsRecordBatches):
            raise UsageError(f"record_batches() takes a source such as FileSource(...), not {kind_of(source)}")
        if watermarks is not None:
            raise UsageError("record batches have no event times: take .rows() of them, and .assign_timestamps(...)")
        limits = [max(1, int(limit)) for limit in (source.rate_limit, rate_limit) if limit is not None]
        rows = min([DEFAULT_BATCH_ROWS if batch_rows is None else batch_rows, *limits])
        stream = self.source(source.record_batches(rows), uid, rate_limit=rate_limit)
        return ColumnarStream(self, stream._output)

    def add(
        self, kind: str, uid: str | None, make: MakeOperator, *inputs: Output, is_timed: bool | None = None
    ) -> Node:
        """Add an operator; streams call this. Its events may have event times if those of an input may, unless told.

        Raises
        ------
        UsageError
            The uid is taken or no good.
        """
        taken = {node.uid for node in self.nodes}
        if uid is None:
            number = 1
            while (uid := f"{kind}-{number}") in taken:
                number += 1
        if uid in taken:
            raise UsageError(f"uid '{uid}' is taken: each operator needs its own")
        if not uid or "/" in uid:
            raise UsageError(f"uid {uid!r} must not be empty or contain '/'")
        node = Node(uid, make, inputs, any(one.node.is_timed for one in inputs) if is_timed is None else is_timed)
        self.nodes.append(node)
        return node

    def build(self) -> list[Operator]:
        """Operators for one worker, connected, each after those whose events it takes.

        Each call makes new ones, that share nothing that changes: functions with state are copied with `copy.deepcopy`, as they would be
        for a worker in another process, so that neither another worker nor a run before leaves anything in them. Sinks are copied with
        `copy.copy`: what they open is their own, what a caller wants to see of them, such as the list of a `CollectSink`, is not. Sources
        are not copied: their readers are made for each split. Nor are plain functions and aggregations, which keep nothing.

        Raises
        ------
        UsageError
            There is no source or no sink, two sinks write to one place, or a function can't be copied.
        """
        operators: dict[Node, Operator] = {}
        for node in self.nodes:
            operators[node] = node.make(node.uid)
            for before in node.inputs:
                operators[before.node].connect(operators[node], before.tag)
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
        from statestore_runtime.deployment.inprocess import run_job  # builds on this module

        if config is not None and overrides:
            raise UsageError("give run() either a config or overrides")
        if config is None:
            config = load_config(
                defaults=self.defaults,
                environ=os.environ,
                overrides=[f"{key}={value}" for key, value in overrides.items()],
            )
        return run_job(self, config, restore=restore)
