"""`statestore run`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from msgspec.structs import replace

from statestore.errors import StateStoreError
from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, config_file_or_default, print_json

if TYPE_CHECKING:
    from statestore.config import Config
    from statestore_runtime.job import Job


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
    parallelism: Annotated[
        int | None, typer.Option(metavar="N", help="Number of workers; short for -D job.parallelism=N.")
    ] = None,
    ha: Annotated[
        bool,
        typer.Option("--ha", help="Be one of several processes of the job; short for -D high-availability.type=file."),
    ] = False,
    detached: Annotated[
        bool, typer.Option("--detached", help="Run it in the background; return as soon as it runs, or has failed to.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a job until its sources end, restarting it from its last checkpoint when it fails.

    Example: statestore run examples/flights.py:job -D state.backend=redis --restore latest
    """
    try:
        _run(target, config, list(overrides or ()), restore, parallelism, ha=ha, detached=detached, json=json)
    except StateStoreError as error:
        if json:
            from statestore_runtime.deployment.runner import JobFailedError
            from statestore_runtime.jobmanager.failures import failed_of

            failure = error.failure if isinstance(error, JobFailedError) else failed_of(error)
            restarts = error.restarts if isinstance(error, JobFailedError) else 0
            print_json(msgspec.to_builtins(replace(failure, cause=None)) | {"restarts": restarts})
        raise


def _run(
    target: str,
    config: str | None,
    overrides: list[str],
    restore: str | None,
    parallelism: int | None,
    *,
    ha: bool,
    detached: bool,
    json: bool,
) -> None:
    from statestore.config import load_config
    from statestore_runtime.cli.display import Display
    from statestore_runtime.deployment.candidate import Candidate
    from statestore_runtime.deployment.runner import JobRunner, Outcome
    from statestore_runtime.loading import load_job

    given = [*overrides, *([f"job.parallelism={parallelism}"] if parallelism is not None else ())]
    job = load_job(target)

    def configured() -> Config:
        return load_config(
            file=config_file_or_default(config), overrides=given, environ=os.environ, defaults=job.defaults
        )

    known = configured()
    if ha and known.high_availability.type == "none":
        given.append("high-availability.type=file")
        known = configured()
    if detached:
        _run_detached(job, known, target, config, given, restore, json)
        return
    with Display(show=not json) as display:
        kind = JobRunner if known.high_availability.type == "none" else Candidate
        outcome = kind(target, job, known, restore=restore, on_message=display.show).run()
    if json:
        print_json(outcome)
    elif not isinstance(outcome, Outcome):
        sys.stdout.write(f"{job.name} has {outcome.state} at {outcome.by}, checkpoint {outcome.checkpoint}\n")
    else:
        display.report(outcome, shlex.join([_own_name(), "run", target]))


def _run_detached(
    job: Job, known: Config, target: str, config: str | None, overrides: list[str], restore: str | None, json: bool
) -> None:
    from statestore.clock import SystemClock
    from statestore_runtime.cli.detached import run_detached

    options = ["-c", config] if config is not None else []
    options += [option for override in overrides for option in ("-D", override)]
    options += ["--restore", restore] if restore is not None else []
    pid, log, state = run_detached(["run", target, *options], job.name, known.state.dir, SystemClock())
    if json:
        print_json({"job": job.name, "state": state, "pid": pid, "log": str(log)})
    else:
        sys.stdout.write(f"{job.name}: {state}, process {pid}, log in {log}\n")


def _own_name() -> str:
    """What to call this command by: its path as it was called, when a shell would not find its name."""
    return "statestore" if shutil.which("statestore") else os.path.relpath(sys.argv[0])
