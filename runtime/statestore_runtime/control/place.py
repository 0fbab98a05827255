"""Where the processes that run a job are reached.

<state.dir>/<job>/control/lock             held by the process, so that no other runs the job here
<state.dir>/<job>/control/address.json     its process id, and the socket
<state.dir>/<job>/control/socket           unless its path is too long for a socket, or the file system takes none: then it is in
                                           a folder of the user's own, named by `address.json`
<state.dir>/<job>/candidates/<n>/...       the same for each of several JobManagers, with high availability

All of it is for the user alone.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path

import msgspec

from statestore.errors import CorruptionError, UnavailableError

SOCKET_PATH_MAX = 100
"""Bytes that a socket's path may have on every system; Linux takes 107."""

ADDRESS = "address.json"
CANDIDATES = "candidates"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process is reached."""

    pid: int
    host: str
    socket: str


def control_folder(state_dir: str, job: str) -> Path:
    """Where the process that runs a job says how it is reached."""
    return Path(state_dir, job, "control")


def candidate_dir(state_dir: str, job: str, number: int) -> Path:
    """What is `state.dir` to one of several JobManagers of a job."""
    return Path(state_dir, job, CANDIDATES, str(number))


def control_folders(state_dir: str, job: str) -> list[Path]:
    """All places where a process may say so."""
    candidates = Path(state_dir, job, CANDIDATES)
    numbers = sorted(int(path.name) for path in candidates.glob("*") if path.name.isdecimal())
    return [
        control_folder(state_dir, job),
        *(control_folder(str(candidate_dir(state_dir, job, number)), job) for number in numbers),
    ]


def read_address(folder: Path) -> Address | None:
    """What a process has said; it may be gone since. Raises CorruptionError, UnavailableError."""
    file = folder / ADDRESS
    try:
        return msgspec.json.decode(file.read_bytes(), type=Address)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise CorruptionError(str(file), str(error), hint="remove it") from error
    except OSError as error:
        raise UnavailableError("control file", str(file), error.strerror) from error


def bind(folder: Path) -> socket.socket:
    """A socket that listens, in the folder or else in one of the user's own. Whoever calls holds the folder's lock."""
    problem: OSError | None = None
    for is_private in (False, True):
        path = private_folder() / _name_for(folder) if is_private else folder / "socket"
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            continue
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)  # of a process that has died
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen()
        except OSError as error:
            listener.close()
            problem = error
        else:
            return listener
    raise UnavailableError("control socket", str(folder), problem or "its path is too long for a socket")


def private_folder() -> Path:
    """A folder with a short path that nobody but this user can look into. Raises UnavailableError when somebody else made it."""
    path = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), f"statestore-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise UnavailableError("folder for sockets", str(path), error.strerror) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UnavailableError("folder for sockets", str(path), "others can write there", hint="remove it")
    return path


def _name_for(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
