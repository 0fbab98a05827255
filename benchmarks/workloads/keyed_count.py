"""Running count and sum per key of JSON lines, every update to a counting sink, a checkpoint each second."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import events
from benchmarks.bench import Bench
from benchmarks.results import Row
from benchmarks.workloads import jobs

NAME = "keyed-count"
DISTRIBUTIONS = ("uniform", "zipf")
RECORD_BATCHES = "record batches"


def systems(bench: Bench, distribution: str) -> list[jobs.System]:
    """Our general way to do it, the process function; record batches, the aggregate function, and the peers."""
    found = []
    for backend in bench.backends:
        found += jobs.statestore("keyed_count", (backend,))
        found += jobs.statestore("keyed_count_record_batches", (backend,), RECORD_BATCHES)
    if bench.sizes.thorough and distribution == "uniform":  # it makes no other use of the backend
        found += jobs.statestore("keyed_count_aggregate", bench.backends[:1], "aggregate", once=True)
    return found + jobs.peers(bench.peers)


def run(bench: Bench) -> Iterator[Row]:
    for distribution in DISTRIBUTIONS if bench.sizes.thorough else DISTRIBUTIONS[:1]:
        with bench.place() as place:
            bench.tell(f"{NAME}: writing events")
            file = events.keyed(place / "events.jsonl", bench.sizes.events, bench.sizes.event_keys, distribution)
            yield from jobs.run(bench, NAME, distribution, "keyed_count", systems(bench, distribution), str(file))
