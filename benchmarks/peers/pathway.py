"""Keyed count with Pathway: persistence on, a snapshot each second.

It brings each key's updates together, so its sink gets fewer of them than there are events.
"""

from __future__ import annotations

import time
from typing import Any

import pathway as pw

from benchmarks.job_run import JobRun, digest_of_sums


class Event(pw.Schema):
    key: str
    value: int
    ts: int


def keyed_count(file: str, folder: str) -> JobRun:
    last: dict[str, tuple[int, int]] = {}
    sunk = 0

    def changed(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        nonlocal sunk
        if is_addition:
            sunk += 1
            last[row["key"]] = row["count"], row["total"]

    events = pw.io.jsonlines.read(file, schema=Event, mode="static", name="events", autocommit_duration_ms=1000)
    sums = events.groupby(events.key).reduce(events.key, count=pw.reducers.count(), total=pw.reducers.sum(events.value))
    pw.io.subscribe(sums, changed)
    storage = pw.persistence.Backend.filesystem(f"{folder}/persistence")
    config = pw.persistence.Config(storage, snapshot_interval_ms=1000)
    begun = time.perf_counter()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE, persistence_config=config)
    seconds = time.perf_counter() - begun
    counted = sum(count for count, _ in last.values())
    return JobRun(counted, seconds, lambda: digest_of_sums(last.items()), {"updates": sunk})
