"""A job as the command runs it: a JobManager, and a process for each worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import statestore
from benchmarks.job_run import JobRun, digest
from benchmarks.ours.settings import overrides_for
from benchmarks.process import ROOT

JOB = ROOT / "benchmarks" / "ours" / "two_stages.py"


def two_stages(backend: str, file: str, folder: str, redis_url: str, parallelism: int) -> JobRun:
    """Run it to its end. Its seconds are from the first opening to the final checkpoint, so the start of the processes is left out."""
    settings = [each for setting in overrides_for(backend, folder, redis_url) for each in ("-D", setting)]
    command = [
        sys.executable,
        "-m",
        "statestore_runtime.cli",
        "run",
        str(JOB),
        "--json",
        "--restore",
        "none",
        *settings,
    ]
    done = subprocess.run(
        [*command, "--parallelism", str(parallelism)],
        env=os.environ | {"BENCH_FILES": file},
        stdout=subprocess.PIPE,
        check=True,
    )
    finished = json.loads(done.stdout)["finished"]

    def result() -> str:
        reader = statestore.read(f"{folder}/checkpoints/two-stages")
        return digest(
            (key, *sums)
            for name in ("per-key/sums", "per-hundred/hundreds")
            for key, sums in reader.state(name).items()
        )

    return JobRun(finished["events"], finished["seconds"], result, {"checkpoints": finished["checkpoints"]})
