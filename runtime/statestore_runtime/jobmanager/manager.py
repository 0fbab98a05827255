"""The JobManager: a state machine that neither reads nor writes anything. Events come in, decisions go to a `Deployment`.

    created -> restoring -> running -> finished
                  ^            |
                  |            v
              restarting <- failing -> failed          (cancelled from anywhere)

Invariants:
- at most one deployment lives; its workers have ended before the next one claims its attempt;
- nothing is read from a source before the newest checkpoint is one that the deployment goes on from: "latest" never means a history
  that was given up;
- every state has a deadline, or somebody who is watched and must act.

Its checkpoints are `Rounds`, what others ask it for is in `Requests`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from statestore.checkpoint.snapshot import CheckpointInfo
from statestore.clock import Clock
from statestore.config import Config
from statestore.errors import StateStoreError, UnavailableError
from statestore_runtime.jobmanager.deadline import Deadline
from statestore_runtime.jobmanager.events import (
    Cancel,
    Claimed,
    Committed,
    Copied,
    Deployment,
    Event,
    Lost,
    Request,
    RequestRefusedError,
    Rescale,
    Stop,
    TakeCheckpoint,
    Told,
)
from statestore_runtime.jobmanager.failures import LOST, Failures, failed_of
from statestore_runtime.jobmanager.heartbeats import HeartbeatMonitor
from statestore_runtime.jobmanager.requests import Requests
from statestore_runtime.jobmanager.restart import RestartStrategy
from statestore_runtime.jobmanager.rounds import Round, Rounds
from statestore_runtime.jobmanager.state import DEPLOYED, ENDED, JobState
from statestore_runtime.jobmanager.telling import ProgressTeller
from statestore_runtime.jobmanager.workers import Workers
from statestore_runtime.messages import Finished, Message, Restarting, finished_of
from statestore_runtime.protocol import (
    Acknowledged,
    AnyReport,
    Begin,
    CheckpointWanted,
    Declined,
    Deploy,
    Done,
    Drain,
    Failed,
    InputEnded,
    Opened,
    Recovering,
    Relax,
    Trigger,
)

logger = logging.getLogger("statestore_runtime.jobmanager")


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
    failures : Failures
        The causes of restarts and of the end.
    finished : Finished or None
        What the job has come to, once it is finished.
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
        self._config, self._clock, self._deployment = config, clock, deployment
        self._restore, self._run, self._emit = restore, run, emit
        self.state = JobState.CREATED
        self.failures = Failures(job, strategy, resumed=resumed)
        self.recovery_seconds = 0.0
        self.finished: Finished | None = None
        self.was_stopped = False
        self.last_checkpoint: int | None = None
        self._waiting_since = clock.monotonic()
        self._heartbeats = HeartbeatMonitor(clock, config.heartbeat.timeout)
        self._number = 0  # of the deployment
        self._attempt = self._claim_above = 0
        self._requests = Requests(job, config.state.max_parallelism)
        self._completed = 0
        self._deadline = Deadline(clock)
        self._teller = ProgressTeller(clock, emit)
        self._reset()

    def _reset(self) -> None:
        """Nothing is known of a deployment that has not begun."""
        self._workers = Workers(self.parallelism, self._deployment)
        self._rounds = Rounds(
            self._clock,
            self._config.checkpointing,
            number=self._number,
            workers=self._workers,
            deployment=self._deployment,
            requests=self._requests,
            emit=self._emit,
            on_complete=self._checkpoint_completed,
            on_failed=self._checkpoint_failed,
        )
        self._deadline.clear()
        self._failure: Failed | None = None  # that the job is to fail with, once what came before it is saved

    # Life

    def start(self) -> None:
        """Begin a deployment: the first one; those after it begin by themselves."""
        self._number += 1
        if self._requests.rescaling is not None:
            self.parallelism = self._requests.rescaling.parallelism
        self._reset()
        self._enter(JobState.RESTORING)
        self._expect_opening()
        self._deployment.claim(self._number, self._claim_above)

    def _expect_opening(self) -> None:
        seconds = self._config.job.restore_timeout
        problem = f"the job did not open its state within {seconds:g} s (job.restore-timeout), and told of no progress"
        self._deadline.set(seconds, problem)

    def _enter(self, state: JobState) -> None:
        self.state = state
        logger.debug("job '%s' is %s", self.job, state.value)

    def handle(self, event: Event) -> None:
        """Take an event."""
        match event:
            case Cancel() | Stop() | Rescale() | TakeCheckpoint():
                self._handle_request(event)
            case Copied():
                event.reply(event.path if event.error is None else event.error)
            case _ if self.state not in DEPLOYED:
                return
            case Claimed(deployment=number, attempt=int(attempt)) if number != self._number:
                if attempt > max(self._attempt, self._claim_above):
                    self._claim_again(attempt)  # it was given up, as its storage took so long
            case _ if event.deployment != self._number:
                return  # what a deployment says that was ended is of no interest, as of one that has failed already
            case Told(worker=worker, report=report):
                self._heartbeats.heard(worker)
                self._handle_report(worker, report)
            case Claimed():
                self._handle_claimed(event)
            case Lost(worker=worker, reason=reason):
                self._handle_lost(worker, reason)
            case Committed():
                self._rounds.committed(event)

    def give_up(self, reason: str) -> None:
        """End the job here and now; who waits for something hears the reason."""
        self._end_deployment()
        self._enter(JobState.CANCELLED)
        self._requests.refuse_all(reason)

    @property
    def savepoint(self) -> str | None:
        """Where the job's last checkpoint was copied to, if that was asked for with the stop."""
        return self._requests.savepoint

    def tick(self) -> float:
        """Do what the time asks for; returns the seconds until it may ask for more."""
        if self.state is JobState.RESTARTING and self._deadline.is_over:
            self.start()
        if self.state in DEPLOYED:
            self._look_at_the_time()
        if self.state is JobState.RUNNING:
            self._teller.tick(self._workers.progress, self._completed)
        lefts = [
            self._teller.seconds_left() if self.state is JobState.RUNNING else 1.0,
            self._deadline.seconds_left(),
            self._heartbeats.seconds_left(),
            self._rounds.seconds_left(),
        ]
        return max(0.0, min(left for left in lefts if left is not None))

    def _look_at_the_time(self) -> None:
        silent = self._heartbeats.silent()
        if silent is not None:
            self._handle_lost(silent, f"stayed silent for {self._heartbeats.timeout_seconds:g} s and was killed")
        elif self._deadline.is_over:
            self._fail(Failed(error=self._deadline.problem, exit_code=UnavailableError.exit_code))
        else:
            self._rounds.tick()

    # Opening

    def _handle_claimed(self, event: Claimed) -> None:
        if event.attempt is None:
            assert event.error is not None
            self._fail(failed_of(event.error))
            return
        self._attempt = event.attempt
        self._heartbeats.watch(self.parallelism)
        careful = self.failures.ask_for_care
        deploy = Deploy(
            attempt=event.attempt, parallelism=self.parallelism, restore=self._restore, run=self._run, careful=careful
        )
        self._deployment.start(self._number, deploy)

    def _handle_report(self, index: int, report: AnyReport) -> None:
        workers = self._workers
        workers.take(index, report)
        match report:
            case Opened() if workers.have_opened:
                self._after_opening()
            case Recovering(restoring=restoring):
                if self.state is JobState.RESTORING and not workers.have_opened:
                    self._expect_opening()
                self._emit(restoring)
            case Acknowledged() | Declined():
                self._rounds.acknowledge(index, report)
            case CheckpointWanted():
                self._rounds.want()
            case InputEnded() if workers.have_input_ended and self._rounds.insisted is None:
                self._rounds.insist(Trigger(checkpoint=0, final=True))
            case Done():
                self._heartbeats.ended(index)
                if workers.have_finished:
                    self._finish()
            case Failed():
                self._handle_failed(report)

    def _after_opening(self) -> None:
        if (problem := self._workers.disagreement) is not None:
            self._fail(Failed(error=problem, exit_code=UnavailableError.exit_code))
            return
        first = self._workers.reports[0]
        self._deadline.clear()
        self.recovery_seconds += self._clock.monotonic() - self._waiting_since
        self._emit(self._workers.started(self.job, self._attempt))
        if (stopping := self._requests.stopping) is not None and not stopping.drain:
            self._enter(JobState.RUNNING)  # and not to read any more: it was told to stop before it failed
            self._rounds.insist(Trigger(checkpoint=0, stop=True))
        elif first.restored_checkpoint is None or not first.is_newest:
            self._rounds.insist(Trigger(checkpoint=0))
        else:
            self._begin()

    def _begin(self) -> None:
        self._enter(JobState.RUNNING)
        self._rounds.is_regular = self.failures.has_run = True
        self._requests.rescaled(self.parallelism)
        if self._requests.stopping is not None:
            self._workers.send_all(Drain())
        self._workers.send_all(Begin())

    # Checkpoints

    def _checkpoint_completed(self, current: Round, info: CheckpointInfo) -> None:
        self._completed += 1
        self.last_checkpoint = info.checkpoint_id
        if self._rounds.is_over:
            self.was_stopped = current.stop and not current.final
            seconds = self._config.job.stop_timeout
            self._deadline.set(seconds, f"the job did not stop within {seconds:g} s (job.stop-timeout)")
            wanted = self._requests.take_savepoint(info.checkpoint_id) if self._failure is None else None
            if wanted is not None:
                self._deployment.copy(self._number, info.manifest, *wanted)
        elif not self._rounds.is_regular and self._rounds.insisted is None:
            self._begin()
        if self.failures.succeeded(info.manifest.meta.get("events", 0)):
            self._workers.send_all(Relax())

    def _checkpoint_failed(self, error: StateStoreError | None) -> None:
        if self._failure is not None:
            self._fail(self._failure)
        elif error is not None:
            self._fail(failed_of(error))

    # The end

    def _finish(self) -> None:
        if self._failure is not None:  # what came before it is visible now
            self._fail(self._failure)
            return
        figures = self._workers.figures
        self._end_deployment(at_once=False)
        if self._requests.rescaling is not None:
            self._waiting_since = self._clock.monotonic()
            self.start()
            return
        checkpoints, last, spent = self._completed, self.last_checkpoint, self._teller.seconds_spent
        self.finished = finished_of(figures, checkpoints=checkpoints, last_checkpoint=last, heartbeat_seconds=spent)
        self._enter(JobState.FINISHED)
        self._requests.stopped(self.last_checkpoint)
        self._requests.refuse_all(f"job '{self.job}' is finished")
        self._emit(self.finished)

    def _end_deployment(self, *, at_once: bool = True) -> None:
        self._heartbeats.forget()
        self._deployment.end(at_once=at_once)
        self._rounds.give_up(f"job '{self.job}' ended before its checkpoint was complete")
        self._reset()

    # Failures

    def _handle_lost(self, worker: int, reason: str) -> None:
        if not self._workers.has_finished(worker):
            which = f"worker process {worker}" if self.parallelism > 1 else "the worker process"
            self._fail(Failed(error=f"{which} {reason}", exit_code=LOST, is_known=False))

    def _handle_failed(self, failure: Failed) -> None:
        if failure.claim_above is not None and failure.claim_above > self._claim_above:
            self._claim_again(failure.claim_above)
            return
        may_save = self._config.checkpointing.on_failure and self.state is JobState.RUNNING
        if failure.can_save and may_save and self._rounds.is_regular:
            self._enter(JobState.FAILING)
            self._failure = failure
            self._deadline.set(self._config.checkpointing.timeout)
            self._rounds.insist(Trigger(checkpoint=0, stop=True))
            return
        self._fail(failure)

    def _claim_again(self, above: int) -> None:
        """The deployment's attempt is not the greatest, and is shut out by that which is: begin another with a greater one."""
        logger.warning("job '%s': attempt %d is shut out by %d; it begins again", self.job, self._attempt, above)
        self._claim_above = above
        self._end_deployment()
        self.start()

    def _fail(self, failure: Failed) -> None:
        """The deployment has failed: end it, and begin another if that may help."""
        failure = self._failure or failure  # that of a job that is failing already has come first
        events = self._workers.events
        self._end_deployment()
        delay = self.failures.add(failure, events)
        self._waiting_since = self._clock.monotonic()
        if delay is None:
            self._enter(JobState.FAILED)
            self._requests.refuse_all(f"job '{self.job}' has failed: {failure.error}")
            return
        self._enter(JobState.RESTARTING)
        self._deadline.set(delay)
        self._emit(Restarting(reason=failure.error, restart=self.failures.restarts, delay_seconds=delay))

    # Requests

    def _handle_request(self, request: Request) -> None:
        if self.state in ENDED:
            request.reply(RequestRefusedError(f"job '{self.job}' is {self.state.value}"))
            return
        if isinstance(request, Cancel):
            self.give_up(f"job '{self.job}' was cancelled")
            request.reply(None)
            return
        doing = None if self.state is JobState.RUNNING else self.state.value
        if self._rounds.is_over:
            doing = "finishing"
        if not self._requests.take(request, doing):
            return
        match request:
            case Stop(drain=True):
                self._workers.send_all(Drain())  # its input ends, and the final checkpoint follows
            case Stop() | Rescale() if self._rounds.insisted is None:
                self._rounds.insist(Trigger(checkpoint=0, stop=True))
