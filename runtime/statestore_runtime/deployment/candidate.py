"""One of several processes that run a job with high availability: it leads, or stands by.

    standing by ──(lease)──▶ leading ──▶ the run has ended: told to the others, who end too
        ▲                      │
        └──(lease is over)─────┘   the workers are killed first

Invariants:
- only who leads starts workers, claims attempts, writes manifests; it asks before each of these, and kills its workers if it does not;
- all leaders of a run have its name, so that the newest checkpoint that any of them made is what the next one restores;
- each process has a local folder of its own, which it holds as long as it lives: nobody waits for the folder of one that stands still.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

import msgspec
from msgspec.structs import replace

from statestore.clock import Clock, SystemClock
from statestore.config import Config
from statestore.errors import FencedError, StateStoreError, UnavailableError
from statestore.opening import checkpoint_dir
from statestore_runtime.control.messages import AnyRequest, GetStatus, JobStatus, RequestFailedError
from statestore_runtime.control.place import candidate_dir, control_folder
from statestore_runtime.control.server import ControlServer, JobIsRunningError
from statestore_runtime.deployment.runner import (
    JobFailedError,
    JobRunner,
    JobStoppedError,
    LeadershipLostError,
    Outcome,
)
from statestore_runtime.ha import HighAvailability, RunEnd, RunRecord, open_high_availability
from statestore_runtime.job import Job
from statestore_runtime.jobmanager.failures import JobCancelledError
from statestore_runtime.messages import CheckpointCompleted, Message, Started

logger = logging.getLogger("statestore.ha")

LOOK_SECONDS = 0.25
"""Between two looks of a standby for a signal; it asks how the run stands once in a renew interval."""

CLOSING_SECONDS = 5.0
CANDIDATES_MAX = 64


class StandingBy(Message, tag="standing-by", kw_only=True, frozen=True):
    """Another process leads the job, or nobody yet."""

    job: str
    leader: str | None


class Leading(Message, tag="leading", kw_only=True, frozen=True):
    """This process leads the job now."""

    job: str
    token: int


class LeadershipLost(Message, tag="leadership-lost", kw_only=True, frozen=True):
    """This process leads the job no more; its workers are killed."""

    job: str
    token: int


class EndedElsewhereError(StateStoreError, RuntimeError):
    """The run has failed or was cancelled under another leader; `exit_code` is what that one ended with."""

    def __init__(self, job: str, end: RunEnd):
        self.end = end
        self.exit_code = end.exit_code  # type: ignore[misc]  # this error stands for many kinds
        problem = f": {end.problem}" if end.problem else ""
        super().__init__(
            f"job '{job}' {'was cancelled' if end.state == 'cancelled' else end.state} at {end.by}{problem}"
        )


class Candidate:
    """One process of a job that several run.

    Parameters
    ----------
    target, job, config, restore, on_message
        As `JobRunner` takes them. The first leader of a run restores what `restore` says, the others the run's newest checkpoint.
    """

    def __init__(
        self,
        target: str,
        job: Job,
        config: Config,
        *,
        restore: str | None = None,
        on_message: Callable[[Message], object] = lambda message: None,
        clock: Clock | None = None,
    ):
        job.build()  # which raises what is wrong with the job before anything is touched
        self._target, self._job, self._config, self._restore = target, job, config, restore
        self._on_message, self._clock = on_message, clock or SystemClock()
        self._runner: JobRunner | None = None
        self._token: int | None = None
        self._signal: int | None = None
        self._ended_before: str | None = None  # the run that was over when this process came
        self._begun = self._clock.monotonic()
        self._name = f"process {os.getpid()} on {socket.gethostname()}"
        self._ha: HighAvailability

    def run(self) -> Outcome | RunEnd:
        """Stand by and lead until the run has ended; how, or what another leader has told of its end.

        Raises
        ------
        JobStoppedError
            SIGINT or SIGTERM came to this process. The others go on.
        JobFailedError, JobCancelledError
            As `JobRunner.run` raises them. Where it has failed before it ran, the others try.
        EndedElsewhereError
            The same, under another leader.
        StateStoreError
            The lease's store can't be relied upon.
        """
        with ExitStack() as cleanup:
            cleanup.enter_context(self._signals())
            server, self._own_config = self._take_a_place()
            cleanup.callback(server.close)
            ha = open_high_availability(
                self._config, self._job.name, address=self._name, on_lost=self._lost, clock=None
            )
            assert ha is not None, "it is configured"
            self._ha = ha
            cleanup.callback(ha.close)
            before = ha.run.read()
            self._ended_before = before.run if before is not None and before.end is not None else None
            ha.leader.start()
            while True:
                found = self._stand_by()
                ended = found if isinstance(found, RunEnd) else self._lead(found)
                if isinstance(ended, Outcome):
                    return ended
                if isinstance(ended, RunEnd):
                    if ended.exit_code:
                        raise EndedElsewhereError(self._job.name, ended)
                    return ended

    def _take_a_place(self) -> tuple[ControlServer, Config]:
        """The first local folder that no other process has; places are taken again, and what is there speeds a restore up."""
        config, job = self._config, self._job.name
        for number in range(1, CANDIDATES_MAX + 1):
            dir = str(candidate_dir(config.state.dir, job, number))
            try:
                server = ControlServer(control_folder(dir, job), job, self._control, lock_seconds=0)
            except JobIsRunningError:
                continue
            dead_letters = config.source.dead_letter_dir or os.path.join(config.state.dir, job, "dead-letter")  # noqa: PTH118
            return server, replace(
                config,
                state=replace(config.state, dir=dir),
                checkpointing=replace(config.checkpointing, dir=checkpoint_dir(config)),
                source=replace(config.source, dead_letter_dir=dead_letters),
            )
        raise JobIsRunningError(job, f"{CANDIDATES_MAX} processes use {config.state.dir}")

    # Standing by

    def _stand_by(self) -> int | RunEnd:
        """Until this process leads, with the token, or the run has ended."""
        shown: StandingBy | None = None
        next_look = self._clock.monotonic()
        while True:
            token = self._ha.leader.wait_for_leadership(LOOK_SECONDS)
            if self._signal is not None:
                raise JobStoppedError(128 + self._signal)
            if token is not None:
                return token
            standing = StandingBy(job=self._job.name, leader=self._leader)
            if standing != shown and standing.leader is not None:
                shown = standing
                self._on_message(standing)
            if self._clock.monotonic() >= next_look:
                next_look = self._clock.monotonic() + self._config.high_availability.renew_interval
                with suppress(UnavailableError):  # the next look may tell more
                    if (end := self._end_of(self._ha.run.read())) is not None:
                        return end

    @property
    def _leader(self) -> str | None:
        lease = self._ha.leader.leader
        return lease.address if lease is not None else None

    def _end_of(self, record: RunRecord | None) -> RunEnd | None:
        """How the run has ended, unless it was over before this process came."""
        return None if record is None or record.run == self._ended_before else record.end

    # Leading

    def _lead(self, token: int) -> Outcome | RunEnd | None:
        """Run the job as its leader; None when the leadership was lost."""
        try:
            record = self._taken_over(token)
        except UnavailableError as error:
            logger.warning("what the leader before has left can't be taken over yet: %s", error)
            self._clock.sleep(LOOK_SECONDS)
            return None
        except FencedError:
            if self._ha.leader.token == token:
                raise
            return None  # the lease was over before it had begun
        if (end := self._end_of(record)) is not None:
            return end
        self._on_message(Leading(job=self._job.name, token=token))
        try:
            return self._run(token, record)
        except (LeadershipLostError, JobFailedError):
            if self._ha.leader.token == token:
                raise
        if self._signal is not None:
            raise JobStoppedError(128 + self._signal)
        self._on_message(LeadershipLost(job=self._job.name, token=token))
        return None

    def _taken_over(self, token: int) -> RunRecord:
        """Shut earlier leaders out of what is kept beside the lease; the run to go on with, or that has ended. Raises UnavailableError."""
        self._ha.latest.take_over(token)
        record = self._ha.run.read()
        if record is None or record.run == self._ended_before:
            return self._ha.run.write(RunRecord(token=token, run=uuid.uuid4().hex))
        return self._ha.run.write(replace(record, token=token))

    def _run(self, token: int, record: RunRecord) -> Outcome:
        parallelism = record.parallelism or self._config.job.parallelism
        config = replace(self._own_config, job=replace(self._own_config.job, parallelism=parallelism))
        with _Clerk(self._ha, record) as clerk:
            runner = JobRunner(
                self._target,
                self._job,
                config,
                restore=self._restore,
                run=record.run,
                resumed=record.parallelism is not None,  # as its first leader has noted when it had opened its state
                on_message=lambda message: self._take(message, clerk),
                clock=self._clock,
                listens=False,
                leads=lambda: self._ha.leader.token == token,
            )
            self._runner, self._token = runner, token
            try:
                outcome = runner.run()
            except JobCancelledError as error:
                clerk.end(self._end("cancelled", error.exit_code, None, runner))
                raise
            except JobFailedError as error:
                if runner.manager.failures.has_run and self._ha.leader.token == token:
                    clerk.end(self._end("failed", error.exit_code, str(error), runner))
                raise
            finally:
                self._runner = self._token = None
            clerk.end(self._end("stopped" if outcome.stopped else "finished", 0, None, runner))
        return outcome

    def _end(self, state: str, exit_code: int, problem: str | None, runner: JobRunner) -> RunEnd:
        last = runner.manager.last_checkpoint
        return RunEnd(state=state, by=self._name, exit_code=exit_code, problem=problem, checkpoint=last)

    def _take(self, message: Message, clerk: _Clerk) -> None:
        clerk.note(message)
        self._on_message(message)

    def _lost(self, token: int) -> None:
        """In the election's thread: have the run end at once."""
        runner = self._runner
        if runner is not None:
            runner.wake()

    # What comes from outside

    def _control(self, request: AnyRequest, reply: Callable[[dict[str, Any] | BaseException], object]) -> None:
        runner, token = self._runner, self._token
        if runner is None:
            if isinstance(request, GetStatus):
                reply(msgspec.to_builtins(self._standing()))
            else:
                reply(RequestFailedError(f"job '{self._job.name}' stands by here, {self._leader} leads", 3))
        elif isinstance(request, GetStatus):
            runner.control(request, lambda told: reply(told | {"token": token} if isinstance(told, dict) else told))
        else:
            runner.control(request, reply)

    def _standing(self) -> JobStatus:
        return JobStatus(
            job=self._job.name,
            state="standby",
            pid=os.getpid(),
            host=socket.gethostname(),
            seconds=self._clock.monotonic() - self._begun,
            leader=self._leader if hasattr(self, "_ha") else None,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """At SIGINT and SIGTERM a standby ends; a leader's run sees to them itself."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self._signal = signal.Signals(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Clerk:
    """Writes down what a leader's run comes to, beside the lease, in a thread: the run waits for nothing but its parallelism."""

    def __init__(self, ha: HighAvailability, record: RunRecord):
        self._ha, self._record = ha, record
        self._checkpoints = ""
        self._notes: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="statestore-clerk", daemon=True)

    def __enter__(self) -> _Clerk:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._notes.put(None)
        self._thread.join(CLOSING_SECONDS)

    def note(self, message: Message) -> None:
        """Take a message of the run."""
        if isinstance(message, Started):
            self._checkpoints = message.checkpoints
            self._note_parallelism(message.parallelism)
        elif isinstance(message, CheckpointCompleted):
            path = f"{self._checkpoints}/chk-{message.checkpoint}"
            self._notes.put(lambda: self._ha.latest.write(self._record.token, message.checkpoint, path))

    def _note_parallelism(self, parallelism: int) -> None:
        """Wait until it is written, or for as long as a storage may take: who rescales is told next, and then the next leader must know."""
        written = threading.Event()

        def write() -> None:
            try:
                self._write(replace(self._record, parallelism=parallelism))
            finally:
                written.set()

        self._notes.put(write)
        written.wait(CLOSING_SECONDS)

    def end(self, end: RunEnd) -> None:
        """Tell the others that the run has ended; if that fails, the next leader finds out from the last checkpoint."""
        self._notes.put(lambda: self._write(replace(self._record, end=end)))

    def _write(self, record: RunRecord) -> None:
        if replace(record, writing=self._record.writing) != self._record:
            self._record = self._ha.run.write(record)

    def _work(self) -> None:
        while (note := self._notes.get()) is not None:
            try:
                note()
            except StateStoreError as error:
                logger.warning("what has come of the run is not told to other candidates: %s", error)
