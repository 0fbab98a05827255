"""A job of two stages, its workers in processes of their own: one, two, and as many as there are cores."""

from __future__ import annotations

import os
from collections.abc import Iterator

from benchmarks import events
from benchmarks.bench import Bench
from benchmarks.results import Row
from benchmarks.workloads import jobs

NAME = "parallelism"
FILES = 4
LOCAL = ("memory", "rocksdb")
"""Enough to see how it scales, as the backends make no difference to that."""


def run(bench: Bench) -> Iterator[Row]:
    backends = tuple(backend for backend in bench.backends if backend in LOCAL) or bench.backends
    backends = backends if bench.sizes.thorough else backends[-1:]
    systems = []
    for workers in sorted({1, 2, os.cpu_count() or 1}):
        way = f"{workers} worker" + "s" * (workers > 1)
        function = "benchmarks.ours.workers:two_stages"
        systems += jobs.statestore(function, backends, way, once=True, parallelism=workers)
    with bench.place() as place:
        bench.tell(f"{NAME}: writing events")
        for number in range(FILES):
            file = place / f"events-{number}.jsonl"
            events.keyed(file, bench.sizes.events // (4 * FILES), bench.sizes.event_keys, "uniform", seed=number)
        rows = list(jobs.run(bench, NAME, "two stages", "two_stages", systems, f"{place}/events-*.jsonl"))
    one = {row.backend: row for row in rows if row.system.endswith("1 worker")}
    for row in rows:
        if row.backend and row is not one[row.backend]:
            row.shown = {"of one worker": f"{row.per_second / one[row.backend].per_second:.2f}"}
        yield row
