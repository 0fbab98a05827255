"""Runs a job in this process: batches through the operators, barriers between them.

Invariants:
- a barrier's meta holds the source positions, the sinks' transactions and the state of exactly the batches before it: one commit, one
  manifest;
- nothing becomes visible before the checkpoint it belongs to is complete;
- transactions whose checkpoint failed are carried in the next one's meta, until one completes;
- before anything is processed, the newest checkpoint is one that this run goes on from: "latest" never means a history that was given up.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from statestore import crashpoints
from statestore.checkpoint.snapshot import CheckpointInfo, PendingCheckpoint
from statestore.clock import Clock, SystemClock
from statestore.config import Config
from statestore.errors import CorruptionError, IncompatibleStateError, StateStoreError, UnavailableError
from statestore.opening import open_store
from statestore.progress import RestoreProgress
from statestore.store import StateStore
from statestore_runtime.coordinator import CheckpointCoordinator
from statestore_runtime.functions import UserCodeError
from statestore_runtime.job import Job
from statestore_runtime.messages import (
    CheckpointCompleted,
    CheckpointFailed,
    Finished,
    Message,
    Progress,
    Restoring,
    Started,
)
from statestore_runtime.operators import KeyedOperator, ProcessOperator, SinkOperator, SourceOperator
from statestore_runtime.sinks import FileSink, Sink, SinkContext
from statestore_runtime.sources import SourceContext

logger = logging.getLogger("statestore_runtime.executor")

PROGRESS_SECONDS = 0.25
IDLE_SECONDS = 0.01
RETRY_SECONDS = 1.0
CLOSING_SECONDS = 30.0
DEAD_LETTER = ".dead-letter"
"""Ends the uid of the sink that takes a source's bad records."""

Emit = Callable[[Message], object]


def run_job(
    job: Job,
    config: Config,
    *,
    restore: str | None = None,
    run: str = "",
    emit: Emit = lambda message: None,
    clock: Clock | None = None,
) -> Finished:
    """Run a job until its sources end.

    Parameters
    ----------
    restore
        None: start empty, unless the job's last run did not finish. "latest", "none" or a checkpoint's path: as it says.
    run
        Names the run, so that a restart within it goes on from its newest checkpoint whatever `restore` says.
    emit
        Called with messages as the job goes on; what it raises ends the job.

    Raises
    ------
    StateStoreError
        Of the kind that says what to do about it. Nothing after the last complete checkpoint counts then.
    SystemExit
        SIGTERM came; as after an error.
    """
    execution = _Execution(job, config, emit, clock or SystemClock())
    with _stop_on_sigterm(execution), ExitStack() as cleanup:
        execution.open(cleanup, restore, run)
        execution.process()
        return execution.finish()


class _Execution:
    """One run of a job."""

    def __init__(self, job: Job, config: Config, emit: Emit, clock: Clock):
        self._job, self._config, self._emit, self._clock = job, config, emit, clock
        self._begun = clock.monotonic()
        operators = job.build()
        self._sources = [operator for operator in operators if isinstance(operator, SourceOperator)]
        self._keyed = [operator for operator in operators if isinstance(operator, KeyedOperator)]
        self._sinks = {operator.uid: operator.sink for operator in operators if isinstance(operator, SinkOperator)}
        self._source_contexts = {operator.uid: self._source_context(operator) for operator in self._sources}
        self._uncommitted: dict[str, list[Any]] = {uid: [] for uid in self._sinks}
        self._events = self._events_before = 0
        self._last_checkpoint: int | None = None
        self._heartbeat_seconds = 0.0
        self._next_progress = self._begun + PROGRESS_SECONDS
        self._pending: tuple[PendingCheckpoint, Future[CheckpointInfo]] | None = None
        self._store: StateStore
        self._coordinator: CheckpointCoordinator
        self.stop_requested = False

    def _source_context(self, operator: SourceOperator) -> SourceContext:
        on_error = operator.source.on_error or self._config.source.on_error
        if on_error != "dead-letter":
            return SourceContext(on_error)
        sink = self._sinks[f"{operator.uid}{DEAD_LETTER}"] = self._dead_letter_sink(operator.uid)
        return SourceContext(on_error, sink.write)

    def _dead_letter_sink(self, source_uid: str) -> FileSink:
        base = self._config.source.dead_letter_dir or str(Path(self._config.state.dir, self._job.name, "dead-letter"))
        return FileSink(Path(base, source_uid), if_exists="append")

    def _adopt_dead_letters(self, meta: dict[str, Any]) -> None:
        """Sinks for the dead letters of a run with another policy: what the checkpoint has of them must be committed."""
        for uid in meta.get("sinks", ()):
            if uid not in self._sinks:
                self._sinks[uid] = self._dead_letter_sink(uid.removesuffix(DEAD_LETTER))
                self._uncommitted[uid] = []

    # Opening

    def open(self, cleanup: ExitStack, restore: str | None, run: str) -> None:
        """Open everything, from state to sources; `cleanup` closes what was opened."""
        config, clock = self._config, self._clock
        self._store = open_store(
            config, self._job.name, restore=restore, run=run, clock=clock, on_restore_progress=self._tell_restoring
        )
        cleanup.callback(self._store.close)
        meta = self._store.restored.meta if self._store.restored is not None else {}
        self._check_uids(meta)
        self._adopt_dead_letters(meta)
        for operator in self._keyed:
            operator.open(self._store)
            cleanup.callback(self._close_quietly, operator)
        cleanup.callback(self._give_up_pending)
        for uid, sink in self._sinks.items():
            cleanup.callback(self._close_quietly, sink)
            self._commit_finished(uid, sink)
            self._guarded(uid, sink.open, self._sink_context(meta.get("sinks", {}).get(uid)))
        for source in self._sources:
            cleanup.callback(self._close_quietly, source.source)
            restored = meta.get("sources", {}).get(source.uid, {})
            context = self._source_contexts[source.uid]
            context.bad_records = restored.get("bad_records", 0)
            self._guarded(source.uid, source.source.open, restored.get("position"), context)
        self._events = self._events_before = meta.get("events", 0)
        settings = config.checkpointing
        self._coordinator = CheckpointCoordinator(
            clock,
            interval_seconds=settings.interval,
            min_pause_seconds=settings.min_pause,
            timeout_seconds=settings.timeout,
            tolerable_failed=settings.tolerable_failed,
        )
        self._tell_started()

    def _check_uids(self, meta: dict[str, Any]) -> None:
        kinds = {
            "sources": [operator.uid for operator in self._sources],
            "operators": [operator.uid for operator in self._keyed],
            "sinks": list(self._sinks),
        }
        for kind, known in kinds.items():
            for uid in meta.get(kind, ()):
                is_dead_letter = kind == "sinks" and uid.endswith(DEAD_LETTER)  # it comes and goes with a setting
                if uid not in known and not is_dead_letter:
                    raise IncompatibleStateError(
                        f"the checkpoint knows a {kind[:-1]} '{uid}', the job has none: give it that uid again "
                        f"(the job's {kind} are {', '.join(known) or 'none'}), or start over with --restore none"
                    )

    def _commit_finished(self, uid: str, sink: Sink) -> None:
        """The run before may have died between its final checkpoint and the commit of its last output."""
        finished = self._store.finished_meta.get("sinks", {}).get(uid, {"transactions": ()})
        for transaction in finished["transactions"]:
            try:
                self._guarded(uid, sink.commit, transaction)
            except CorruptionError:  # it was committed, and moved or removed since by whoever it was for
                logger.debug("output of the run before is not where '%s' wrote it", uid)

    def _sink_context(self, restored: dict[str, Any] | None) -> SinkContext:
        job, attempt = self._job.name, self._store.attempt
        if restored is None:
            return SinkContext(job, attempt)
        return SinkContext(job, attempt, False, tuple(restored["transactions"]), restored["snapshot"])

    def _tell_restoring(self, progress: RestoreProgress) -> None:
        self._emit(
            Restoring(
                job=self._job.name,
                bytes_done=progress.bytes_done,
                bytes_total=progress.bytes_total,
                entries=progress.entries,
                seconds=progress.seconds,
                eta_seconds=progress.eta_seconds,
            )
        )

    def _tell_started(self) -> None:
        store = self._store
        state, checkpoints = store.describe()
        self._emit(
            Started(
                job=self._job.name,
                backend=store.backend_name,
                state=state,
                checkpoints=checkpoints,
                attempt=store.attempt,
                restored_checkpoint=store.restored.checkpoint_id if store.restored is not None else None,
                restored_epoch=store.restored.epoch if store.restored is not None else 0,
                events=self._events,
                recover_seconds=store.metrics.recovery_seconds,
            )
        )

    # Processing

    def process(self) -> None:
        """Take a batch of each source in turn until all have ended."""
        if self._store.restored is None or not self._store.restored.is_newest:
            self._insist_on_checkpoint(final=False)
        active = list(self._sources)
        while active:
            is_idle = True
            for operator in list(active):
                batch = self._guarded(operator.uid, operator.source.next_batch)
                if batch is None:
                    active.remove(operator)
                    is_idle = False
                elif batch:
                    is_idle = False
                    operator.emit(batch)
                    self._events += len(batch)
                    crashpoints.reach("job.batch")
                self._between_batches()
            if is_idle:
                self._clock.sleep(IDLE_SECONDS)

    def _between_batches(self) -> None:
        self._stop_if_requested()
        self._poll()
        if self._store.needs_checkpoint:  # more uncommitted state than memory is meant for: nothing else goes before
            self._wait_for_pending()
            self._sleep(self._coordinator.seconds_to_pause())
            self._begin_checkpoint()
        elif self._coordinator.is_due():
            self._begin_checkpoint()
        now = self._clock.monotonic()
        if now >= self._next_progress:
            self._tell_progress(now)

    def _stop_if_requested(self) -> None:
        if self.stop_requested:
            raise SystemExit(128 + signal.SIGTERM)

    def _sleep(self, seconds: float) -> None:
        """Let time pass, but not past a request to stop."""
        until = self._clock.monotonic() + seconds
        while (left := until - self._clock.monotonic()) > 0:
            self._stop_if_requested()
            self._clock.sleep(min(left, PROGRESS_SECONDS))

    def _tell_progress(self, now: float) -> None:
        hydration = self._store.hydration
        if hydration is not None:
            self._tell_restoring(hydration)
        self._emit(
            Progress(
                events=self._events,
                seconds=now - self._begun,
                checkpoints=self._coordinator.completed,
                state_bytes=self._store.metrics.state_bytes,
                wal_disk_bytes=self._store.metrics.wal_disk_bytes,
                wal_age_seconds=self._store.metrics.wal_age_seconds,
            )
        )
        after = self._clock.monotonic()
        self._heartbeat_seconds += after - now
        self._next_progress = after + PROGRESS_SECONDS

    def _guarded(self, uid: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of a source's or sink's method, with foreign exceptions made ours."""
        try:
            return function(*arguments)
        except StateStoreError:
            raise
        except Exception as error:
            raise UserCodeError.of(uid, error) from error

    # Checkpoints

    def _begin_checkpoint(self, *, final: bool = False) -> None:
        """The barrier: everything before it is in this checkpoint, nothing after it."""
        for uid, sink in self._sinks.items():
            transaction = self._guarded(uid, sink.prepare)
            if transaction is not None:
                self._uncommitted[uid].append(transaction)
        meta = {
            "events": self._events,
            "operators": [operator.uid for operator in self._keyed],
            "sources": {
                operator.uid: {
                    "position": self._guarded(operator.uid, operator.source.position),
                    "bad_records": self._source_contexts[operator.uid].bad_records,
                }
                for operator in self._sources
            },
            "sinks": {
                uid: {"transactions": list(self._uncommitted[uid]), "snapshot": self._guarded(uid, sink.snapshot)}
                for uid, sink in self._sinks.items()
            },
        }
        self._coordinator.begin()
        pending = self._store.begin_checkpoint(meta, final=final)
        self._pending = pending, _in_thread(pending.finish)

    def _poll(self) -> None:
        """Conclude the pending checkpoint if it has come to an end."""
        if self._pending is None:
            return
        pending, future = self._pending
        if future.done():
            self._pending = None
            error = future.exception()
            if error is None:
                self._complete(future.result())
            else:
                self._failed(pending, error)
        elif self._coordinator.is_overdue() and self._store.abort(pending):
            self._pending = None
            reason = f"it took longer than checkpointing.timeout ({self._config.checkpointing.timeout:g} s)"
            self._failed(pending, UnavailableError("checkpoint", self._store.describe()[1], reason))
        elif self._coordinator.is_stuck():
            reason = "writing its manifest takes for ever, so that only a new start can tell whether it is complete"
            raise UnavailableError("checkpoint", self._store.describe()[1], reason)

    def _complete(self, info: CheckpointInfo) -> None:
        self._store.complete(info)
        self._coordinator.complete()
        for uid, sink in self._sinks.items():
            for transaction in self._uncommitted[uid]:
                self._guarded(uid, sink.commit, transaction)
            self._uncommitted[uid].clear()
        self._last_checkpoint = info.checkpoint_id
        for uid, listener in self._listeners():
            self._guarded(uid, listener, info.checkpoint_id)
        self._emit(
            CheckpointCompleted(
                checkpoint=info.checkpoint_id,
                epoch=info.epoch,
                seconds=info.seconds,
                uploaded_bytes=info.uploaded_bytes,
                total_bytes=info.total_bytes,
            )
        )

    def _listeners(self) -> Iterator[tuple[str, Callable[[int], object]]]:
        listeners: list[tuple[str, object]] = [
            (operator.uid, operator.function) for operator in self._keyed if isinstance(operator, ProcessOperator)
        ]
        for uid, listener in [*listeners, *self._sinks.items()]:
            method = getattr(listener, "on_checkpoint_complete", None)
            if method is not None:
                yield uid, method

    def _failed(self, pending: PendingCheckpoint, error: BaseException) -> None:
        self._store.abort(pending)
        self._emit(CheckpointFailed(epoch=pending.epoch, reason=str(error)))
        self._coordinator.fail(error)

    def _wait_for_pending(self) -> None:
        while self._pending is not None:
            self._stop_if_requested()
            wait_for([self._pending[1]], timeout=0.05)
            self._poll()

    def _insist_on_checkpoint(self, *, final: bool) -> None:
        """Make a checkpoint, again and again until it is complete or too many have failed."""
        completed = self._coordinator.completed
        while self._coordinator.completed == completed:
            self._sleep(self._coordinator.seconds_to_pause())
            self._begin_checkpoint(final=final)
            self._wait_for_pending()
            if self._coordinator.completed == completed:
                self._sleep(RETRY_SECONDS)

    # The end

    def finish(self) -> Finished:
        """The final checkpoint, and what there is to tell."""
        self._wait_for_pending()
        self._insist_on_checkpoint(final=True)
        finished = self._finished()
        self._emit(finished)
        return finished

    def _finished(self) -> Finished:
        metrics, clock = self._store.metrics, self._clock
        before, persisted_before = clock.monotonic(), metrics.persistence_seconds
        keys = self._store.count_keys()
        # Applying what waits is work of the job; counting is not.
        counting = clock.monotonic() - before - (metrics.persistence_seconds - persisted_before)
        total = max(clock.monotonic() - self._begun - counting, 1e-9)
        spent = {
            "wal": metrics.wal_seconds,
            "persistence": metrics.persistence_seconds,
            "checkpoint": metrics.checkpoint_seconds,
            "heartbeat": self._heartbeat_seconds,
            "recovery": metrics.recovery_seconds,
        }
        return Finished(
            job=self._job.name,
            events=self._events,
            events_this_run=self._events - self._events_before,
            bad_records=sum(context.bad_records for context in self._source_contexts.values()),
            keys=keys,
            seconds=total,
            checkpoints=self._coordinator.completed,
            last_checkpoint=self._last_checkpoint,
            state_bytes=metrics.state_bytes,
            uploaded_bytes=metrics.uploaded_bytes,
            wal_disk_bytes=metrics.wal_disk_bytes,
            wal_age_seconds=metrics.wal_age_seconds,
            outputs=[sink.place for sink in self._sinks.values() if sink.place is not None],
            shares={activity: seconds / total for activity, seconds in spent.items()},
        )

    def _give_up_pending(self) -> None:
        """On the way out after a failure: let no thread use the store any more."""
        if self._pending is None:
            return
        (pending, future), self._pending = self._pending, None
        self._store.abort(pending)
        wait_for([future], timeout=CLOSING_SECONDS)

    @staticmethod
    def _close_quietly(closable: KeyedOperator | Sink | Any) -> None:
        """Close on the way out; what goes wrong must not hide why the job ends."""
        try:
            closable.close()
        except Exception:
            logger.exception("closing %s failed", type(closable).__name__)


def _in_thread(function: Callable[[], CheckpointInfo]) -> Future[CheckpointInfo]:
    """Result of a function run in a thread of its own: one that is stuck delays neither the next one nor the end of the process."""
    future: Future[CheckpointInfo] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="statestore-checkpoint", daemon=True).start()
    return future


@contextmanager
def _stop_on_sigterm(execution: _Execution) -> Iterator[None]:
    """End the run between two batches when SIGTERM comes, and at once when it comes again; unless the program has its own handler."""

    def stop(number: int, frame: FrameType | None) -> None:
        if execution.stop_requested:
            raise SystemExit(128 + number)
        execution.stop_requested = True

    is_ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
