"""Runs the `statestore` command as a user does: its own process, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXECUTABLE = Path(sys.executable).with_name("statestore")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def command(*arguments):
    return [str(EXECUTABLE), *map(str, arguments)]


def environment(**variables):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STATESTORE")}
    return clean | {"COLUMNS": "200"} | {name: str(value) for name, value in variables.items()}


def statestore(*arguments, cwd, **variables):
    """The command's end. Whoever waits longer than a minute waits for ever."""
    process = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=120
    )
    return Ended(process.returncode, process.stdout, process.stderr)


def settings(overrides):
    """Options `-D` for a list of `key=value`."""
    return [option for override in overrides for option in ("-D", override)]
