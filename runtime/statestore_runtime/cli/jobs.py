"""Commands that ask a running job: `statestore list|status|cancel|stop|rescale`, and `checkpoint trigger`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, config_file_or_default, print_json

if TYPE_CHECKING:
    from statestore.config import Config
    from statestore_runtime.control.client import JobClient
    from statestore_runtime.control.messages import AnyRequest, JobStatus

Job = Annotated[
    str, typer.Argument(metavar="JOB", help="Name of the job, or the file with it: NAME or FILE.py[:VARIABLE].")
]
SavepointDir = Annotated[
    str | None, typer.Option("--savepoint", metavar="DIR", help="Folder or URL that becomes a savepoint.")
]


def named_job(job: str, config: str | None, overrides: list[str] | None) -> tuple[str, Config]:
    """Name and configuration of a job that is named by its name or its file."""
    from statestore.checkpoint.storage import checked_job_name
    from statestore.config import load_config
    from statestore_runtime.loading import load_job

    defaults: dict[str, Any] = {}
    if job.endswith(".py") or ".py:" in job:
        loaded = load_job(job)
        job, defaults = loaded.name, loaded.defaults
    file = config_file_or_default(config)
    known = load_config(file=file, overrides=overrides or (), environ=os.environ, defaults=defaults)
    return checked_job_name(job), known


def client_of(job: str, config: str | None, overrides: list[str] | None) -> JobClient:
    """What asks the job."""
    from statestore_runtime.control.client import JobClient

    name, known = named_job(job, config, overrides)
    return JobClient(known.state.dir, name)


def absolute(place: str) -> str:
    """A path as the job's process, which may be in another folder, understands it; a URL as it is."""
    from statestore.io import local_path

    path = local_path(place)
    return place if path is None else os.path.abspath(path)  # noqa: PTH100 - without following links


def ask(
    job: str, config: str | None, overrides: list[str] | None, json: bool, request: AnyRequest
) -> tuple[str, dict[str, Any]]:
    """The job's name and its answer, which is printed with `json`."""
    client = client_of(job, config, overrides)
    answer = client.request(request)
    if json:
        print_json({"job": client.job} | answer)
    return client.job, answer


def list_(config: ConfigFile = None, overrides: Overrides = None, json: Json = False, debug: Debug = False) -> None:
    """List the jobs that run, or have run, with this state.dir."""
    from statestore.config import load_config
    from statestore.errors import UnavailableError
    from statestore_runtime.control.client import JobClient, known_jobs
    from statestore_runtime.control.messages import JobNotRunningError

    known = load_config(file=config_file_or_default(config), overrides=overrides or (), environ=os.environ)
    rows: list[dict[str, Any]] = []
    for job in known_jobs(known.state.dir):
        try:
            rows += [msgspec.to_builtins(status) for status in JobClient(known.state.dir, job).statuses()]
        except JobNotRunningError:
            rows.append({"job": job, "state": "not running"})
        except UnavailableError as error:
            rows.append({"job": job, "state": "does not answer", "problem": str(error)})
    if json:
        print_json(rows)
        return
    if not rows:
        sys.stdout.write(f"no jobs in {known.state.dir}\n")
    for row in rows:
        sys.stdout.write(_line(row) + "\n")


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['job']}: {row['state']}"]
    if row.get("parallelism") and row["state"] != "standby":
        parts.append(f"{row['parallelism']} worker{'s' if row['parallelism'] > 1 else ''}")
    if row.get("progress"):
        parts.append(f"{row['progress']['events']:,} events")
    if row.get("restarts"):
        parts.append(f"{row['restarts']} restart{'s' if row['restarts'] > 1 else ''}")
    if row.get("pid"):
        parts.append(f"process {row['pid']} for {row['seconds']:.0f} s")
    if row.get("problem"):
        parts.append(row["problem"])
    return ", ".join(parts)


def status(
    job: Job, config: ConfigFile = None, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> None:
    """Show how a running job stands. With high availability, also who stands by here."""
    statuses = client_of(job, config, overrides).statuses()
    if json:
        first, *others = (msgspec.to_builtins(each) for each in statuses)
        print_json(first | {"standbys": others} if others else first)
        return
    for each in statuses:
        sys.stdout.write(_line(msgspec.to_builtins(each)) + "\n")
        sys.stdout.writelines(f"  {label:16}  {text}\n" for label, text in _rows(each))


def _rows(status: JobStatus) -> list[tuple[str, str]]:
    from statestore_runtime.cli.display import size

    rows = []
    if status.leader is not None:
        rows.append(("leader", status.leader))
    if status.backend is not None:
        rows.append(("state", f"backend {status.backend} at {status.place}"))
    if status.attempt is not None:
        restored = (
            "from nothing" if status.restored_checkpoint is None else f"from checkpoint {status.restored_checkpoint}"
        )
        rows.append(("attempt", f"{status.attempt}, {restored}"))
    if status.restoring is not None:
        done, total = status.restoring.bytes_done, status.restoring.bytes_total
        rows.append(("restored", f"{done / max(total, 1):.0%} of {size(total)}"))
    if status.workers:
        rows.append(
            ("workers", f"process{'es' if len(status.workers) > 1 else ''} {', '.join(map(str, status.workers))}")
        )
    if status.checkpoints is not None:
        failed = (
            f", {status.failed_checkpoints} failed ({status.last_checkpoint_failure})"
            if status.failed_checkpoints
            else ""
        )
        rows.append(("checkpoints", f"{status.completed_checkpoints} in {status.checkpoints}{failed}"))
    last = status.last_checkpoint
    if last is not None:
        text = (
            f"{last.checkpoint}: {size(last.uploaded_bytes)} new, {size(last.total_bytes)} in all, {last.seconds:.2f} s"
        )
        rows.append(("last checkpoint", text))
        rows += [(f"  worker {number}", _phases(phases)) for number, phases in enumerate(last.tasks)]
    rows += [("restart", f"{each.seconds_ago:.0f} s ago: {each.error}") for each in status.failures]
    return rows


def _phases(phases: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in phases.items())


def cancel(
    job: Job, config: ConfigFile = None, overrides: Overrides = None, json: Json = False, debug: Debug = False
) -> None:
    """End a job at once: what came after its last checkpoint is given up."""
    from statestore_runtime.control.messages import CancelJob

    name, _ = ask(job, config, overrides, json, CancelJob())
    if not json:
        sys.stdout.write(f"{name} is cancelled; it goes on from its last checkpoint with --restore latest\n")


def stop(
    job: Job,
    savepoint: SavepointDir = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Finish the job as if its sources had ended: windows and timers fire.")
    ] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Stop a job with a checkpoint: all it has read is processed and written, and it goes on from there.

    Example: statestore stop flights --savepoint s3://backups/flights-1
    """
    from statestore_runtime.control.messages import StopJob

    target = None if savepoint is None else absolute(savepoint)
    name, answer = ask(job, config, overrides, json, StopJob(savepoint_dir=target, drain=drain))
    if json:
        return
    if drain:
        end = "" if target is None else f"; savepoint {answer['savepoint']}"
        sys.stdout.write(f"{name} has finished{end}\n")
    elif target is None:
        sys.stdout.write(
            f"{name} has stopped with checkpoint {answer['checkpoint']}; it goes on from there with --restore latest\n"
        )
    else:
        place = answer["savepoint"]
        sys.stdout.write(f"{name} has stopped; it goes on from there with --restore {place}\n")


def rescale(
    job: Job,
    parallelism: Annotated[int, typer.Argument(metavar="N", help="Number of workers from now on.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let a job go on with another number of workers: it stops with a checkpoint and starts again from it."""
    from statestore_runtime.control.messages import RescaleJob

    name, answer = ask(job, config, overrides, json, RescaleJob(parallelism=parallelism))
    if not json:
        workers = "one worker" if answer["parallelism"] == 1 else f"{answer['parallelism']} workers"
        sys.stdout.write(f"{name} runs with {workers}\n")


def trigger(
    job: Job,
    full: Annotated[
        bool, typer.Option("--full", help="Let it hold the whole state, not only what has changed.")
    ] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let a running job make a checkpoint now."""
    from statestore_runtime.control.messages import MakeCheckpoint

    _, answer = ask(job, config, overrides, json, MakeCheckpoint(full=full))
    if not json:
        sys.stdout.write(f"{answer['checkpoint']}\n")
