"""A worker's process: `python -m statestore_runtime.deployment.worker CONTROL [PEER ...]`, started by a JobManager.

The arguments are descriptors of sockets: to the JobManager, and to each worker in order, "-" for itself. The first frame on CONTROL is an
`Order`, those after it are commands; reports go the other way. When CONTROL ends, or nothing comes for longer than the heartbeat's
time-out, the worker ends itself at once: the JobManager is gone, or has given it up, and nobody would restart the job or watch it.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from statestore.clock import SystemClock
from statestore.config import Config
from statestore.opening import open_checkpoints
from statestore_runtime.deployment.failing import task_failure
from statestore_runtime.deployment.peers import PeerLostError, PeerNetwork
from statestore_runtime.deployment.wire import framed, receive_frame
from statestore_runtime.garbage import collected_seldom
from statestore_runtime.loading import load_job
from statestore_runtime.protocol import (
    AnyCommand,
    AnyReport,
    Declined,
    Deploy,
    Done,
    Failed,
    Heartbeat,
    decode_command,
    encode,
)
from statestore_runtime.task.output import close_quietly
from statestore_runtime.task.task import Task

IDLE_SECONDS = 0.01


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to do. It may hold secrets, and passes over nothing but the socket."""

    target: str
    """`FILE[:VARIABLE]`."""
    job: str
    """Name of the job that is found there."""
    config: Config
    deploy: Deploy
    subtask: int


class Worker:
    """Runs one order."""

    def __init__(self, control: socket.socket, peers: Sequence[socket.socket | None]):
        self._control, self._peers = control, peers
        self._writing = threading.Lock()
        self._commands: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._is_done = False

    def run(self) -> int:
        """Run the task until it is told to end; returns the process's exit code."""
        data = receive_frame(self._control)
        if data is None:
            return 1
        order = msgspec.msgpack.decode(data, type=Order)
        heartbeat = order.config.heartbeat
        self._control.settimeout(heartbeat.timeout)
        threading.Thread(target=self._listen, daemon=True, name="statestore-control").start()
        threading.Thread(
            target=self._beat, args=(heartbeat.interval,), daemon=True, name="statestore-heartbeat"
        ).start()
        try:
            with collected_seldom():
                self._work(order)
        except BaseException as error:
            failed = task_failure(error, lambda: open_checkpoints(order.config, order.job))
            self.tell(msgspec.structs.replace(failed, is_lost_peer=isinstance(error, PeerLostError)))
            return failed.exit_code
        return 0

    def _work(self, order: Order) -> None:
        job = load_job(order.target)
        network = PeerNetwork(order.subtask, self._peers)
        network.watch(self._wake_read)
        task = Task(
            job.name, job.build(), order.config, order.deploy, network=network, tell=self.tell, clock=SystemClock()
        )
        try:
            task.open()
            while not self._is_done:
                if not (self._obey(task) | task.step()):
                    network.wait(IDLE_SECONDS)
        finally:
            close_quietly(task)

    def _obey(self, task: Task) -> bool:
        is_busy = False
        with suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return is_busy
            is_busy = True
            task.handle(command)

    def tell(self, report: AnyReport) -> None:
        """Send a report; any thread may. Of an exception its text goes."""
        if isinstance(report, Failed) and report.cause is not None:
            trace = "".join(traceback.format_exception(report.cause))
            report = msgspec.structs.replace(report, cause=None, traceback=trace)
        elif isinstance(report, Declined):
            report = msgspec.structs.replace(report, cause=None)
        with self._writing:
            self._control.sendall(framed(encode(report)))
        self._is_done |= isinstance(report, Done)

    def _beat(self, interval: float) -> None:
        """Beat whether or not the task gets on: a long batch or a long recovery is not a death."""
        stopped = threading.Event()
        while not stopped.wait(interval):
            self.tell(Heartbeat())

    def _listen(self) -> None:
        try:
            while (data := receive_frame(self._control)) is not None:
                if data:  # an empty one says only that the JobManager lives
                    self._commands.put(decode_command(data))
                    os.write(self._wake_write, b"\0")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: Sequence[str]) -> int:
    """Run the worker with its descriptors; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the JobManager too, which ends the worker in order
    logging.basicConfig(format="statestore: %(levelname)s: %(message)s", level=logging.WARNING)
    control = socket.socket(fileno=int(arguments[0]))
    peers = [None if each == "-" else socket.socket(fileno=int(each)) for each in arguments[1:]]
    return Worker(control, peers).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
