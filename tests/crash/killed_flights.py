"""The flights job in a worker that dies at the next of several crash points: each time it is started, one of them is behind it.

The environment variable CRASH_POINTS names a folder with a file for each point that is still to come; the first in their order is next.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from statestore import crashpoints
from statestore_runtime.loading import load_job

FLIGHTS = Path(__file__).parent.parent.parent / "examples" / "flights.py"


def put(folder, points):
    """Make such a folder."""
    folder.mkdir()
    for number, point in enumerate(points):
        (folder / f"{number:03}-{point}").touch()


def left(folder):
    """Points that nobody has died at."""
    return sorted(path.name.partition("-")[2] for path in folder.iterdir())


def _arm(folder):
    following = min(folder.iterdir(), default=None)
    if following is not None:
        name, _, hit = following.name.partition("-")[2].partition("#")
        crashpoints._armed_name, crashpoints._hits_left, crashpoints._token = name, int(hit), str(following)


# Not in the JobManager, which reads this file too.
if "CRASH_POINTS" in os.environ and Path(sys.argv[0]).name == "worker.py":
    _arm(Path(os.environ["CRASH_POINTS"]))
job = load_job(f"{FLIGHTS}:job")
