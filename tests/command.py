"""Runs the `statestore` command as a user does: its own process, in a folder of its own."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXECUTABLE = Path(sys.executable).with_name("statestore")
TIMEOUT = 170
"""Seconds. Whoever waits longer waits for ever."""

# Starting an interpreter and importing everything takes longer than most commands: one process does it, and is forked for each of them.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "statestore_runtime.cli.main",
        "statestore_runtime.cli.display",
        "statestore_runtime.deployment.inprocess",
        "statestore_runtime.streams",
        "statestore_runtime.sources.files.source",
        "statestore_runtime.sinks.files",
        "statestore.migration.migrate",
        "statestore.reading.diff",
        "statestore_backends.rocksdb",
    ]
)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def command(*arguments):
    """For those who start it by themselves."""
    return [str(EXECUTABLE), *map(str, arguments)]


def environment(**variables):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STATESTORE")}
    return clean | {"COLUMNS": "200"} | {name: str(value) for name, value in variables.items()}


def statestore(*arguments, cwd, **variables):
    """The command's end."""
    return in_a_process(_main, *map(str, arguments), cwd=cwd, **variables)


def python(file, *, cwd, **variables):
    """The end of `python FILE`."""
    return in_a_process(_program, str(file), cwd=cwd, **variables)


def in_a_process(function, *arguments, cwd, **variables):
    """The end of a process of its own that calls a function of a module; `variables` are in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _processes.Process(
            target=_call, args=(function, arguments, str(cwd), environment(**variables), str(out), str(err))
        )
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{arguments} did not end: {out.read_text()}{err.read_text()}")
        return Ended(process.exitcode, out.read_text(), err.read_text())


def settings(overrides):
    """Options `-D` for a list of `key=value`."""
    return [option for override in overrides for option in ("-D", override)]


# In the new process


def _call(function, arguments, cwd, variables, out, err):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.stdout, sys.stderr = (_replaced(number, path) for number, path in ((1, out), (2, err)))
    importlib.reload(sys.modules["statestore.crashpoints"])  # read the environment when they were imported
    sys.exit(function(*arguments))


def _replaced(number, path):
    """A standard stream, to a file from now on, also for processes that are started."""
    with open(path, "wb") as file:
        os.dup2(file.fileno(), number, inheritable=True)
    return open(number, "w", encoding="utf-8", buffering=1, closefd=False)


def _program(file):
    sys.argv = [file]
    sys.path.insert(0, str(Path(file).parent))
    runpy.run_path(file, run_name="__main__")


def _main(*arguments):
    from statestore_runtime.cli.main import main

    return main(list(arguments))
