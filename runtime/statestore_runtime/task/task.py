"""One worker's share of a running job: batches through its operators, barriers between them, one store.

    sources ──▶ operators ──▶ edge ··▶ (all workers) ··▶ edge ──▶ operators ──▶ sinks
    `inputs`                 `outputs`                  `inputs`

Invariants:
- everything happens in one thread, a little in each `step`;
- an input is read only while all outputs behind it have room: what comes last is processed first, so nothing can lock up.

Those of checkpoints stand in `barriers`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from msgspec.structs import replace

from statestore import crashpoints
from statestore.clock import Clock
from statestore.config import Config
from statestore.errors import UsageError
from statestore.keys import split_key_groups
from statestore.opening import open_store
from statestore.progress import RestoreProgress
from statestore.store import StateStore
from statestore.types import Attempt
from statestore_runtime.functions import UserCodeError
from statestore_runtime.jobmanager.failures import failed_of
from statestore_runtime.jobmanager.splits import restored_share
from statestore_runtime.operators import KeyedOperator, LateOperator, Operator, SourceOperator, TaskContext
from statestore_runtime.protocol import (
    Abort,
    AnyCommand,
    AnyReport,
    Assign,
    Begin,
    CheckpointWanted,
    Complete,
    Deploy,
    Done,
    Drain,
    InputEnded,
    NoMoreSplits,
    Opened,
    Recovering,
    Relax,
    Trigger,
    Working,
)
from statestore_runtime.task.barriers import Barriers
from statestore_runtime.task.careful import Careful, EmitPart
from statestore_runtime.task.discovery import Discovery
from statestore_runtime.task.edges import Edges
from statestore_runtime.task.exchange import ExchangeInput
from statestore_runtime.task.figures import Tally, finished, progress, restoring
from statestore_runtime.task.meta import Meta, check_uids, known_splits
from statestore_runtime.task.network import Network
from statestore_runtime.task.output import Output, close_quietly
from statestore_runtime.task.sourcing import SourceInput

PROGRESS_SECONDS = 0.25
TIMER_SECONDS = 0.05
"""Between two looks for processing-time timers."""

Tell = Callable[[AnyReport], object]


class Task:
    """One worker of one deployment.

    Parameters
    ----------
    operators
        As `Job.build` gives them, for this worker alone.
    tell
        Called with each report to the JobManager; what it raises ends the task.
    """

    def __init__(
        self,
        job: str,
        operators: list[Operator],
        config: Config,
        deploy: Deploy,
        *,
        network: Network,
        tell: Tell,
        clock: Clock,
    ):
        self._job, self._config, self._deploy, self._clock, self._tell = job, config, deploy, clock, tell
        self._operators, self.subtask = operators, network.subtask
        self._begun = clock.monotonic()
        self._cleanup = ExitStack()
        self._output = Output(job, config, operators, clock)
        self.sources = {
            operator.uid: SourceInput(operator, self._output.source_context(operator), clock, deploy.parallelism)
            for operator in operators
            if isinstance(operator, SourceOperator)
        }
        self._tally = Tally()
        aligned = config.checkpointing.mode == "exactly-once"
        self._edges = Edges(operators, network, config.state.max_parallelism, aligned=aligned)
        self._barriers = Barriers(
            operators,
            list(self.sources.values()),
            self._edges,
            self._output,
            self._tally,
            aligned=aligned,
            clock=clock,
            tell=tell,
        )
        self._discovery: Discovery | None = None  # in one worker only
        self._careful: Careful | None = None
        self._has_begun = self._has_ended = self._has_failed = False
        self._stands = False  # right before an event on which a function has failed again
        self._asked_after = -1  # the last checkpoint when another one was asked for
        self._next_progress = self._begun + PROGRESS_SECONDS
        self._next_timers = 0.0
        self._store: StateStore

    # Opening

    def open(self) -> None:
        """Open state, operators, sinks and sources, and tell of it.

        Raises
        ------
        StateStoreError
            Of the kind that says what to do about it.
        """
        config, deploy = self._config, self._deploy
        groups = split_key_groups(deploy.parallelism, config.state.max_parallelism)[self.subtask]
        store = self._store = open_store(
            config,
            self._job,
            restore=deploy.restore,
            run=deploy.run,
            clock=self._clock,
            on_restore_progress=self._tell_restoring,
            key_groups=groups,
            attempt=Attempt(deploy.attempt),
        )
        self._cleanup.callback(store.close)
        meta = store.restored.meta if store.restored is not None else {}
        keyed = [operator.uid for operator in self._operators if isinstance(operator, KeyedOperator)]
        check_uids(meta, {"sources": list(self.sources), "operators": keyed, "sinks": list(self._output.sinks)})
        self._open_operators(meta)
        self._barriers.open(store)
        self._cleanup.callback(self._barriers.close)
        self._output.open(
            store,
            meta,
            subtask=self.subtask,
            parallelism=deploy.parallelism,
            run=deploy.run,
            cleanup=self._cleanup,
        )
        self._open_sources(meta)
        if deploy.careful or config.job.on_error != "fail":
            others = list(self.sources.values())
            self._careful = Careful(store, self._operators, self._edges.outputs, self._on_failed_timer, others)
        self._tell_opened(meta)

    def _open_operators(self, meta: Meta) -> None:
        context = TaskContext(
            self._store, self._clock, self._job, self._deploy.attempt, self.subtask, self._deploy.parallelism
        )
        restored = self._store.restored
        for operator in self._operators:
            self._cleanup.callback(close_quietly, operator)
            operator.open(context)
            states = meta.get("states", {}).get(operator.uid)
            if states:
                operator.restore(states)
            if restored is not None and restored.checkpoint_id is not None:
                operator.on_restore(restored.checkpoint_id)

    def _open_sources(self, meta: Meta) -> None:
        if self.subtask == 0:
            self._tally.events = self._tally.events_before = meta.get("events", 0)
            self._tally.skipped = meta.get("skipped", 0)
            self._discovery = Discovery({uid: known_splits(meta, uid) for uid in self.sources}, self._tell)
        for uid, source in self.sources.items():
            self._cleanup.callback(close_quietly, source)
            known = meta.get("sources", {}).get(uid, {"splits": {}, "finished": {}, "bad_records": 0})
            if self.subtask == 0:
                source.context.bad_records = known["bad_records"]
            mine = restored_share(known_splits(meta, uid), self.subtask, self._deploy.parallelism)
            positions = {split: known["splits"][split] for split in mine if split in known["splits"]}
            source.restore(positions, {split: known["finished"][split] for split in mine if split in known["finished"]})

    # Commands

    def handle(self, command: AnyCommand) -> None:
        """Do what the JobManager says."""
        match command:
            case Begin():
                self._has_begun = True
            case Assign(source=uid, splits=splits):
                self.sources[uid].assign(splits)
            case NoMoreSplits(source=uid):
                self.sources[uid].no_more_splits()
            case Trigger():
                self._barriers.let_go(command)
            case Complete():
                if self._barriers.complete(command):
                    self._tell_done()
            case Abort(checkpoint=checkpoint, reason=reason):
                self._barriers.abort(checkpoint, reason)
            case Relax():
                self._relax()
            case Drain():
                for source in self.sources.values():
                    source.drain()

    def _relax(self) -> None:
        if self._careful is not None and self._config.job.on_error == "fail":
            self._careful.relax()
            self._careful = None

    # Processing

    def step(self) -> bool:
        """Do a little of what there is to do; False when there was nothing. Raises StateStoreError."""
        if self._has_failed:
            return False
        try:
            return self._step()
        except _ReproducedError as error:
            self._tell_failure(error.cause, can_save=False)
        except UserCodeError as error:
            if self._careful is None:
                raise
            self._tell_failure(error, can_save=False)
        self._has_failed = True
        return False

    def _step(self) -> bool:
        is_busy = self._edges.receive()
        self._barriers.look_at_upload()
        now = self._clock.monotonic()
        is_busy |= self._step_exchanges(now)
        if self._has_begun:
            is_busy |= self._step_sources(now)
            if now >= self._next_timers:
                self._fire_timers(now)
        if not is_busy:
            is_busy = self._edges.flush()
        if now >= self._next_progress:
            self._tell_progress(now)
        self._look_for_end()
        return is_busy

    def _step_exchanges(self, now: float) -> bool:
        edges, may_go_on = self._edges, self._barriers.may_go_on
        for exchange in reversed(edges.inputs):
            uid = exchange.operator.uid
            if edges.has_room(uid) and may_go_on(uid) and exchange.step(now, self._process):
                self._barriers.pass_on()
                self._ask_for_checkpoint()
                return True
        return False

    def _step_sources(self, now: float) -> bool:
        is_busy = False
        for source in self.sources.values():
            if self._discovery is not None:
                self._discovery.look(source, now)
            if self._stands or not self._barriers.may_read(source) or not self._edges.has_room(source.uid):
                continue
            count = self._read(source)
            if count is not None:
                is_busy = True
                self._tally.events += count
                crashpoints.reach("job.batch")
                self._ask_for_checkpoint()
        return is_busy

    def _read(self, source: SourceInput) -> int | None:
        if self._careful is None:
            return source.step(_at_once)
        try:
            return source.step(self._process, exact=True)
        except _ReproducedError as error:  # the source stands right before the event, and nothing of it is left
            source.keep_rest(error.index)
            self._stands = True
            self._tell_failure(error.cause, can_save=not self._careful.left_traces)
            return error.index

    def _process(self, count: int, emit: EmitPart, event_at: Callable[[int], Any]) -> None:
        """Process a batch, carefully if that was asked for."""
        if self._careful is None:
            emit(0, count)
            return

        def on_poison(error: UserCodeError | UsageError, index: int) -> None:
            if self._config.job.on_error == "fail":
                raise _ReproducedError(error, index)
            self._pass_over(repr(event_at(index)), error)

        self._careful.process(count, emit, on_poison)

    def _on_failed_timer(self, error: UserCodeError | UsageError, time: int, key: Any) -> None:
        if self._config.job.on_error == "fail":
            raise error
        self._pass_over(f"timer(key={key!r}, time={time})", error)

    def _pass_over(self, text: str, error: UserCodeError | UsageError) -> None:
        self._tally.skipped += 1
        if self._config.job.on_error == "dead-letter":
            self._output.write_dead_letter(text, error)

    def _fire_timers(self, now: float) -> None:
        self._next_timers = now + TIMER_SECONDS
        now_ms = int(self._clock.time() * 1000)
        for operator in self._operators:
            if self._barriers.may_go_on(operator.uid):
                operator.on_processing_time(now_ms)

    def _ask_for_checkpoint(self) -> None:
        if self._asked_after != self._barriers.done and self._store.needs_checkpoint:
            self._asked_after = self._barriers.done
            self._tell(CheckpointWanted())

    def _look_for_end(self) -> None:
        inputs: list[SourceInput | ExchangeInput] = [*self.sources.values(), *self._edges.inputs]
        if not self._has_ended and all(each.has_ended for each in inputs):
            self._has_ended = True
            self._tell(InputEnded())

    # Telling

    def _tell_restoring(self, progress: RestoreProgress) -> None:
        self._tell(Recovering(restoring=restoring(self._job, progress)))

    def _tell_opened(self, meta: Meta) -> None:
        store = self._store
        state, checkpoints = store.describe()
        restored = store.restored
        self._tell(
            Opened(
                backend=store.backend_name,
                state=state,
                checkpoints=checkpoints,
                restored_checkpoint=restored.checkpoint_id if restored is not None else None,
                restored_epoch=restored.epoch if restored is not None else 0,
                is_newest=restored is not None and restored.is_newest,
                events=meta.get("events", 0),
                recover_seconds=store.metrics.recovery_seconds,
                splits={uid: known_splits(meta, uid) for uid in self.sources},
            )
        )

    def _tell_failure(self, error: BaseException, *, can_save: bool) -> None:
        self._tell(replace(failed_of(error), is_users=True, is_reproduced=True, can_save=can_save))

    def _tell_progress(self, now: float) -> None:
        hydration = self._store.hydration
        if hydration is not None:
            self._tell_restoring(hydration)
        self._next_progress = now + PROGRESS_SECONDS
        self._tell(Working(progress=progress(self._store.metrics, self._tally.events, now - self._begun)))

    def _tell_done(self) -> None:
        figures = finished(
            self._store,
            self._clock,
            job=self._job,
            begun=self._begun,
            tally=self._tally,
            bad_records=sum(source.context.bad_records for source in self.sources.values()),
            late_events=sum(each.late_dropped for each in self._operators if isinstance(each, LateOperator)),
            outputs=list(self._output.places()),
        )
        self._tell(Done(finished=figures))

    # The end

    def close(self) -> None:
        """Release everything; what was not part of a complete checkpoint does not count."""
        self._cleanup.close()


class _ReproducedError(Exception):
    """A function has failed on an event again; all events before it have been processed, and nothing of it is left."""

    def __init__(self, cause: UserCodeError | UsageError, index: int):
        self.cause, self.index = cause, index
        super().__init__(str(cause))


def _at_once(count: int, emit: EmitPart, event_at: Callable[[int], Any]) -> None:
    emit(0, count)
