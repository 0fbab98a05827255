"""`statestore run`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import Annotated

import msgspec
import typer

from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, config_file_or_default, print_json


def run(
    target: Annotated[str, typer.Argument(metavar="FILE[:VARIABLE]", help="Python file with a Job, and its name.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    restore: Annotated[
        str | None,
        typer.Option(
            metavar="latest|none|PATH", help="Go on from the newest or a given checkpoint or savepoint, or start over."
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a job until its sources end, restarting it from its last checkpoint when it fails.

    Example: statestore run examples/flights.py:job -D state.backend=redis --restore latest
    """
    from statestore.config import load_config
    from statestore_runtime.cli.display import Display
    from statestore_runtime.supervisor import JobFailedError, Supervisor

    config_file = config_file_or_default(config)
    known = load_config(file=config_file, overrides=overrides or (), environ=os.environ)
    with Display(show=not json) as display:
        supervisor = Supervisor(
            target,
            known,
            config_file=config_file,
            overrides=overrides,
            restore=restore,
            on_message=display.show,
        )
        try:
            outcome = supervisor.run()
        except JobFailedError as error:
            if json:
                print_json(msgspec.to_builtins(error.failure) | {"restarts": error.restarts})
            raise
    if json:
        print_json(outcome)
    else:
        display.report(outcome, shlex.join([_own_name(), "run", target]))


def _own_name() -> str:
    """What to call this command by: its path as it was called, when a shell would not find its name."""
    return "statestore" if shutil.which("statestore") else os.path.relpath(sys.argv[0])
