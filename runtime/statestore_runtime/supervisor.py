"""Watches the process in which a job runs, and starts it again when it dies: the command's side, a JobManager for one worker.

Invariants:
- at most one worker lives at a time, and none outlives the supervisor: the worker ends when its pipe does;
- a worker that stays silent for `heartbeat.timeout` is killed, not waited for;
- a worker that dies is started again; one that tells of an error only if a restart may mend it, and the job has run before.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import msgspec

from statestore.clock import Clock, SystemClock
from statestore.config import Config
from statestore.errors import StateStoreError
from statestore_runtime.messages import (
    AnyMessage,
    CheckpointCompleted,
    Failed,
    Finished,
    Heartbeat,
    Loaded,
    Message,
    Restarting,
    Started,
    from_line,
)
from statestore_runtime.restart import RestartStrategy, restart_strategy
from statestore_runtime.worker import Order

STOP_SECONDS = 30.0
"""How long a worker that was told to stop may take until it is killed."""


class JobFailedError(StateStoreError, RuntimeError):
    """The job has failed for good; `exit_code` and `traceback` are those of the last failure."""

    def __init__(self, failure: Failed, restarts: int):
        self.failure, self.restarts = failure, restarts
        self.exit_code = failure.exit_code  # type: ignore[misc]  # this error stands for many kinds
        after = f" (after {restarts} restart{'s' if restarts > 1 else ''})" if restarts else ""
        super().__init__(f"{failure.error}{after}")


class JobStoppedError(StateStoreError, RuntimeError):
    """A signal ended the job: nothing after its last checkpoint counts."""

    def __init__(self, number: int):
        self.signal = number
        self.exit_code = 128 + number  # type: ignore[misc]
        super().__init__("stopped before its end; go on with --restore latest")


class Outcome(msgspec.Struct, frozen=True):
    """A run that has reached its end."""

    finished: Finished
    restarts: int
    seconds: float
    """Wall time of the run, with all restarts."""
    recovery_seconds: float
    """From each failure until the job ran again, and the first opening."""


class Supervisor:
    """One run of a job.

    Parameters
    ----------
    target
        `FILE[:VARIABLE]`.
    config
        What is known of the configuration before the job's file is read.
    config_file, overrides, restore
        Passed on to the worker.
    on_message
        Called with every message worth showing.
    """

    def __init__(
        self,
        target: str,
        config: Config,
        *,
        config_file: str | None = None,
        overrides: list[str] | None = None,
        restore: str | None = None,
        on_message: Callable[[Message], object] = lambda message: None,
        clock: Clock | None = None,
    ):
        self._order = Order(
            target=target,
            config_file=config_file,
            overrides=overrides or [],
            restore=restore,
            run=uuid.uuid4().hex,
            heartbeat_interval=config.heartbeat.interval,
        )
        self._heartbeat_timeout = config.heartbeat.timeout
        self._strategy: RestartStrategy = restart_strategy(config.restart)
        self._on_message, self._clock = on_message, clock or SystemClock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._stop_signal = signal.SIGTERM
        self._has_run = False
        self._restarts = 0
        self._recovery_seconds = 0.0
        self._waiting_since = 0.0

    def run(self) -> Outcome:
        """Run the job until its sources end.

        Raises
        ------
        JobFailedError
            It failed, and is not restarted any more.
        JobStoppedError
            SIGINT or SIGTERM came.
        """
        begun = self._waiting_since = self._clock.monotonic()
        with self._signals():
            while True:
                ending = self._run_worker()
                if isinstance(ending, Finished):
                    return Outcome(ending, self._restarts, self._clock.monotonic() - begun, self._recovery_seconds)
                if self._stop.is_set():
                    raise JobStoppedError(self._stop_signal)
                self._prepare_restart(ending)

    def _prepare_restart(self, failure: Failed) -> None:
        self._waiting_since = self._clock.monotonic()
        delay = self._strategy.next_delay() if failure.retryable else None
        if delay is None:
            raise JobFailedError(failure, self._restarts)
        self._restarts += 1
        self._on_message(Restarting(reason=failure.error, restart=self._restarts, delay_seconds=delay))
        if self._stop.wait(delay):
            raise JobStoppedError(self._stop_signal)

    # One worker

    def _run_worker(self) -> Finished | Failed:
        orders_read, orders_write = os.pipe()
        messages_read, messages_write = os.pipe()
        try:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "statestore_runtime.worker", str(orders_read), str(messages_write)],
                stdin=subprocess.DEVNULL,
                pass_fds=(orders_read, messages_write),
            )
            os.close(orders_read)
            os.close(messages_write)
            with suppress(BrokenPipeError):  # it has died already: watching it tells how
                os.write(orders_write, msgspec.json.encode(self._order) + b"\n")
            return self._watch(self._worker, messages_read)
        finally:
            self._end_worker()
            os.close(orders_write)
            os.close(messages_read)

    def _watch(self, worker: subprocess.Popen[bytes], messages: int) -> Finished | Failed:
        ending: Finished | Failed | None = None
        silent = False
        for message in self._messages(messages):
            if message is None:
                silent = True
                break
            if isinstance(message, Finished | Failed):
                ending = message
            self._take(message)
        if silent:
            worker.kill()
        code = worker.wait()
        if isinstance(ending, Finished) and code == 0:
            return ending
        if isinstance(ending, Failed):
            # What fails before it has ever run fails again: a wrong address, a server that is not there.
            return msgspec.structs.replace(ending, retryable=ending.retryable and self._has_run)
        reason = f"stayed silent for {self._heartbeat_timeout:g} s and was killed" if silent else _death(code)
        return Failed(error=f"the worker process {reason}", exit_code=11, retryable=True)

    def _take(self, message: AnyMessage) -> None:
        match message:
            case Loaded(config=config):
                if not self._has_run:
                    self._heartbeat_timeout = config.heartbeat.timeout
                    self._strategy = restart_strategy(config.restart)
            case Started():
                self._has_run = True
                self._recovery_seconds += self._clock.monotonic() - self._waiting_since
            case CheckpointCompleted():
                self._strategy.succeeded()
        if not isinstance(message, Heartbeat | Finished | Failed):
            self._on_message(message)

    def _messages(self, pipe: int) -> Iterator[AnyMessage | None]:
        """Messages until the pipe's end; None when the worker has been silent for too long."""
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            heard = self._clock.monotonic()
            while True:
                left = heard + self._heartbeat_timeout - self._clock.monotonic()
                if not selector.select(max(0.0, left)):
                    if self._clock.monotonic() - heard >= self._heartbeat_timeout:
                        yield None
                    continue
                data = os.read(pipe, 1 << 16)
                if not data:
                    return
                heard = self._clock.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield from_line(line)

    def _end_worker(self) -> None:
        """However this ends, no worker is left."""
        if self._worker is not None and self._worker.poll() is None:
            self._worker.kill()
            self._worker.wait()
        self._worker = None

    # Signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM on, so that the worker ends in order; a second one kills it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            worker = self._worker
            if self._stop.is_set():
                if worker is not None:
                    worker.kill()
                return
            self._stop_signal = signal.Signals(number)
            self._stop.set()
            if worker is not None:
                worker.terminate()
                timer = threading.Timer(STOP_SECONDS, worker.kill)
                timer.daemon = True
                timer.start()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _death(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code} without a word"
