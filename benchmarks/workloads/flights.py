"""The job of `examples/flights.py`: delays per aircraft from a compressed CSV file, every update to a file.

The files are committed exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import events
from benchmarks.bench import Bench
from benchmarks.results import Row
from benchmarks.workloads import jobs

NAME = "flights"


def run(bench: Bench) -> Iterator[Row]:
    ours = jobs.statestore("flights", bench.backends)
    with bench.place() as place:
        file = events.flights(place, bench.sizes.flights)
        yield from jobs.run(bench, NAME, "", "flights", ours, str(file))
