"""A process for each worker, connected with the JobManager and with each other by sockets that nobody else can open.

Invariants:
- no worker outlives its deployment: it is killed and waited for, whatever state it is in; nor the JobManager: it ends when its socket does;
- what a worker said last is heard before it counts as lost.
"""

from __future__ import annotations

import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from statestore.config import Config
from statestore.errors import UnavailableError
from statestore_runtime.deployment.wire import FrameSocket
from statestore_runtime.deployment.worker import Order
from statestore_runtime.jobmanager.events import Event, Lost, Told
from statestore_runtime.jobmanager.failures import failed_of
from statestore_runtime.protocol import AnyCommand, Deploy, Failed, decode_report, encode

DYING_SECONDS = 0.5
"""How long after a worker lost its connection with another one the death of that one may take to be seen."""

Post = Callable[[Event], None]


@dataclass(slots=True)
class _Process:
    process: subprocess.Popen[bytes]
    control: FrameSocket
    is_lost: bool = False


class Processes:
    """The workers of one deployment after the other.

    Parameters
    ----------
    target, job
        `FILE[:VARIABLE]`, and the name of the job that is found there.
    post
        Takes what the workers report, and that they are gone.
    selector
        Watches their sockets; `data` of a key is called when there is something to read or to write.
    """

    def __init__(self, target: str, job: str, config: Config, post: Post, selector: selectors.BaseSelector):
        self._target, self._job, self._config, self._post, self._selector = target, job, config, post, selector
        self._workers: list[_Process] = []
        self._deployment = 0

    def start(self, deployment: int, deploy: Deploy) -> None:
        """See `Deployment.start`. That the system has no more processes or sockets for it is a failure of the first that is missing."""
        self._deployment = deployment
        parallelism = deploy.parallelism
        ends: list[list[socket.socket | None]] = [[None] * parallelism for _ in range(parallelism)]  # of, to
        try:
            for subtask in range(parallelism):
                # Only now: all of them at once may be more than can be open.
                for other in range(subtask + 1, parallelism):
                    ends[subtask][other], ends[other][subtask] = socket.socketpair()
                self._start_one(subtask, ends[subtask], deploy)
                _close(ends[subtask])
        except OSError as error:
            self._post(Told(deployment, len(self._workers), failed_of(_no_worker(len(self._workers), error))))
        finally:
            for each in ends:
                _close(each)

    def _start_one(self, subtask: int, peers: list[socket.socket | None], deploy: Deploy) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = [theirs.fileno(), *(peer.fileno() for peer in peers if peer is not None)]
            arguments = [str(theirs.fileno()), *("-" if peer is None else str(peer.fileno()) for peer in peers)]
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "statestore_runtime.deployment.worker", *arguments],
                    stdin=subprocess.DEVNULL,
                    pass_fds=descriptors,
                )
            except BaseException:
                ours.close()
                raise
        worker = _Process(process, FrameSocket(ours))
        self._workers.append(worker)
        self._selector.register(worker.control, selectors.EVENT_READ, lambda: self._listen(subtask))
        order = Order(target=self._target, job=self._job, config=self._config, deploy=deploy, subtask=subtask)
        worker.control.send([msgspec.msgpack.encode(order)])
        self._watch_writing(worker, subtask)

    def _watch_writing(self, worker: _Process, subtask: int) -> None:
        if worker.is_lost:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.control.has_unsent else 0)
        self._selector.modify(worker.control, events, lambda: self._listen(subtask))

    def _listen(self, subtask: int, *, for_the_dead: bool = True) -> None:
        worker = self._workers[subtask]
        if worker.is_lost:
            return
        worker.control.flush()
        for frame in worker.control.receive():
            report = decode_report(frame)
            if for_the_dead and isinstance(report, Failed) and report.is_lost_peer:
                self._look_for_the_dead(besides=subtask)
            self._post(Told(self._deployment, subtask, report))
        if worker.control.is_open:
            self._watch_writing(worker, subtask)
        else:
            self._lose(subtask)

    def _look_for_the_dead(self, besides: int) -> None:
        """Tell of a worker's death before what another one says of their connection: that is the cause."""
        until = time.monotonic() + DYING_SECONDS
        while time.monotonic() < until:
            for subtask, worker in enumerate(self._workers):
                if subtask != besides and not worker.is_lost and worker.process.poll() is not None:
                    self._listen(subtask, for_the_dead=False)  # it may have lost the same connection, and said so
                    self._listen(subtask, for_the_dead=False)  # the end of what it has said comes behind that
                    return
            time.sleep(0.01)

    def _lose(self, subtask: int) -> None:
        worker = self._workers[subtask]
        if worker.is_lost:
            return
        worker.is_lost = True
        self._selector.unregister(worker.control)
        try:
            reason = _death(worker.process.wait(DYING_SECONDS))
        except subprocess.TimeoutExpired:
            reason = "can't be heard any more and was killed"
        self._post(Lost(self._deployment, subtask, reason))

    def send(self, worker: int, command: AnyCommand) -> None:
        """See `Deployment.send`."""
        self._send(worker, encode(command))

    def ping(self) -> None:
        """Tell all workers that the JobManager lives."""
        for worker in range(len(self._workers)):
            self._send(worker, b"")

    def _send(self, index: int, data: bytes) -> None:
        if index < len(self._workers) and not self._workers[index].is_lost:
            self._workers[index].control.send([data])
            self._watch_writing(self._workers[index], index)

    @property
    def pids(self) -> list[int]:
        """Of the workers that live."""
        return [worker.process.pid for worker in self._workers if worker.process.poll() is None]

    def end(self, *, at_once: bool) -> None:
        """See `Deployment.end`."""
        workers, self._workers = self._workers, []
        until = time.monotonic() + (0.0 if at_once else self._config.job.stop_timeout)
        for worker in workers:
            if not at_once:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, until - time.monotonic()))
            worker.process.kill()
        for worker in workers:
            worker.process.wait()
            if not worker.is_lost:
                self._selector.unregister(worker.control)
            worker.control.close()


def _close(ends: list[socket.socket | None]) -> None:
    for end in ends:
        if end is not None:
            end.close()


def _no_worker(subtask: int, error: OSError) -> UnavailableError:
    hint = "raise its limits (ulimit -u for processes, ulimit -n for open files), or lower job.parallelism"
    return UnavailableError("process", f"worker {subtask}", f"it can't be started: {error.strerror}", hint=hint)


def _death(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code} without a word"
