"""One worker's share of a running job: batches through its operators, barriers between them, one store.

    sources ──▶ operators ──▶ edge ··▶ (all workers) ··▶ edge ──▶ operators ──▶ sinks
    `inputs`                 `outputs`                  `inputs`

Invariants:
- a barrier's part of a checkpoint holds source positions, transactions and state of exactly what came before it: one commit, one part;
- a barrier leaves by an output when it has passed all inputs in front of it; the worker's part is taken when it has passed all inputs;
- with exactly-once no input goes on behind a barrier before that; with at-least-once all do;
- an input is read only while all outputs behind it have room: what comes last is processed first, so nothing can lock up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from statestore import crashpoints
from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.snapshot import CheckpointInfo, PendingCheckpoint
from statestore.clock import Clock
from statestore.config import Config
from statestore.errors import IncompatibleStateError, StateStoreError, UsageError
from statestore.keys import split_key_groups
from statestore.opening import open_store
from statestore.progress import RestoreProgress
from statestore.store import StateStore
from statestore.types import Attempt
from statestore_runtime.functions import UserCodeError
from statestore_runtime.jobmanager.failures import failed_of
from statestore_runtime.jobmanager.splits import restored_share
from statestore_runtime.messages import Finished, Restoring
from statestore_runtime.operators import KeyedOperator, Operator, SourceOperator, TaskContext
from statestore_runtime.operators.exchange import ExchangeOperator
from statestore_runtime.protocol import (
    Abort,
    Acknowledged,
    AnyCommand,
    AnyReport,
    Assign,
    Begin,
    CheckpointWanted,
    Complete,
    Declined,
    Deploy,
    Discovered,
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
from statestore_runtime.task.careful import Careful, EmitPart
from statestore_runtime.task.exchange import ExchangeInput, ExchangeOutput
from statestore_runtime.task.figures import finished, progress
from statestore_runtime.task.meta import Meta, known_splits
from statestore_runtime.task.network import CREDIT, Network
from statestore_runtime.task.output import Output, close_quietly
from statestore_runtime.task.sourcing import SourceInput, guarded

PROGRESS_SECONDS = 0.25
CLOSING_SECONDS = 30.0
TIMER_SECONDS = 0.05
"""Between two looks for processing-time timers."""

Tell = Callable[[AnyReport], object]


@dataclass(slots=True)
class _Barrier:
    """A checkpoint on its way through this worker."""

    trigger: Trigger
    triggered: float
    first: float | None = None
    """When the first barrier came, or was let go here."""


@dataclass(slots=True)
class _Taken:
    """This worker's part of a checkpoint."""

    checkpoint: int
    meta: Meta
    pending: PendingCheckpoint
    upload: Future[Manifest]
    phases: dict[str, float]
    begun: float
    final: bool
    stop: bool


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
        self._operators, self._network, self.subtask = operators, network, network.subtask
        self._begun = clock.monotonic()
        self._cleanup = ExitStack()
        self._output = Output(job, config, operators, clock)
        self._keyed = [operator for operator in operators if isinstance(operator, KeyedOperator)]
        self.sources = {
            operator.uid: SourceInput(operator, self._output.source_context(operator), clock, deploy.parallelism)
            for operator in operators
            if isinstance(operator, SourceOperator)
        }
        self._exchanges: list[ExchangeInput] = []
        self._outputs: list[ExchangeOutput] = []
        self._connect()
        self._has_begun = self._has_ended = self._is_stopped = self._has_failed = False
        self._stands = False  # right before an event on which a function has failed again
        self._barrier: _Barrier | None = None
        self._done = 0  # the last checkpoint that was taken or given up
        self._taken: _Taken | None = None
        self._events = self._events_before = self._skipped = 0
        self._next_progress = self._begun + PROGRESS_SECONDS
        self._next_timers = 0.0
        self._next_discovery: dict[str, float] = {}
        self._known_splits: dict[str, set[str]] = {uid: set() for uid in self.sources}
        self._is_wanted = False
        self._careful: Careful | None = None
        self._store: StateStore

    def _connect(self) -> None:
        """With several workers edges end at the network; with one, batches go straight on."""
        if self._network.parallelism == 1:
            self._behind: dict[str, list[ExchangeOutput]] = {operator.uid: [] for operator in self._operators}
            return
        groups = split_key_groups(self._network.parallelism, self._config.state.max_parallelism)
        owners = [worker for worker, part in enumerate(groups) for _ in part]
        edges = [operator for operator in self._operators if isinstance(operator, ExchangeOperator)]
        aligned = self._config.checkpointing.mode == "exactly-once"
        for number, operator in enumerate(edges):
            self._outputs.append(ExchangeOutput(operator, number, self._network, owners))
            self._exchanges.append(ExchangeInput(operator, number, self._network, aligned=aligned))
        self._behind = self._outputs_behind()

    def _outputs_behind(self) -> dict[str, list[ExchangeOutput]]:
        """Of each operator's own output, the edges that it leads to before any other edge."""
        by_uid = {output.operator.uid: output for output in self._outputs}
        behind: dict[str, list[ExchangeOutput]] = {}
        for operator in reversed(self._operators):  # each comes after those whose events it takes
            found: dict[str, ExchangeOutput] = {}
            for consumer, _ in operator.all_consumers():
                if consumer.uid in by_uid:
                    found[consumer.uid] = by_uid[consumer.uid]
                else:
                    found.update({output.operator.uid: output for output in behind[consumer.uid]})
            behind[operator.uid] = list(found.values())
        return behind

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
        self._check_uids(meta)
        self._open_operators(meta)
        self._cleanup.callback(self._give_up_upload)
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
            self._careful = Careful(store, self._operators, self._outputs, list(self.sources.values()))
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
            self._events = self._events_before = meta.get("events", 0)
            self._skipped = meta.get("skipped", 0)
        for uid, source in self.sources.items():
            self._cleanup.callback(close_quietly, source)
            known = meta.get("sources", {}).get(uid, {"splits": {}, "finished": {}, "bad_records": 0})
            if self.subtask == 0:
                source.context.bad_records = known["bad_records"]
            mine = restored_share(known_splits(meta, uid), self.subtask, self._deploy.parallelism)
            self._known_splits[uid].update(known_splits(meta, uid))
            positions = {split: known["splits"][split] for split in mine if split in known["splits"]}
            source.restore(positions, {split: known["finished"][split] for split in mine if split in known["finished"]})

    def _check_uids(self, meta: Meta) -> None:
        kinds = {
            "sources": list(self.sources),
            "operators": [operator.uid for operator in self._keyed],
            "sinks": list(self._output.sinks),
        }
        for kind, known in kinds.items():
            for uid in meta.get(kind, ()):
                is_dead_letter = kind == "sinks" and uid.endswith(".dead-letter")  # it comes and goes with a setting
                if uid not in known and not is_dead_letter:
                    raise IncompatibleStateError(
                        f"the checkpoint knows a {kind[:-1]} '{uid}', the job has none: give it that uid again "
                        f"(the job's {kind} are {', '.join(known) or 'none'}), or start over with --restore none"
                    )

    def _tell_restoring(self, progress: RestoreProgress) -> None:
        self._tell(
            Recovering(
                restoring=Restoring(
                    job=self._job,
                    bytes_done=progress.bytes_done,
                    bytes_total=progress.bytes_total,
                    entries=progress.entries,
                    seconds=progress.seconds,
                    eta_seconds=progress.eta_seconds,
                )
            )
        )

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
                self._let_go(command)
            case Complete():
                self._complete(command)
            case Abort(checkpoint=checkpoint, reason=reason):
                self._abort(checkpoint, reason)
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
        is_busy = self._receive()
        self._poll_upload()
        now = self._clock.monotonic()
        is_busy |= self._step_exchanges(now)
        if self._has_begun:
            is_busy |= self._step_sources(now)
            if now >= self._next_timers:
                self._fire_timers(now)
        if not is_busy:
            for output in self._outputs:
                is_busy |= output.flush()
        if now >= self._next_progress:
            self._tell_progress(now)
        self._look_for_end()
        return is_busy

    def _receive(self) -> bool:
        frames = self._network.receive()
        for worker, frame in frames:
            if frame[0] == CREDIT:
                self._outputs[frame[1]].credit(worker, frame[2])
            else:
                self._exchanges[frame[1]].arrive(worker, frame)
        return bool(frames)

    def _has_room(self, uid: str) -> bool:
        return all(output.has_room for output in self._behind[uid])

    def _step_exchanges(self, now: float) -> bool:
        for exchange in reversed(self._exchanges):
            if self._has_room(exchange.operator.uid) and exchange.step(now, self._process):
                self._pass_barriers()
                self._ask_for_checkpoint()
                return True
        return False

    def _step_sources(self, now: float) -> bool:
        is_busy = False
        for source in self.sources.values():
            self._discover(source, now)
            if self._is_stopped or self._stands or not self._may_read(source) or not self._has_room(source.uid):
                continue
            count = self._read(source)
            if count is not None:
                is_busy = True
                self._events += count
                crashpoints.reach("job.batch")
                self._ask_for_checkpoint()
            source.look_for_idle_splits(now)
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
            policy = self._config.job.on_error
            if policy == "fail":
                raise _ReproducedError(error, index)
            self._skipped += 1
            if policy == "dead-letter":
                self._output.write_dead_letter(event_at(index), error)

        self._careful.process(count, emit, on_poison)

    def _tell_failure(self, error: BaseException, *, can_save: bool) -> None:
        self._tell(replace(failed_of(error), is_users=True, is_reproduced=True, can_save=can_save))

    def _may_read(self, source: SourceInput) -> bool:
        """Whether no barrier holds it back: with exactly-once it waits until the worker's part is taken."""
        return source.passed <= self._done or self._config.checkpointing.mode == "at-least-once"

    def _discover(self, source: SourceInput, now: float) -> None:
        if self.subtask != 0 or now < self._next_discovery.get(source.uid, 0.0):
            return
        interval = source.operator.source.discovery_interval
        is_first = source.uid not in self._next_discovery
        self._next_discovery[source.uid] = float("inf") if interval is None else now + interval
        known = self._known_splits[source.uid]
        found = guarded(source.uid, source.operator.source.discover, frozenset(known))
        known.update(found)
        if found or is_first:
            self._tell(Discovered(source=source.uid, splits=list(found), is_final=interval is None))

    def _fire_timers(self, now: float) -> None:
        self._next_timers = now + TIMER_SECONDS
        now_ms = int(self._clock.time() * 1000)
        for operator in self._operators:
            operator.on_processing_time(now_ms)

    def _ask_for_checkpoint(self) -> None:
        if not self._is_wanted and self._store.needs_checkpoint:
            self._is_wanted = True
            self._tell(CheckpointWanted())

    def _look_for_end(self) -> None:
        inputs: list[SourceInput | ExchangeInput] = [*self.sources.values(), *self._exchanges]
        if not self._has_ended and all(each.has_ended for each in inputs):
            self._has_ended = True
            self._tell(InputEnded())

    # Barriers

    def _let_go(self, trigger: Trigger) -> None:
        """Let the barrier of a checkpoint go from the sources."""
        if trigger.checkpoint <= self._done:
            return
        self._is_stopped = trigger.stop
        now = self._clock.monotonic()
        self._barrier = _Barrier(trigger, now, now if self.sources else None)
        for source in self.sources.values():
            source.passed = trigger.checkpoint
        self._pass_barriers()

    def _pass_barriers(self) -> None:
        """Let the barrier leave where it has passed all inputs in front, and take the worker's part once it has passed all."""
        barrier = self._barrier
        if barrier is None:
            return
        checkpoint = barrier.trigger.checkpoint
        inputs: list[SourceInput | ExchangeInput] = [*self.sources.values(), *self._exchanges]
        for output in self._outputs:
            in_front = [each for each in inputs if output in self._behind[each.operator.uid]]
            if output.barrier < checkpoint and all(each.passed >= checkpoint for each in in_front):
                output.send_barrier(checkpoint)
        if all(each.passed >= checkpoint for each in inputs):
            self._take(barrier)

    def _take(self, barrier: _Barrier) -> None:
        """Take this worker's part of a checkpoint: what stops processing."""
        trigger, now = barrier.trigger, self._clock.monotonic()
        self._barrier, self._is_wanted = None, False
        prepared = self._output.prepare()
        meta: Meta = {
            "events": self._events,
            "skipped": self._skipped,
            "operators": [operator.uid for operator in self._keyed],
            "sources": {uid: source.meta() for uid, source in self.sources.items()},
            "sinks": prepared,
            "states": self._snapshots(),
        }
        pending = self._store.begin_checkpoint(meta, final=trigger.final, base=trigger.base)
        firsts = [each.first_barrier for each in self._exchanges if each.first_barrier is not None]
        first = min([*firsts, *([barrier.first] if barrier.first is not None else [])], default=now)
        after = self._clock.monotonic()
        phases = {
            "start-delay": max(0.0, first - barrier.triggered),
            "alignment": max(0.0, now - first),
            "sync": after - now,
        }
        self._taken = _Taken(
            trigger.checkpoint, meta, pending, _in_thread(pending.upload), phases, after, trigger.final, trigger.stop
        )
        self._go_on_after(trigger.checkpoint)

    def _snapshots(self) -> dict[str, list[Any]]:
        states = {operator.uid: operator.snapshot() for operator in self._operators}
        return {uid: [state] for uid, state in states.items() if state is not None}

    def _go_on_after(self, checkpoint: int) -> None:
        self._done = max(self._done, checkpoint)
        for exchange in self._exchanges:
            exchange.release(checkpoint)

    def _poll_upload(self) -> None:
        taken = self._taken
        if taken is None or not taken.upload.done() or "async" in taken.phases:
            return
        taken.phases["async"] = self._clock.monotonic() - taken.begun
        error = taken.upload.exception()
        if error is None:
            self._tell(
                Acknowledged(
                    checkpoint=taken.checkpoint,
                    manifest=taken.upload.result(),
                    meta=taken.meta,
                    phases=taken.phases,
                )
            )
        else:
            code = error.exit_code if isinstance(error, StateStoreError) else 1
            self._tell(Declined(checkpoint=taken.checkpoint, reason=str(error), exit_code=code, cause=error))

    def _complete(self, command: Complete) -> None:
        taken = self._taken
        assert taken is not None and taken.checkpoint == command.checkpoint, "nothing else was acknowledged"
        self._taken = None
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
        self._output.commit(taken.meta["sinks"])
        for operator in self._operators:
            operator.on_checkpoint_complete(manifest.checkpoint_id)
        for uid, sink in self._output.sinks.items():
            listener = getattr(sink, "on_checkpoint_complete", None)
            if listener is not None:
                guarded(uid, listener, manifest.checkpoint_id)
        if taken.final or taken.stop:
            self._tell(Done(finished=self._finished()))

    def _abort(self, checkpoint: int, reason: str) -> None:
        if self._barrier is not None and self._barrier.trigger.checkpoint <= checkpoint:
            self._barrier = None
        if self._taken is not None and self._taken.checkpoint <= checkpoint:
            self._store.abort(self._taken.pending)
            self._taken = None
        self._is_stopped = False
        self._go_on_after(checkpoint)
        for operator in self._operators:
            operator.on_checkpoint_failed(checkpoint, reason)

    # Telling

    def _tell_progress(self, now: float) -> None:
        hydration = self._store.hydration
        if hydration is not None:
            self._tell_restoring(hydration)
        self._next_progress = now + PROGRESS_SECONDS
        self._tell(Working(progress=progress(self._store.metrics, self._events, now - self._begun)))

    def _finished(self) -> Finished:
        return finished(
            self._store,
            self._clock,
            job=self._job,
            begun=self._begun,
            events=self._events,
            events_this_run=self._events - self._events_before,
            bad_records=sum(source.context.bad_records for source in self.sources.values()),
            skipped_events=self._skipped,
            outputs=list(self._output.places()),
        )

    # The end

    def close(self) -> None:
        """Release everything; what was not part of a complete checkpoint does not count."""
        self._cleanup.close()

    def _give_up_upload(self) -> None:
        """On the way out after a failure: let no thread use the store any more."""
        if self._taken is None:
            return
        taken, self._taken = self._taken, None
        self._store.abort(taken.pending)
        wait_for([taken.upload], timeout=CLOSING_SECONDS)


class _ReproducedError(Exception):
    """A function has failed on an event again; all events before it have been processed, and nothing of it is left."""

    def __init__(self, cause: UserCodeError | UsageError, index: int):
        self.cause, self.index = cause, index
        super().__init__(str(cause))


def _at_once(count: int, emit: EmitPart, event_at: Callable[[int], Any]) -> None:
    emit(0, count)


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
