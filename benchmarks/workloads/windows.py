"""Count and sum per key and minute of event time, of events that come out of order.

A window is emitted when the watermark has passed its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import events
from benchmarks.bench import Bench
from benchmarks.results import Row
from benchmarks.workloads import jobs

NAME = "windows"
SIZE_MS = 60_000


def run(bench: Bench) -> Iterator[Row]:
    with bench.place() as place:
        bench.tell(f"{NAME}: writing events")
        file = events.out_of_order(place / "events.jsonl", bench.sizes.events // 2, bench.sizes.event_keys // 10)
        ours = jobs.statestore("windows", bench.backends)
        options = {"size_ms": SIZE_MS, "late_ms": events.LATE_MS}
        yield from jobs.run(bench, NAME, "tumbling 1 min", "windows", ours, str(file), **options)
