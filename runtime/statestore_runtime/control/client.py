"""Asks the process that runs a job."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec

from statestore.errors import CorruptionError, UnavailableError
from statestore_runtime.control.messages import (
    AnyRequest,
    GetStatus,
    JobNotRunningError,
    JobStatus,
    RequestFailedError,
    decode_answer,
    encode_line,
)
from statestore_runtime.control.place import Address, control_folders, read_address

SILENCE_SECONDS = 10.0
"""A process that lives says so more often than this."""


def ask(address: Address, request: AnyRequest, *, silence_seconds: float = SILENCE_SECONDS) -> dict[str, Any]:
    """What comes of a request, however long it takes as long as the process lives.

    Raises
    ------
    ProcessLookupError
        Nobody listens there.
    RequestFailedError
        The answer is an error.
    UnavailableError
        The process does not answer, or has gone meanwhile.
    """
    who = f"process {address.pid}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(silence_seconds)
        try:
            connection.connect(address.socket)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise ProcessLookupError(who) from error
        except OSError as error:
            raise UnavailableError("job", address.socket, error.strerror or error) from error
        try:
            connection.sendall(encode_line(request))
            line = _answer_line(connection)
        except TimeoutError as error:
            reason = f"{who} said nothing for {silence_seconds:g} s"
            raise UnavailableError("job", address.socket, reason, hint="does it stand still?") from error
        except OSError as error:
            raise UnavailableError("job", address.socket, f"{who} has ended meanwhile") from error
    if not line:
        raise UnavailableError("job", address.socket, f"{who} has ended without an answer")
    try:
        answer = decode_answer(line)
    except msgspec.DecodeError as error:
        raise CorruptionError(address.socket, f"that is no answer: {error}") from error
    if answer.error is not None:
        raise RequestFailedError(answer.error, answer.exit_code)
    return answer.result or {}


def _answer_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as lines:
        for line in lines:
            if line.strip():
                return line
    return b""


class JobClient:
    """The processes that run a job on this machine: one, or several with high availability.

    Parameters
    ----------
    state_dir
        `state.dir` of the job's configuration.
    """

    def __init__(self, state_dir: str, job: str, *, silence_seconds: float = SILENCE_SECONDS):
        self.state_dir, self.job, self._silence_seconds = state_dir, job, silence_seconds

    def statuses(self) -> list[JobStatus]:
        """What all of them say, those that lead first.

        Raises
        ------
        JobNotRunningError
            There is none.
        UnavailableError
            None of them answers.
        """
        found, problem = [], None
        for address in self._addresses():
            try:
                found.append(self._status(address))
            except ProcessLookupError:
                continue
            except UnavailableError as error:
                problem = error
        if not found:
            raise problem or JobNotRunningError(
                self.job, str(Path(self.state_dir, self.job)), "start it, or name its state.dir with -D"
            )
        return sorted(found, key=lambda status: status.state == "standby")

    def request(self, request: AnyRequest) -> dict[str, Any]:
        """What comes of a request to the one that leads.

        Raises
        ------
        JobNotRunningError, UnavailableError
            As `statuses` does; or all of them stand by.
        RequestFailedError
            The answer is an error.
        """
        first = self.statuses()[0]
        if first.state == "standby":
            leader = first.leader or "nobody yet"
            raise JobNotRunningError(
                self.job, str(Path(self.state_dir, self.job)), f"here it stands by, {leader} leads"
            )
        for address in self._addresses():
            if address.pid == first.pid:
                try:
                    return ask(address, request, silence_seconds=self._silence_seconds)
                except ProcessLookupError:
                    break
        raise UnavailableError("job", f"process {first.pid}", "it has ended just now", hint="try again")

    def _status(self, address: Address) -> JobStatus:
        answer = ask(address, GetStatus(), silence_seconds=self._silence_seconds)
        return msgspec.convert(answer, JobStatus)

    def _addresses(self) -> list[Address]:
        """Raises UnavailableError when a process of another machine has the folder."""
        addresses = [read_address(folder) for folder in control_folders(self.state_dir, self.job)]
        known = [address for address in addresses if address is not None]
        here = [address for address in known if address.host == socket.gethostname()]
        if known and not here:
            raise UnavailableError(
                "job", f"{self.state_dir}/{self.job}", f"it runs on {known[0].host}", hint="give the command there"
            )
        return here


def known_jobs(state_dir: str) -> list[str]:
    """Names of the jobs that run, or have run, with this `state.dir`."""
    root = Path(state_dir)
    names = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted(name for name in names if any(folder.is_dir() for folder in control_folders(state_dir, name)))
