"""A process for each measurement, so that none inherits another's memory and caches."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TIMEOUT_SECONDS = 900
LOOK_SECONDS = 0.05
"""How often the memory of the processes is looked at."""


class MeasurementError(Exception):
    """The process of a measurement has failed."""


@dataclass(frozen=True)
class Measured:
    """What a process of its own has taken."""

    value: Any
    """What the function has returned."""
    wall_seconds: float
    """From the start of the process to the function's end."""
    cpu_seconds: float
    """Of the process and those it has waited for."""
    peak_mib: float
    """The most that it, all below it, and those beside it took at one time."""


def measure(
    function: str, /, *, python: str = sys.executable, beside: Sequence[int] = (), **arguments: Any
) -> Measured:
    """Call a function in a process of its own.

    Parameters
    ----------
    function
        As `module:name`. It takes and returns what JSON has; an object that it returns has a method `checked`, which is called after time
        and memory have been taken.
    python
        Interpreter that has what the function imports.
    beside
        Ids of other processes that do some of the work, such as a server.

    Raises
    ------
    MeasurementError
        The function has raised, or the process did not end.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out, errors = Path(folder) / "out.json", Path(folder) / "errors.txt"
        command = [python, "-m", "benchmarks.child", str(out), function, json.dumps(arguments)]
        with errors.open("wb") as stderr:
            begun = time.monotonic()
            child = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=environment)
            try:
                seen_mib = _watch(child, beside, begun + TIMEOUT_SECONDS)
            finally:
                _end(child)
        if child.returncode or not out.exists():
            raise MeasurementError(f"{function}: {_last_line(errors, child.returncode)}")
        document = json.loads(out.read_text())
    wall_seconds = document["ended"] - begun
    return Measured(document["value"], wall_seconds, document["cpu_seconds"], max(seen_mib, document["peak_mib"]))


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def _watch(child: subprocess.Popen[bytes], beside: Sequence[int], deadline: float) -> float:
    """Wait for the end of a process; the most memory that was seen, in MiB."""
    peak = 0.0
    while True:
        try:
            child.wait(LOOK_SECONDS)
            return peak
        except subprocess.TimeoutExpired:
            pass
        peak = max(peak, sum(resident_mib(pid) for pid in [child.pid, *below(child.pid), *beside]))
        if time.monotonic() > deadline:
            raise MeasurementError(f"{child.args!r}: no end after {TIMEOUT_SECONDS} s")


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process that is to be given up, and all below it."""
    if child.poll() is None:
        for pid in [child.pid, *below(child.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.wait()


def below(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have, as far as they are alive."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(child) for child in children.read_text().split()]
        except OSError:  # ended meanwhile
            continue
        found += [each for child in direct for each in (child, *below(child))]
    return found


def resident_mib(pid: int) -> float:
    """Memory of a process; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _last_line(errors: Path, code: int) -> str:
    lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with code {code}"
