"""`statestore run --detached`: the job in a process that outlives the terminal."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO

from statestore.clock import Clock
from statestore.errors import StateStoreError, UnavailableError
from statestore_runtime.control.client import ask
from statestore_runtime.control.messages import GetStatus
from statestore_runtime.control.place import control_folders, read_address

LOOK_SECONDS = 0.05
HAS_BEGUN = ("running", "standby", "failing", "restarting", "finished")


class DetachedError(StateStoreError, RuntimeError):
    """The job has ended before it ran; `exit_code` is that of its process."""

    def __init__(self, problem: str, code: int):
        self.exit_code = code  # type: ignore[misc]  # it is the process's
        super().__init__(problem)


def run_detached(arguments: Sequence[str], job: str, state_dir: str, clock: Clock) -> tuple[int, Path, str]:
    """Start `statestore ARGUMENTS` in the background, and wait until the job runs, stands by or has finished.

    Returns
    -------
    (int, Path, str)
        Process id, log file, and how it stands.

    Raises
    ------
    DetachedError
        It has failed.
    UnavailableError
        The log file can't be written.
    """
    file = _own_log(Path(state_dir, job))
    log = Path(file.name)
    with file:
        begin = file.tell()
        process = _started(arguments, file)
    while True:
        code = process.poll()
        if code == 0:
            return process.pid, log, "finished"
        if code is not None:
            raise DetachedError(
                _last_line(log, begin) or f"its process ended with exit code {code}", code if code > 0 else 1
            )
        state = _state(process.pid, job, state_dir)
        if state in HAS_BEGUN:
            return process.pid, log, state
        clock.sleep(LOOK_SECONDS)


def _own_log(folder: Path) -> IO[bytes]:
    """The first log that no process writes to which lives: several run one job with high availability, and each says what it says alone.

    It is locked until all have closed it who get it as their output.
    """
    for log in _logs(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = log.open("ab")
        except OSError as error:
            raise UnavailableError("log file", str(log), error.strerror) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        except OSError:  # a file system without locks: better one log for all than none
            return file
        else:
            return file
    raise AssertionError("there is always another one")


def _logs(folder: Path) -> Iterator[Path]:
    yield folder / "run.log"
    yield from (folder / f"run-{number}.log" for number in count(2))


def _started(arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "statestore_runtime.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _state(pid: int, job: str, state_dir: str) -> str | None:
    for folder in control_folders(state_dir, job):
        address = read_address(folder)
        if address is not None and address.pid == pid:
            try:
                return str(ask(address, GetStatus())["state"])
            except (ProcessLookupError, StateStoreError):
                return None
    return None


def _last_line(log: Path, begin: int) -> str:
    """What the process said last, which is its error."""
    with log.open("rb") as file:
        file.seek(begin, os.SEEK_SET)
        lines = file.read().decode(errors="replace").splitlines()
    return lines[-1].removeprefix("statestore: ") if lines else ""
