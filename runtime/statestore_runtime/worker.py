"""The process in which a job runs: `python -m statestore_runtime.worker ORDERS MESSAGES`, started by the supervisor.

The arguments are file descriptors of pipes. The first line of ORDERS is an `Order`; its end tells that the supervisor is gone, and the
worker with it: nobody would restart the job or watch it. MESSAGES carries one message a line.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback

import msgspec

from statestore.config import Config, load_config
from statestore.errors import StateStoreError
from statestore_runtime.executor import run_job
from statestore_runtime.loading import load_job
from statestore_runtime.messages import Failed, Heartbeat, Loaded, Message, to_line


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    target: str
    """`FILE[:VARIABLE]`."""
    config_file: str | None
    overrides: list[str]
    restore: str | None
    run: str
    """Names the run: a restarted worker goes on from the newest checkpoint of its own run."""
    heartbeat_interval: float


class Worker:
    """Runs one order."""

    def __init__(self, orders: int, messages: int):
        self._orders, self._messages = orders, messages
        self._writing = threading.Lock()

    def run(self) -> int:
        """Run the job to its end; returns the process's exit code."""
        with open(self._orders, "rb", buffering=0, closefd=False) as pipe:
            order = msgspec.json.decode(pipe.readline(), type=Order)
        threading.Thread(target=self._end_with_supervisor, daemon=True).start()
        heart = _Heart(self, order.heartbeat_interval)
        heart.start()
        try:
            job = load_job(order.target)
            config = load_config(
                file=order.config_file, overrides=order.overrides, environ=os.environ, defaults=job.defaults
            )
            heart.beat_every(config.heartbeat.interval)
            self.tell(Loaded(job=job.name, config=_without_tables(config)))
            run_job(job, config, restore=order.restore, run=order.run, emit=self.tell)
        except SystemExit as error:  # stopped by a signal: the supervisor knows
            return error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            failed = _failed(error)
            self.tell(failed)
            return failed.exit_code
        return 0

    def tell(self, message: Message) -> None:
        """Send a message; any thread may."""
        data = to_line(message)
        with self._writing:
            while data:
                data = data[os.write(self._messages, data) :]

    def _end_with_supervisor(self) -> None:
        while os.read(self._orders, 4096):
            pass
        os.kill(os.getpid(), signal.SIGKILL)


class _Heart(threading.Thread):
    """Beats whether or not the job gets on: a long batch or a long recovery is not a death."""

    def __init__(self, worker: Worker, interval: float):
        super().__init__(daemon=True, name="statestore-heartbeat")
        self._worker, self._interval = worker, interval
        self._changed = threading.Event()

    def beat_every(self, interval: float) -> None:
        """Change the interval, from now on."""
        self._interval = interval
        self._changed.set()

    def run(self) -> None:
        while True:
            self._worker.tell(Heartbeat())
            if self._changed.wait(self._interval):
                self._changed.clear()


def _without_tables(config: Config) -> Config:
    """The configuration without the backends' own tables, which may hold passwords and which the supervisor has no use for."""
    return msgspec.structs.replace(config, state=msgspec.structs.replace(config.state, backends={}))


def _failed(error: BaseException) -> Failed:
    known = isinstance(error, StateStoreError)
    text = str(error) if known else f"internal error: {type(error).__name__}: {error}"
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    code = error.exit_code if isinstance(error, StateStoreError) else 1
    return Failed(
        error=" ".join(f"{text}{notes}".split()),
        exit_code=code,
        retryable=not known or code == 3,
        traceback="".join(traceback.format_exception(error)),
    )


def main(arguments: list[str]) -> int:
    """Run the worker with the two descriptors; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor too, which ends the worker in order
    logging.basicConfig(format="statestore: %(levelname)s: %(message)s", level=logging.WARNING)
    return Worker(int(arguments[0]), int(arguments[1])).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
