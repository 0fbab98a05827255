"""The JobManager: a state machine that neither reads nor writes anything. Events come in, decisions go to a `Deployment`.

    created -> restoring -> running -> finished
                  ^            |
                  |            v
              restarting <- failing -> failed          (cancelled from anywhere)

Invariants:
- at most one deployment lives; its workers have ended before the next one claims its attempt;
- at most one checkpoint is pending; it is complete when each worker has acknowledged it and its manifest is written, and counts as
  failed otherwise;
- nothing is read from a source before the newest checkpoint is one that the deployment goes on from: "latest" never means a history
  that was given up;
- every state has a deadline, or somebody who is watched and must act.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from msgspec.structs import replace

from statestore.clock import Clock
from statestore.config import Config
from statestore.errors import StateStoreError, UnavailableError, UsageError
from statestore_runtime.jobmanager.coordinator import CheckpointCoordinator
from statestore_runtime.jobmanager.events import (
    Cancel,
    Claimed,
    Committed,
    Copied,
    Deployment,
    Event,
    Lost,
    RequestRefusedError,
    Rescale,
    Stop,
    TakeCheckpoint,
    Told,
)
from statestore_runtime.jobmanager.failures import LOST, DeclinedError, failed_of
from statestore_runtime.jobmanager.heartbeats import HeartbeatMonitor
from statestore_runtime.jobmanager.restart import RestartStrategy
from statestore_runtime.jobmanager.splits import SplitAssigner
from statestore_runtime.messages import (
    CheckpointCompleted,
    CheckpointFailed,
    Finished,
    Message,
    Progress,
    Restarting,
    Started,
    finished_of,
    progress_of,
)
from statestore_runtime.protocol import (
    Abort,
    Acknowledged,
    AnyCommand,
    Assign,
    Begin,
    CheckpointWanted,
    Complete,
    Declined,
    Deploy,
    Discovered,
    Done,
    Drain,
    Failed,
    InputEnded,
    NoMoreSplits,
    Opened,
    Recovering,
    Relax,
    Trigger,
    Working,
)
from statestore_runtime.task.meta import merged_meta

logger = logging.getLogger("statestore_runtime.jobmanager")

RETRY_SECONDS = 1.0
"""From a failed checkpoint to the next, where the job waits for one."""

PROGRESS_SECONDS = 0.25
REMEMBERED_FAILURES = 16


class JobState(Enum):
    """Where a job stands."""

    CREATED = "created"
    RESTORING = "restoring"
    RUNNING = "running"
    FAILING = "failing"
    RESTARTING = "restarting"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)
DEPLOYED = (JobState.RESTORING, JobState.RUNNING, JobState.FAILING)


@dataclass(slots=True)
class Round:
    """One checkpoint in the making."""

    number: int
    begun: float
    final: bool
    stop: bool
    acknowledged: dict[int, Acknowledged] = field(default_factory=dict)
    is_committing: bool = False
    replies: list[TakeCheckpoint] = field(default_factory=list)


@dataclass(slots=True)
class _Worker:
    """What is known of a worker of the present deployment."""

    opened: Opened | None = None
    progress: Progress | None = None
    finished: Finished | None = None
    has_ended: bool = False
    """Whether its input has."""


class JobManager:
    """One run of a job.

    Parameters
    ----------
    parallelism
        Number of workers.
    restore, run
        As `statestore.opening.open_store` takes them.
    emit
        Called with every message worth showing.
    resumed
        Whether the job has run before, under another JobManager: then what fails the first deployment may pass, and is tried again.

    Attributes
    ----------
    state : JobState
    failures : deque of Failed
        The last causes of restarts and of the end, oldest first.
    was_stopped : bool
        Whether the job has finished because it was told to stop, not because its sources have ended.
    """

    def __init__(
        self,
        job: str,
        config: Config,
        *,
        parallelism: int,
        restore: str | None,
        run: str,
        clock: Clock,
        deployment: Deployment,
        strategy: RestartStrategy,
        emit: Callable[[Message], object],
        resumed: bool = False,
    ):
        self.job, self.parallelism = job, parallelism
        self._config, self._clock, self._deployment, self._strategy = config, clock, deployment, strategy
        self._restore, self._run, self._emit = restore, run, emit
        self.state = JobState.CREATED
        self.failures: deque[Failed] = deque(maxlen=REMEMBERED_FAILURES)
        self.restarts = 0
        self.recovery_seconds = 0.0
        self.finished: Finished | None = None
        self.savepoint: str | None = None
        self.was_stopped = False
        self.last_checkpoint: int | None = None
        self._waiting_since = clock.monotonic()
        self._heartbeats = HeartbeatMonitor(clock, config.heartbeat.timeout)
        self._number = 0  # of the deployment
        self._attempt = self._claim_above = 0
        self._has_run = resumed
        self._failed_at_events: int | None = None
        self._stopping: Stop | None = None
        self._rescaling: Rescale | None = None
        self._requests: list[TakeCheckpoint] = []
        self._completed = 0
        self._next_progress = 0.0
        self._heartbeat_seconds = 0.0
        self._reset()

    def _reset(self) -> None:
        """Nothing is known of a deployment that has not begun."""
        settings = self._config.checkpointing
        self._coordinator = CheckpointCoordinator(
            self._clock,
            interval_seconds=settings.interval,
            min_pause_seconds=settings.min_pause,
            timeout_seconds=settings.timeout,
            tolerable_failed=settings.tolerable_failed,
        )
        self._workers = [_Worker() for _ in range(self.parallelism)]
        self._splits: dict[str, SplitAssigner] = {}
        self._round: Round | None = None
        self._rounds = 0
        self._has_begun = False  # to read
        self._is_ending = False  # its last checkpoint is complete
        self._insisted: Trigger | None = None
        self._not_before = 0.0  # the next checkpoint that is insisted on
        self._deadline: float | None = None
        self._failure: Failed | None = None
        self._wanted = False

    # Life

    def start(self) -> None:
        """Begin the first deployment."""
        self._deploy()

    def _deploy(self) -> None:
        self._number += 1
        if self._rescaling is not None:
            self.parallelism = self._rescaling.parallelism
        self._reset()
        self._enter(JobState.RESTORING)
        self._deadline = self._clock.monotonic() + self._config.job.restore_timeout
        self._deployment.claim(self._number, self._claim_above)

    def _enter(self, state: JobState) -> None:
        self.state = state
        logger.debug("job '%s' is %s", self.job, state.value)

    def handle(self, event: Event) -> None:
        """Take an event."""
        match event:
            case TakeCheckpoint() | Stop() | Cancel() | Rescale():
                self._handle_request(event)
            case Copied():
                self._handle_copied(event)
            case _ if event.deployment != self._number or self.state not in DEPLOYED:
                return  # what a deployment says that was ended is of no interest, as of one that has failed already
            case Told(worker=worker, report=report):
                self._heartbeats.heard(worker)
                self._handle_report(worker, report)
            case Claimed():
                self._handle_claimed(event)
            case Lost(worker=worker, reason=reason):
                self._handle_lost(worker, reason)
            case Committed():
                self._handle_committed(event)

    def give_up(self, reason: str) -> None:
        """End the job here and now; who waits for something hears the reason."""
        self._end_deployment()
        self._enter(JobState.CANCELLED)
        self._refuse_requests(reason)

    @property
    def has_run(self) -> bool:
        """Whether it has ever got so far as to read its sources."""
        return self._has_run

    def tick(self) -> float:
        """Do what the time asks for; returns the seconds until it may ask for more."""
        self._tick()
        return self._seconds_left()

    def _tick(self) -> None:
        now = self._clock.monotonic()
        if self.state is JobState.RESTARTING and self._deadline is not None and now >= self._deadline:
            self._deploy()
            return
        if self.state in DEPLOYED:
            silent = self._heartbeats.silent()
            if silent is not None:
                reason = f"stayed silent for {self._heartbeats.timeout_seconds:g} s and was killed"
                self._handle_lost(silent, reason)
                return
            self._check_deadline(now)
        if self.state in DEPLOYED and self._has_opened and not self._is_ending:
            self._checkpoint_if_due(now)
        if self.state is JobState.RUNNING and now >= self._next_progress:
            self._tell_progress()
            after = self._clock.monotonic()
            self._heartbeat_seconds += after - now
            self._next_progress = after + PROGRESS_SECONDS

    def _seconds_left(self) -> float:
        now = self._clock.monotonic()
        times = [self._next_progress] if self.state is JobState.RUNNING else [now + 1.0]
        if self._deadline is not None:
            times.append(self._deadline)
        lefts = [time - now for time in times]
        lefts += [
            left for left in (self._heartbeats.seconds_left(), self._seconds_to_checkpoint(now)) if left is not None
        ]
        return max(0.0, min(lefts))

    def _seconds_to_checkpoint(self, now: float) -> float | None:
        """Until one is to be begun, or looked at."""
        if self._is_ending:
            return None
        if self._round is None and self._insisted is not None:
            return max(self._not_before - now, self._coordinator.seconds_to_pause())
        return self._coordinator.seconds_to_due() if self._round is not None or self._has_begun else None

    def _check_deadline(self, now: float) -> None:
        if self._deadline is None or now < self._deadline:
            return
        if self._failure is not None:  # what was to be saved before the end takes too long
            self._fail(self._failure)
        elif self.state is JobState.RESTORING:
            seconds = f"{self._config.job.restore_timeout:g} s"
            problem = f"the job did not open its state within {seconds} (job.restore-timeout), and told of no progress"
            self._fail(Failed(error=problem, exit_code=3))
        else:
            seconds = f"{self._config.job.stop_timeout:g} s"
            self._fail(Failed(error=f"the job did not stop within {seconds} (job.stop-timeout)", exit_code=3))

    # Opening

    @property
    def _has_opened(self) -> bool:
        return all(worker.opened is not None for worker in self._workers)

    def _handle_claimed(self, event: Claimed) -> None:
        if event.attempt is None:
            assert event.error is not None
            self._fail(failed_of(event.error))
            return
        self._attempt = event.attempt
        self._heartbeats.watch(self.parallelism)
        self._deployment.start(
            self._number,
            Deploy(
                attempt=event.attempt,
                parallelism=self.parallelism,
                restore=self._restore,
                run=self._run,
                careful=self._failed_at_events is not None,
            ),
        )

    def _handle_report(self, index: int, report: Any) -> None:
        worker = self._workers[index]
        match report:
            case Opened():
                worker.opened = report
                if self._has_opened:
                    self._after_opening()
            case Recovering(restoring=restoring):
                if self.state is JobState.RESTORING and not self._has_opened:
                    self._deadline = self._clock.monotonic() + self._config.job.restore_timeout
                self._emit(restoring)
            case Discovered():
                self._handle_discovered(report)
            case Acknowledged() | Declined():
                self._handle_acknowledged(index, report)
            case CheckpointWanted():
                self._wanted = True
            case InputEnded():
                worker.has_ended = True
                if all(each.has_ended for each in self._workers) and self._insisted is None:
                    self._insist(Trigger(checkpoint=0, final=True))
            case Working(progress=progress):
                worker.progress = progress
            case Done(finished=finished):
                worker.finished = finished
                self._heartbeats.ended(index)
                self._finish_if_done()
            case Failed():
                self._handle_failed(report)

    def _after_opening(self) -> None:
        opened = [worker.opened for worker in self._workers if worker.opened is not None]
        if len({each.restored_checkpoint for each in opened}) > 1:
            numbers = ", ".join(str(each.restored_checkpoint) for each in opened)
            self._fail(Failed(error=f"the workers restored different checkpoints ({numbers})", exit_code=3))
            return
        first = opened[0]
        self._splits = {uid: SplitAssigner(known, self.parallelism) for uid, known in first.splits.items()}
        self._deadline = None
        self.recovery_seconds += self._clock.monotonic() - self._waiting_since
        self._emit(
            Started(
                job=self.job,
                backend=first.backend,
                state=first.state,
                checkpoints=first.checkpoints,
                attempt=self._attempt,
                parallelism=self.parallelism,
                restored_checkpoint=first.restored_checkpoint,
                restored_epoch=first.restored_epoch,
                events=first.events,
                recover_seconds=max(each.recover_seconds for each in opened),
            )
        )
        if self._stopping is not None and not self._stopping.drain:
            self._enter(JobState.RUNNING)  # and not to read any more: it was told to stop before it failed
            self._insist(Trigger(checkpoint=0, stop=True))
        elif first.restored_checkpoint is None or not first.is_newest:
            self._insist(Trigger(checkpoint=0))
        else:
            self._begin()

    def _begin(self) -> None:
        self._enter(JobState.RUNNING)
        self._has_begun = self._has_run = True
        if self._rescaling is not None:
            self._rescaling.reply(self.parallelism)
            self._rescaling = None
        if self._stopping is not None:
            self._send_all(Drain())
        self._send_all(Begin())

    def _handle_discovered(self, report: Discovered) -> None:
        assigner = self._splits.setdefault(report.source, SplitAssigner((), self.parallelism))
        assigned = assigner.assign(report.splits)
        for worker in range(self.parallelism):  # those that get none are to know that
            self._deployment.send(worker, Assign(source=report.source, splits=assigned.get(worker, [])))
        if report.is_final:
            self._send_all(NoMoreSplits(source=report.source))

    def _send_all(self, command: AnyCommand) -> None:
        for worker in range(self.parallelism):
            self._deployment.send(worker, command)

    # Checkpoints

    def _insist(self, trigger: Trigger) -> None:
        """Make a checkpoint, again and again until one is complete or too many have failed."""
        self._insisted, self._not_before = trigger, self._clock.monotonic()

    def _checkpoint_if_due(self, now: float) -> None:
        if self._round is not None:
            self._check_time_of_round()
        elif self._insisted is not None:
            if now >= self._not_before and self._coordinator.seconds_to_pause() == 0:
                self._trigger(self._insisted)
        elif self.state is JobState.RUNNING and self._is_due():
            self._trigger(Trigger(checkpoint=0))

    def _is_due(self) -> bool:
        is_asked_for = self._wanted or bool(self._requests)
        return self._coordinator.is_due() or (is_asked_for and self._coordinator.seconds_to_pause() == 0)

    def _trigger(self, trigger: Trigger) -> None:
        self._rounds += 1
        self._wanted = False
        self._round = Round(self._rounds, self._clock.monotonic(), trigger.final, trigger.stop)
        self._round.replies, self._requests = self._requests, []
        base = any(request.base for request in self._round.replies)
        self._coordinator.begin()
        self._send_all(replace(trigger, checkpoint=self._rounds, base=base))

    def _check_time_of_round(self) -> None:
        assert self._round is not None
        if not self._round.is_committing:
            if self._coordinator.is_overdue():
                seconds = f"{self._config.checkpointing.timeout:g} s"
                waits_for = sorted(set(range(self.parallelism)) - self._round.acknowledged.keys())
                workers = " and ".join(map(str, waits_for))
                reason = (
                    f"it took longer than checkpointing.timeout ({seconds}): worker {workers} has not acknowledged it"
                )
                self._fail_round(UnavailableError("checkpoint", self._checkpoints, reason))
        elif self._coordinator.is_stuck():
            reason = "writing its manifest takes for ever, so that only a new start can tell whether it is complete"
            self._fail(failed_of(UnavailableError("checkpoint", self._checkpoints, reason)))

    @property
    def _checkpoints(self) -> str:
        opened = self._workers[0].opened
        return opened.checkpoints if opened is not None else "its storage"

    def _handle_acknowledged(self, index: int, report: Acknowledged | Declined) -> None:
        current = self._round
        if current is None or report.checkpoint != current.number or current.is_committing:
            logger.debug("checkpoint %d is over: what worker %d says of it is passed over", report.checkpoint, index)
            return
        if isinstance(report, Declined):
            self._fail_round(report.cause or DeclinedError(report))
            return
        current.acknowledged[index] = report
        if len(current.acknowledged) == self.parallelism:
            current.is_committing = True
            acknowledged = [current.acknowledged[worker] for worker in range(self.parallelism)]
            self._deployment.commit(
                self._number,
                current.number,
                [each.manifest for each in acknowledged],
                merged_meta([each.meta for each in acknowledged]),
                self._clock.monotonic() - current.begun,
            )

    def _handle_committed(self, event: Committed) -> None:
        current = self._round
        if current is None or event.checkpoint != current.number:
            return
        if event.info is None:
            assert event.error is not None
            self._fail_round(event.error)
            return
        self._round, info = None, event.info
        self._coordinator.complete()
        self._completed += 1
        self._strategy.succeeded()
        self.last_checkpoint = info.checkpoint_id
        self._send_all(
            Complete(checkpoint=current.number, manifest=info.manifest, path=info.path, seconds=info.seconds)
        )
        self._emit(self._completed_message(current, event))
        for request in current.replies:
            self._satisfy(request, event)
        self._after_checkpoint(current, event)

    def _completed_message(self, current: Round, event: Committed) -> CheckpointCompleted:
        assert event.info is not None
        info = event.info
        tasks = [current.acknowledged[worker].phases for worker in range(self.parallelism)]
        return CheckpointCompleted(
            checkpoint=info.checkpoint_id,
            epoch=info.epoch,
            seconds=info.seconds,
            uploaded_bytes=info.uploaded_bytes,
            total_bytes=info.total_bytes,
            tasks=tasks,
            commit_seconds=max(0.0, self._clock.monotonic() - current.begun - info.seconds),
        )

    def _satisfy(self, request: TakeCheckpoint, event: Committed) -> None:
        assert event.info is not None
        if request.savepoint_dir is None:
            request.reply(event.info.path)
        else:
            self._deployment.copy(self._number, event.info.manifest, request.savepoint_dir, request.reply)

    def _after_checkpoint(self, current: Round, event: Committed) -> None:
        insisted, self._insisted = self._insisted, None
        if insisted is not None and (insisted.final, insisted.stop) != (current.final, current.stop):
            self._insist(insisted)  # this one was begun before
        elif current.stop or current.final:
            self._is_ending, self.was_stopped = True, current.stop and not current.final
            self._deadline = self._clock.monotonic() + self._config.job.stop_timeout
            self._copy_if_stopped_with_savepoint(event)
        elif not self._has_begun:
            self._begin()
        self._relax_if_past(event)

    def _copy_if_stopped_with_savepoint(self, event: Committed) -> None:
        stopping = self._stopping
        if stopping is None or stopping.savepoint_dir is None:
            return
        assert event.info is not None
        # Whoever has asked is answered by the copy, whatever becomes of the deployment; a restart stops where the savepoint was made.
        self._stopping = Stop(lambda outcome: None, drain=stopping.drain)
        self._deployment.copy(self._number, event.info.manifest, stopping.savepoint_dir, stopping.reply)

    def _relax_if_past(self, event: Committed) -> None:
        """A careful deployment that has got behind the event on which a function failed needs to be careful no more."""
        assert event.info is not None
        if self._failed_at_events is not None and event.info.manifest.meta.get("events", 0) > self._failed_at_events:
            self._failed_at_events = None
            self._send_all(Relax())

    def _fail_round(self, error: BaseException) -> None:
        current, self._round = self._round, None
        assert current is not None
        self._send_all(Abort(checkpoint=current.number, reason=str(error)))
        self._emit(CheckpointFailed(checkpoint=current.number, reason=str(error)))
        for request in current.replies:
            request.reply(error)
        self._not_before = self._clock.monotonic() + RETRY_SECONDS
        if self._failure is not None:
            self._fail(self._failure)
            return
        try:
            self._coordinator.fail(error)
        except StateStoreError as too_many:
            self._fail(failed_of(too_many))

    # The end

    def _finish_if_done(self) -> None:
        finished = [worker.finished for worker in self._workers if worker.finished is not None]
        if len(finished) < self.parallelism:
            return
        if self._failure is not None:  # what came before it is visible now
            self._fail(self._failure)
            return
        self._end_deployment(at_once=False)
        self.finished = finished_of(
            finished,
            checkpoints=self._completed,
            last_checkpoint=self.last_checkpoint,
            heartbeat_seconds=self._heartbeat_seconds,
        )
        if self._rescaling is not None:
            self._waiting_since = self._clock.monotonic()
            self._deploy()
            return
        self._enter(JobState.FINISHED)
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.reply(self.last_checkpoint)
        self._refuse_requests(f"job '{self.job}' is finished")
        self._emit(self.finished)

    def _end_deployment(self, *, at_once: bool = True) -> None:
        self._heartbeats.forget()
        self._deployment.end(at_once=at_once)
        if self._round is not None:
            for request in self._round.replies:
                request.reply(RequestRefusedError(f"job '{self.job}' ended before its checkpoint was complete"))
        self._reset()

    # Failures

    def _handle_lost(self, worker: int, reason: str) -> None:
        if self._workers[worker].finished is None:
            which = f"worker process {worker}" if self.parallelism > 1 else "the worker process"
            self._fail(Failed(error=f"{which} {reason}", exit_code=LOST, is_known=False))

    def _handle_failed(self, failure: Failed) -> None:
        if failure.claim_above is not None and failure.claim_above > self._claim_above:
            self._claim_above = failure.claim_above
            self._end_deployment()
            self._deploy()
            return
        can_save = failure.can_save and self._config.checkpointing.on_failure and self._has_begun
        if can_save and self.state is JobState.RUNNING:
            self._enter(JobState.FAILING)
            self._failure = failure
            self._deadline = self._clock.monotonic() + self._config.checkpointing.timeout
            self._insist(Trigger(checkpoint=0, stop=True))
            return
        self._fail(failure)

    def _fail(self, failure: Failed) -> None:
        """The deployment has failed: end it, and begin another if that may help."""
        failure = self._failure or failure  # that of a job that is failing already has come first
        events = sum(worker.progress.events for worker in self._workers if worker.progress is not None)
        self._end_deployment()
        self.failures.append(failure)
        self._waiting_since = self._clock.monotonic()
        delay = self._delay_after(failure, events)
        if delay is None:
            self._enter(JobState.FAILED)
            self._refuse_requests(f"job '{self.job}' has failed: {failure.error}")
            return
        self.restarts += 1
        self._enter(JobState.RESTARTING)
        self._deadline = self._waiting_since + delay
        self._emit(Restarting(reason=failure.error, restart=self.restarts, delay_seconds=delay))

    def _delay_after(self, failure: Failed, events: int) -> float | None:
        is_told = failure.exit_code != LOST
        if is_told and not self._has_run:  # it would fail again: a wrong address, a server that is not there
            return None
        if failure.is_users:
            if failure.is_reproduced:
                return None
            self._failed_at_events = events
            return self._strategy.next_delay()
        if failure.is_known and failure.exit_code != UnavailableError.exit_code:
            return None
        return self._strategy.next_delay()

    # Requests

    def _handle_request(self, request: TakeCheckpoint | Stop | Cancel | Rescale) -> None:
        if self.state in ENDED:
            request.reply(RequestRefusedError(f"job '{self.job}' is {self.state.value}"))
            return
        if isinstance(request, Cancel):
            self.give_up(f"job '{self.job}' was cancelled")
            request.reply(None)
            return
        if self.state is not JobState.RUNNING or self._stopping or self._rescaling or self._is_ending:
            doing = "stopping" if self._stopping else "rescaling" if self._rescaling else self.state.value
            if self._is_ending and doing == self.state.value:
                doing = "finishing"
            request.reply(RequestRefusedError(f"job '{self.job}' is {doing}: ask again when it runs"))
            return
        match request:
            case TakeCheckpoint():
                self._requests.append(request)
            case Stop(drain=drain):
                self._stopping = request
                self._stop(drain=drain)
            case Rescale(parallelism=parallelism):
                if not 1 <= parallelism <= self._config.state.max_parallelism:
                    most = self._config.state.max_parallelism
                    request.reply(UsageError(f"parallelism is {parallelism}, it must be from 1 to {most}"))
                    return
                self._rescaling = request
                self._stop(drain=False)

    def _stop(self, *, drain: bool) -> None:
        if drain:
            self._send_all(Drain())  # its input ends, and the final checkpoint follows
        elif self._insisted is None:
            self._insist(Trigger(checkpoint=0, stop=True))

    def _handle_copied(self, event: Copied) -> None:
        self.savepoint = event.path
        event.reply(event.path if event.error is None else event.error)

    def _refuse_requests(self, reason: str) -> None:
        waiting: list[TakeCheckpoint | Stop | Rescale] = [*self._requests]
        waiting += [request for request in (self._stopping, self._rescaling) if request is not None]
        self._requests, self._stopping, self._rescaling = [], None, None
        for request in waiting:
            request.reply(RequestRefusedError(reason))

    # Telling

    def _tell_progress(self) -> None:
        known = [worker.progress for worker in self._workers if worker.progress is not None]
        if known:
            self._emit(progress_of(known, self._completed))
