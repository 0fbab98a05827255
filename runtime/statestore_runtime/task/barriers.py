"""Barriers on their way through a worker, and its part of the checkpoints that they stand for.

Invariants:
- a worker's part holds the state and transactions of one moment, when the barrier has passed all its inputs: one commit, one part;
- the barrier leaves by an output when it has passed all inputs in front of it. From then until the part is taken nothing that leads to
  that output goes on, neither an input nor a timer: its effects would be in the part, but what it has sent would not be in that of others;
- with exactly-once no input goes on behind a barrier. With at-least-once an input goes on until the barrier has come from all workers, and
  a source always does. Then what the part holds of the source, and of what it leads to before any edge, is of when the barrier began.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass

from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.snapshot import CheckpointInfo, PendingCheckpoint
from statestore.clock import Clock
from statestore.errors import StateStoreError
from statestore.store import StateStore
from statestore_runtime.operators import ExchangeOperator, KeyedOperator, Operator
from statestore_runtime.protocol import Acknowledged, Complete, Declined, Trigger
from statestore_runtime.task.edges import Edges
from statestore_runtime.task.exchange import ExchangeInput
from statestore_runtime.task.figures import Tally
from statestore_runtime.task.meta import Meta
from statestore_runtime.task.output import Output
from statestore_runtime.task.sourcing import SourceInput, guarded

CLOSING_SECONDS = 30.0


@dataclass(slots=True)
class _Barrier:
    """A checkpoint on its way through this worker, and what it knew when its barrier began."""

    trigger: Trigger
    triggered: float
    events: int
    sources: Meta
    states: Meta
    """Of what sources lead to before any edge."""


@dataclass(slots=True)
class _Part:
    """This worker's part of a checkpoint."""

    checkpoint: int
    meta: Meta
    pending: PendingCheckpoint
    upload: Future[Manifest]
    phases: dict[str, float]
    begun: float
    is_last: bool
    """Whether the deployment ends with it."""


class Barriers:
    """Takes one worker's part of each checkpoint.

    Parameters
    ----------
    tally
        What the worker counts, which is part of a checkpoint.
    tell
        Called with `Acknowledged` and `Declined`.

    Attributes
    ----------
    done : int
        The last checkpoint that was taken or given up.
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        sources: Sequence[SourceInput],
        edges: Edges,
        output: Output,
        tally: Tally,
        *,
        aligned: bool,
        clock: Clock,
        tell: Callable[[Acknowledged | Declined], object],
    ):
        self._operators, self._sources, self._edges, self._output = operators, sources, edges, output
        self._tally, self._aligned, self._clock, self._tell = tally, aligned, clock, tell
        self._inputs: list[SourceInput | ExchangeInput] = [*sources, *edges.inputs]
        self._first_stage = _before_any_edge(sources)
        self._later_stages = [operator for operator in operators if operator not in self._first_stage]
        self._barrier: _Barrier | None = None
        self._part: _Part | None = None
        self._is_stopped = False
        self.done = 0
        self._store: StateStore

    def open(self, store: StateStore) -> None:
        """Take parts of this store's state."""
        self._store = store

    # What may go on

    def may_read(self, source: SourceInput) -> bool:
        """Whether no barrier holds it back."""
        return not self._is_stopped and (source.passed <= self.done or not self._aligned)

    def may_go_on(self, uid: str) -> bool:
        """Whether an operator may do something of itself, or with what arrives: not while the barrier has left by an output behind it."""
        return all(output.barrier <= self.done for output in self._edges.behind(uid))

    # A checkpoint

    def let_go(self, trigger: Trigger) -> None:
        """Let the barrier of a checkpoint go from the sources, unless that was given up already."""
        if trigger.checkpoint <= self.done:
            return
        self._is_stopped = trigger.stop
        self._barrier = _Barrier(
            trigger,
            self._clock.monotonic(),
            self._tally.events,
            {source.uid: source.meta() for source in self._sources},
            _snapshots(self._first_stage),
        )
        for source in self._sources:
            source.passed = trigger.checkpoint
        self.pass_on()

    def pass_on(self) -> None:
        """Let the barrier leave where it has passed all inputs in front, and take the worker's part once it has passed all."""
        barrier = self._barrier
        if barrier is None:
            return
        checkpoint = barrier.trigger.checkpoint
        for output in self._edges.outputs:
            in_front = [each for each in self._inputs if output in self._edges.behind(each.operator.uid)]
            if output.barrier < checkpoint and all(each.passed >= checkpoint for each in in_front):
                output.send_barrier(checkpoint)
        if all(each.passed >= checkpoint for each in self._inputs):
            self._take(barrier)

    def _take(self, barrier: _Barrier) -> None:
        """Take this worker's part of a checkpoint: what stops processing."""
        trigger, now = barrier.trigger, self._clock.monotonic()
        self._barrier = None
        meta: Meta = {
            "events": barrier.events,
            "skipped": self._tally.skipped,
            "operators": [operator.uid for operator in self._operators if isinstance(operator, KeyedOperator)],
            "sources": barrier.sources,
            "sinks": self._output.prepare(),
            "states": {**barrier.states, **_snapshots(self._later_stages)},
        }
        pending = self._store.begin_checkpoint(meta, final=trigger.final, base=trigger.base)
        after = self._clock.monotonic()
        phases = self._phases(barrier, now, after)
        upload = _in_thread(pending.upload)
        self._part = _Part(trigger.checkpoint, meta, pending, upload, phases, after, trigger.final or trigger.stop)
        self._go_on_after(trigger.checkpoint)

    def _phases(self, barrier: _Barrier, now: float, after: float) -> dict[str, float]:
        firsts = [each.first_barrier for each in self._edges.inputs if each.first_barrier is not None]
        if self._sources:
            firsts.append(barrier.triggered)
        first = min(firsts, default=now)
        return {
            "start-delay": max(0.0, first - barrier.triggered),
            "alignment": max(0.0, now - first),
            "sync": after - now,
        }

    def _go_on_after(self, checkpoint: int) -> None:
        self.done = max(self.done, checkpoint)
        for exchange in self._edges.inputs:
            exchange.release(checkpoint)

    def look_at_upload(self) -> None:
        """Tell of the worker's part, once it is durable or has failed."""
        part = self._part
        if part is None or not part.upload.done() or "async" in part.phases:
            return
        part.phases["async"] = self._clock.monotonic() - part.begun
        error = part.upload.exception()
        if error is None:
            manifest = part.upload.result()
            self._tell(Acknowledged(checkpoint=part.checkpoint, manifest=manifest, meta=part.meta, phases=part.phases))
        else:
            code = error.exit_code if isinstance(error, StateStoreError) else 1
            self._tell(Declined(checkpoint=part.checkpoint, reason=str(error), exit_code=code, cause=error))

    # Its end

    def complete(self, command: Complete) -> bool:
        """Make visible what belongs to a checkpoint, and tell functions and sinks of it; whether the deployment ends with it."""
        part = self._part
        assert part is not None and part.checkpoint == command.checkpoint, "nothing else was acknowledged"
        self._part = None
        manifest = command.manifest
        self._store.complete(
            CheckpointInfo(
                checkpoint_id=manifest.checkpoint_id,
                epoch=manifest.epoch,
                uploaded_bytes=manifest.uploaded_bytes,
                total_bytes=manifest.total_bytes,
                seconds=command.seconds,
                path=command.path,
                manifest=manifest,
            )
        )
        self._output.commit(part.meta["sinks"])
        for operator in self._operators:
            operator.on_checkpoint_complete(manifest.checkpoint_id)
        for uid, sink in self._output.sinks.items():
            listener = getattr(sink, "on_checkpoint_complete", None)
            if listener is not None:
                guarded(uid, listener, manifest.checkpoint_id)
        return part.is_last

    def abort(self, checkpoint: int, reason: str) -> None:
        """A checkpoint is given up: go on, and tell functions."""
        if self._barrier is not None and self._barrier.trigger.checkpoint <= checkpoint:
            self._barrier = None
        if self._part is not None and self._part.checkpoint <= checkpoint:
            self._store.abort(self._part.pending)
            self._part = None
        self._is_stopped = False
        self._go_on_after(checkpoint)
        for operator in self._operators:
            operator.on_checkpoint_failed(checkpoint, reason)

    def close(self) -> None:
        """On the way out after a failure: let no thread use the store any more."""
        part, self._part = self._part, None
        if part is not None:
            self._store.abort(part.pending)
            wait_for([part.upload], timeout=CLOSING_SECONDS)


def _before_any_edge(sources: Sequence[SourceInput]) -> list[Operator]:
    """The operators that sources lead to before any edge."""
    found: dict[Operator, None] = {}
    waiting: list[Operator] = [source.operator for source in sources]
    while waiting:
        operator = waiting.pop()
        if operator not in found and not isinstance(operator, ExchangeOperator):
            found[operator] = None
            waiting += [consumer for consumer, _ in operator.all_consumers()]
    return list(found)


def _snapshots(operators: Sequence[Operator]) -> Meta:
    states = {operator.uid: operator.snapshot() for operator in operators}
    return {uid: [state] for uid, state in states.items() if state is not None}


def _in_thread(function: Callable[[], Manifest]) -> Future[Manifest]:
    """Result of a function run in a thread of its own: one that is stuck delays neither the next one nor the end of the process."""
    future: Future[Manifest] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="statestore-checkpoint", daemon=True).start()
    return future
