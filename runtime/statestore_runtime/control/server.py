"""The process that runs a job, as it is reached from outside."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec

from statestore.clock import SystemClock
from statestore.errors import StateStoreError, UnavailableError, UsageError
from statestore.io import FolderLock, LocalStorage
from statestore_runtime.control.messages import AnyRequest, answer_of, decode_request, encode_line
from statestore_runtime.control.place import ADDRESS, Address, bind

logger = logging.getLogger("statestore_runtime.control")

LOCK_SECONDS = 2.0
"""How long a process that ends may take to let go of the job."""

ALIVE_SECONDS = 1.0
"""How often who waits for an answer is told that the process lives."""

REQUEST_SECONDS = 10.0
REQUEST_BYTES_MAX = 1 << 16
CLOSING_SECONDS = 5.0

Outcome = dict[str, Any] | BaseException
Handle = Callable[[AnyRequest, Callable[[Outcome], object]], object]


class JobIsRunningError(StateStoreError, RuntimeError):
    """Another process runs the job with the same local folder."""

    exit_code = 3

    def __init__(self, job: str, problem: object):
        self.job = job
        super().__init__(
            f"job '{job}' runs already ({problem}): end it with statestore stop {job}, or give this run another state.dir"
        )


class JobEndedError(StateStoreError, RuntimeError):
    """The process has ended without an answer to the request."""

    exit_code = 3

    def __init__(self, job: str):
        super().__init__(f"job '{job}' has ended before it could do that")


class ControlServer:
    """Listens until it is closed.

    Parameters
    ----------
    folder
        See `control.place`. It is locked: no other process runs the job here meanwhile.
    handle
        Called with each request in a thread of its own, with what takes its outcome; that may be called later, in any thread.

    Raises
    ------
    JobIsRunningError
        Another process has the folder.
    UnavailableError
        The folder can't be written.
    """

    def __init__(self, folder: Path, job: str, handle: Handle, *, lock_seconds: float = LOCK_SECONDS):
        self.folder, self._job, self._handle = folder, job, handle
        self._lock = _locked(folder, job, lock_seconds)
        with ExitStack() as on_error:
            on_error.callback(self._lock.release)
            self._listener = on_error.enter_context(bind(folder))
            self._path = self._listener.getsockname()
            address = Address(pid=os.getpid(), host=socket.gethostname(), socket=self._path)
            LocalStorage(folder).write(ADDRESS, msgspec.json.encode(address))
            on_error.pop_all()
        self._is_closing = False
        self._waiting: dict[threading.Thread, queue.SimpleQueue[Outcome]] = {}
        self._thread = threading.Thread(target=self._accept, name="statestore-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer who still waits that the job has ended, and listen no more; idempotent."""
        if self._is_closing:
            return
        self._is_closing = True
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waker:
            waker.settimeout(CLOSING_SECONDS)
            waker.connect(self._path)
        self._thread.join(CLOSING_SECONDS)
        for thread, outcome in list(self._waiting.items()):
            outcome.put(JobEndedError(self._job))  # comes after the true one, where there is one
            thread.join(CLOSING_SECONDS)
        self._listener.close()
        for path in (Path(self._path), self.folder / ADDRESS):
            with suppress(OSError):
                path.unlink()
        self._lock.release()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:  # too many files are open: who asks now waits until that has passed
                if self._is_closing:
                    return
                logger.warning("requests about job '%s' have to wait: %s", self._job, error)
                time.sleep(ALIVE_SECONDS)
                continue
            if self._is_closing:
                connection.close()
                return
            outcome: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
            thread = threading.Thread(
                target=self._serve, args=(connection, outcome), name="statestore-request", daemon=True
            )
            self._waiting[thread] = outcome
            thread.start()

    def _serve(self, connection: socket.socket, outcome: queue.SimpleQueue[Outcome]) -> None:
        try:
            with connection, suppress(OSError):  # whoever asked may be gone
                connection.settimeout(REQUEST_SECONDS)
                self._begin(_received_line(connection), outcome)
                connection.sendall(encode_line(answer_of(_waited_for(outcome, connection))))
        finally:
            del self._waiting[threading.current_thread()]

    def _begin(self, line: bytes, outcome: queue.SimpleQueue[Outcome]) -> None:
        try:
            self._handle(decode_request(line), outcome.put)
        except msgspec.DecodeError as error:
            outcome.put(UsageError(f"that is no request of this version: {error}"))
        except Exception as error:
            outcome.put(error)


def _locked(folder: Path, job: str, seconds: float) -> FolderLock:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError("control folder", str(folder), error.strerror) from error
    try:
        return FolderLock(folder, SystemClock(), wait_seconds=seconds)
    except UnavailableError as error:
        if isinstance(error.__cause__, BlockingIOError):
            raise JobIsRunningError(job, error.reason) from error
        raise


def _received_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < REQUEST_BYTES_MAX:
        piece = connection.recv(REQUEST_BYTES_MAX)
        if not piece:
            break
        data += piece
    return data


def _waited_for(outcome: queue.SimpleQueue[Outcome], connection: socket.socket) -> Outcome:
    while True:
        try:
            return outcome.get(timeout=ALIVE_SECONDS)
        except queue.Empty:
            connection.sendall(b"\n")
