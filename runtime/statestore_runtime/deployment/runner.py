"""One run of a job with a process for each worker: this process is the JobManager's."""

from __future__ import annotations

import os
import queue
import random  # noqa: TID251 - the one place that asks for chance
import selectors
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import msgspec

from statestore.checkpoint.manifest import Manifest
from statestore.clock import Clock, SystemClock
from statestore.config import Config
from statestore.errors import StateStoreError
from statestore_runtime.control.messages import AnyRequest, GetStatus, JobStatus
from statestore_runtime.control.place import control_folder
from statestore_runtime.control.server import ControlServer, JobEndedError
from statestore_runtime.deployment.leftovers import remove_leftovers
from statestore_runtime.deployment.processes import Processes
from statestore_runtime.deployment.storing import Storing
from statestore_runtime.deployment.watching import Watching, event_of
from statestore_runtime.job import Job
from statestore_runtime.jobmanager.events import Cancel, Copied, Event, Reply, Request, Stop
from statestore_runtime.jobmanager.failures import JobCancelledError
from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.restart import restart_strategy
from statestore_runtime.jobmanager.state import ENDED, JobState
from statestore_runtime.listeners import with_listeners
from statestore_runtime.messages import CheckpointCompleted, Finished, Message
from statestore_runtime.protocol import AnyCommand, Deploy, Failed


class JobFailedError(StateStoreError, RuntimeError):
    """The job has failed for good; `exit_code` and `failure.traceback` are those of the last failure."""

    def __init__(self, failure: Failed, restarts: int):
        self.failure, self.restarts = failure, restarts
        self.exit_code = failure.exit_code  # type: ignore[misc]  # this error stands for many kinds
        after = f" (after {restarts} restart{'s' if restarts > 1 else ''})" if restarts else ""
        super().__init__(f"{failure.error}{after}")


class JobStoppedError(StateStoreError, RuntimeError):
    """A signal ended the job: nothing after its last checkpoint counts."""

    def __init__(self, code: int):
        self.exit_code = code  # type: ignore[misc]
        super().__init__("stopped before its end; go on with --restore latest")


class LeadershipLostError(StateStoreError, RuntimeError):
    """Another process may lead the job by now: nothing of it may be done here any more."""

    exit_code = 6

    def __init__(self, job: str):
        super().__init__(f"this process does not lead job '{job}' any more")


class Outcome(msgspec.Struct, frozen=True):
    """A run that has reached its end, or was stopped with a savepoint."""

    finished: Finished
    restarts: int
    seconds: float
    """Wall time of the run, with all restarts."""
    recovery_seconds: float
    """From each failure until the job ran again, and the first opening."""
    savepoint: str | None = None
    stopped: bool = False
    """Whether it was told to stop: it goes on with --restore latest, or from the savepoint."""


@dataclass(frozen=True, slots=True)
class _StatusWanted:
    """Somebody asks how the job stands."""

    reply: Callable[[dict[str, Any] | BaseException], object]


class JobRunner:
    """One run of a job.

    Parameters
    ----------
    target, job
        `FILE[:VARIABLE]`, and the job that is found there.
    config
        With the job's own defaults.
    restore
        As `run_job` takes it.
    run
        As `run_job` takes it; by default another one each time.
    on_message
        Called with every message worth showing.
    resumed
        Whether the job has run before, under another JobManager: what fails the first deployment may pass then, and is tried again.
    listens
        Whether `statestore` commands reach it.
    leads
        Whether this process may act for the job now; it is asked before each action. When it may not, the run is over.
    """

    def __init__(
        self,
        target: str,
        job: Job,
        config: Config,
        *,
        restore: str | None = None,
        run: str | None = None,
        resumed: bool = False,
        on_message: Callable[[Message], object] = lambda message: None,
        clock: Clock | None = None,
        listens: bool = True,
        leads: Callable[[], bool] = lambda: True,
    ):
        self._config, self._clock, self._listens = config, clock or SystemClock(), listens
        job.build()  # which raises what is wrong with the job before anything is touched
        self._events: queue.SimpleQueue[Event | _StatusWanted] = queue.SimpleQueue()
        self._watching = Watching(self._clock, with_listeners(job.listeners, on_message))
        self._tidied_for: int | None = None
        self._leads, self._is_over = leads, False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()  # which know that they are closed, as descriptors don't
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)
        self._processes = Processes(target, job.name, config, self._events.put, self._selector)
        self._storing = Storing(config, job.name, self._clock, self.request)
        self._signal: int | None = None
        self._is_hurried = False
        """Whether nothing is waited for any more."""
        self._next_ping = self._seconds_left = 0.0
        self.manager = JobManager(
            job.name,
            config,
            parallelism=config.job.parallelism,
            restore=restore,
            run=run or uuid.uuid4().hex,
            clock=self._clock,
            deployment=self,
            strategy=restart_strategy(config.restart, self._clock, random.Random().random),
            emit=self._show,
            resumed=resumed,
        )

    def request(self, event: Event) -> None:
        """Ask the JobManager for something; any thread may."""
        self._post(event)

    def control(self, request: AnyRequest, reply: Callable[[dict[str, Any] | BaseException], object]) -> None:
        """Ask for something as commands do; any thread may."""
        self._post(_StatusWanted(reply) if isinstance(request, GetStatus) else event_of(request, reply))

    def _post(self, event: Event | _StatusWanted) -> None:
        self._events.put(event)
        self.wake()
        if self._is_over:
            self._refuse_the_rest()

    def wake(self) -> None:
        """Have it look at once whether there is something to do; any thread may."""
        with suppress(OSError):  # it is full, or the run is over
            self._wake_write.send(b"\0")

    def _refuse_the_rest(self) -> None:
        """Answer everybody: also who waits for a savepoint that is complete only after the leadership was lost."""
        self._is_over = True
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if isinstance(event, _StatusWanted | Request):
                event.reply(JobEndedError(self.manager.job))
            elif isinstance(event, Copied):
                self.manager.handle(event)

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            self._wake_read.recv(4096)

    def _show(self, message: Message) -> None:
        self._watching.show(message)
        if isinstance(message, CheckpointCompleted) and self._tidied_for != self.manager.parallelism:
            self._tidied_for = self.manager.parallelism
            arguments = self._config, self.manager.job, self.manager.parallelism, SystemClock()
            threading.Thread(target=remove_leftovers, args=arguments, name="statestore-leftovers", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """Of the worker processes."""
        return self._processes.pids

    def run(self) -> Outcome:
        """Run the job until its sources end, or it is told to stop.

        Raises
        ------
        JobFailedError
            It failed, and is not restarted any more.
        JobStoppedError
            SIGINT or SIGTERM came.
        JobCancelledError
            It was cancelled.
        JobIsRunningError
            Another process runs it with this `state.dir`.
        LeadershipLostError
            `leads` said no. The workers have been killed.
        """
        begun = self._clock.monotonic()
        with ExitStack() as cleanup:
            cleanup.callback(self._close)
            cleanup.callback(self._refuse_the_rest)
            if self._listens:
                folder = control_folder(self._config.state.dir, self.manager.job)
                cleanup.callback(ControlServer(folder, self.manager.job, self.control).close)
            cleanup.enter_context(self._signals())
            cleanup.callback(self.end, at_once=True)
            try:
                self.manager.start()
                while self._has_more_to_do:
                    self._step()
            except LeadershipLostError as error:
                self.manager.give_up(str(error))
                if self._signal is not None:
                    raise JobStoppedError(128 + self._signal) from error
                raise
        manager = self.manager
        if self._signal is not None:
            raise JobStoppedError(128 + self._signal)
        if manager.state is JobState.FAILED:
            raise JobFailedError(manager.failures.last[-1], manager.failures.restarts)
        if manager.state is JobState.CANCELLED:
            raise JobCancelledError
        assert manager.finished is not None, "it has finished"
        return Outcome(
            manager.finished,
            manager.failures.restarts,
            self._clock.monotonic() - begun,
            manager.recovery_seconds,
            manager.savepoint,
            manager.was_stopped,
        )

    @property
    def _has_more_to_do(self) -> bool:
        is_copying = self._storing.copies > 0 and not self._is_hurried
        return self.manager.state not in ENDED or is_copying or not self._events.empty()

    def _check_leads(self) -> None:
        if not self._leads():
            raise LeadershipLostError(self.manager.job)

    def _step(self) -> None:
        self._check_leads()
        now = self._clock.monotonic()
        if now >= self._next_ping:
            self._processes.ping()
            self._next_ping = now + self._config.heartbeat.interval
        left = min(self._seconds_left, self._next_ping - now)
        for key, _ in self._selector.select(left if self._events.empty() else 0.0):
            key.data()
        self._take_events()
        self._check_leads()
        self._seconds_left = self.manager.tick()  # after what was said: who has been heard by now is not silent

    def _take_events(self) -> None:
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if isinstance(event, _StatusWanted):
                event.reply(msgspec.to_builtins(self.status()))
            else:
                self.manager.handle(event)

    def status(self) -> JobStatus:
        """How the job stands; only in the thread that runs it."""
        manager = self.manager
        known = JobStatus(
            job=manager.job,
            state=manager.state.value,
            pid=os.getpid(),
            host=socket.gethostname(),
            parallelism=manager.parallelism,
            restarts=manager.failures.restarts,
            workers=self.pids,
        )
        return self._watching.added_to(known, manager.failures.last)

    def _close(self) -> None:
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    # Signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """At SIGINT and SIGTERM the job ends in order; at a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self._signal is None and self._can_stop_in_order():
                self.request(Stop(self._cancel_if_failed))
            else:
                self._is_hurried = self._signal is not None
                self.request(Cancel(lambda outcome: None))
            self._signal = signal.Signals(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _cancel_if_failed(self, outcome: object) -> None:
        if isinstance(outcome, BaseException):
            self.request(Cancel(lambda outcome: None))

    def _can_stop_in_order(self) -> bool:
        return self._config.checkpointing.on_failure and self.manager.state is JobState.RUNNING

    # As a Deployment

    def claim(self, deployment: int, above: int) -> None:
        """See `Deployment.claim`."""
        self._check_leads()
        self._storing.claim(deployment, above)

    def start(self, deployment: int, deploy: Deploy) -> None:
        """See `Deployment.start`."""
        self._check_leads()
        self._processes.start(deployment, deploy)

    def send(self, worker: int, command: AnyCommand) -> None:
        """See `Deployment.send`."""
        self._processes.send(worker, command)

    def end(self, *, at_once: bool) -> None:
        """See `Deployment.end`."""
        self._processes.end(at_once=at_once)

    def commit(
        self, deployment: int, checkpoint: int, manifests: list[Manifest], meta: dict[str, Any], seconds: float
    ) -> None:
        """See `Deployment.commit`."""
        self._check_leads()
        self._storing.commit(deployment, checkpoint, manifests, meta, seconds)

    def copy(self, deployment: int, manifest: Manifest, dir: str, reply: Reply) -> None:
        """See `Deployment.copy`."""
        self._storing.copy(deployment, manifest, dir, reply)
