"""A job in this process: all workers in this thread, each doing a little in turn. For tests, notebooks, embedding programs."""

from __future__ import annotations

import queue
import random  # noqa: TID251 - the one place that asks for chance
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec

from statestore.checkpoint.manifest import Manifest
from statestore.clock import Clock, SystemClock
from statestore.config import Config
from statestore_runtime.deployment.failing import task_failure
from statestore_runtime.deployment.storing import Storing
from statestore_runtime.garbage import collected_seldom
from statestore_runtime.job import Job
from statestore_runtime.jobmanager.events import Event, Reply, Stop, Told
from statestore_runtime.jobmanager.failures import JobCancelledError
from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.restart import NoRestart, RestartStrategy, restart_strategy
from statestore_runtime.jobmanager.state import ENDED, JobState
from statestore_runtime.listeners import with_listeners
from statestore_runtime.messages import Finished, Message
from statestore_runtime.protocol import AnyCommand, AnyReport, Deploy
from statestore_runtime.task.network import LocalNetwork
from statestore_runtime.task.output import close_quietly
from statestore_runtime.task.task import Task

IDLE_SECONDS = 0.01

Emit = Callable[[Message], object]


def run_job(
    job: Job,
    config: Config,
    *,
    restore: str | None = None,
    run: str = "",
    emit: Emit = lambda message: None,
    clock: Clock | None = None,
    restarts: bool = False,
) -> Finished:
    """Run a job until its sources end.

    Parameters
    ----------
    config
        `job.parallelism` says between how many workers the key groups are divided, all in this thread.
    restore
        None: start empty, unless the job's last run did not finish. "latest", "none" or a checkpoint's path: as it says.
    run
        Names the run, so that a restart within it goes on from its newest checkpoint whatever `restore` says.
    emit
        Called with messages as the job goes on; what it raises ends the job.
    restarts
        Whether the job restarts as `[restart]` says. Without it the first failure ends the run.

    Raises
    ------
    StateStoreError
        Of the kind that says what to do about it. Nothing after the last complete checkpoint counts then.
    SystemExit
        SIGTERM came. What was processed before is made durable first, if `checkpointing.on-failure` says so.
    """
    clock = clock or SystemClock()
    job.build()  # which raises what is wrong with the job before anything is touched
    strategy = restart_strategy(config.restart, clock, random.Random().random) if restarts else NoRestart()
    run = run or uuid.uuid4().hex
    execution = InProcess(job, config, restore=restore, run=run, emit=emit, clock=clock, strategy=strategy)
    with execution.stopped_by_sigterm(), collected_seldom():
        return execution.run()


class InProcess:
    """One run of a job: the JobManager, and the workers as objects.

    Attributes
    ----------
    manager : JobManager
    """

    def __init__(
        self,
        job: Job,
        config: Config,
        *,
        restore: str | None,
        run: str,
        emit: Emit,
        clock: Clock,
        strategy: RestartStrategy,
    ):
        # Who does everything in one thread hears of nobody meanwhile: silence means nothing here.
        heartbeat = msgspec.structs.replace(config.heartbeat, timeout=float("inf"))
        config = msgspec.structs.replace(config, heartbeat=heartbeat)
        self._job, self._config, self._clock = job, config, clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._storing = Storing(config, job.name, clock, self._events.put)
        self._tasks: list[Task] = []
        self._deployment = 0
        self._stop_requested = self._is_stopping = False
        self.manager = JobManager(
            job.name,
            config,
            parallelism=config.job.parallelism,
            restore=restore,
            run=run,
            clock=clock,
            deployment=self,
            strategy=strategy,
            emit=with_listeners(job.listeners, emit),
        )

    # The run

    def run(self) -> Finished:
        """Run until the job has ended. Raises as `run_job` does."""
        try:
            self.manager.start()
            while self.manager.state not in ENDED or self._storing.copies or not self._events.empty():
                self.step()
        finally:
            self.end(at_once=True)
        manager = self.manager
        if self._stop_requested:
            raise SystemExit(128 + signal.SIGTERM)
        if manager.state is JobState.FAILED:
            cause = manager.failures.last[-1].cause
            assert isinstance(cause, BaseException), "within one process a failure is an exception"
            raise cause
        if manager.state is JobState.CANCELLED:
            raise JobCancelledError
        assert manager.finished is not None, "it has finished"
        return manager.finished

    def step(self) -> None:
        """Let JobManager and workers do a little."""
        self._heed_stop_request()
        has_events = self._take_events()
        left = self.manager.tick()
        is_busy = False
        for index, task in enumerate(self._tasks):
            try:
                is_busy |= task.step()
            except Exception as error:
                self._task_failed(index, error)
                break
        if not (has_events or is_busy or not self._events.empty()):
            self._clock.sleep(min(left, IDLE_SECONDS))

    def _take_events(self) -> bool:
        has_events = False
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return has_events
            has_events = True
            self.manager.handle(event)

    def request(self, event: Event) -> None:
        """Ask the JobManager for something; any thread may."""
        self._events.put(event)

    def _heed_stop_request(self) -> None:
        if not self._stop_requested or self._is_stopping:
            return
        self._is_stopping = True
        if not self._config.checkpointing.on_failure or self.manager.state is not JobState.RUNNING:
            raise SystemExit(128 + signal.SIGTERM)
        self.request(Stop(lambda outcome: None))

    @contextmanager
    def stopped_by_sigterm(self) -> Iterator[None]:
        """End the run in order when SIGTERM comes, and at once when it comes again; unless the program has its own handler."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self._stop_requested:
                raise SystemExit(128 + number)
            self._stop_requested = True

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

    # As a Deployment

    def claim(self, deployment: int, above: int) -> None:
        """See `Deployment.claim`."""
        self._deployment = deployment
        self._storing.claim(deployment, above)

    def start(self, deployment: int, deploy: Deploy) -> None:
        """See `Deployment.start`."""
        network = LocalNetwork(deploy.parallelism)
        for index in range(deploy.parallelism):
            task = Task(
                self._job.name,
                self._job.build(),
                self._config,
                deploy,
                network=network.of(index),
                tell=self._teller(index),
                clock=self._clock,
            )
            self._tasks.append(task)
            try:
                task.open()
            except Exception as error:
                self._task_failed(index, error)
                return

    def _teller(self, index: int) -> Callable[[AnyReport], None]:
        deployment = self._deployment
        return lambda report: self._events.put(Told(deployment, index, report))

    def _task_failed(self, index: int, error: Exception) -> None:
        self._teller(index)(task_failure(error, lambda: self._storing.checkpoints))

    def send(self, worker: int, command: AnyCommand) -> None:
        """See `Deployment.send`."""
        if worker >= len(self._tasks):
            return
        try:
            self._tasks[worker].handle(command)
        except Exception as error:
            self._task_failed(worker, error)

    def end(self, *, at_once: bool) -> None:
        """See `Deployment.end`."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            close_quietly(task)

    def commit(
        self, deployment: int, checkpoint: int, manifests: list[Manifest], meta: dict[str, Any], seconds: float
    ) -> None:
        """See `Deployment.commit`."""
        self._storing.commit(deployment, checkpoint, manifests, meta, seconds)

    def copy(self, deployment: int, manifest: Manifest, dir: str, reply: Reply) -> None:
        """See `Deployment.copy`."""
        self._storing.copy(deployment, manifest, dir, reply)
