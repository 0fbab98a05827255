"""How much memory it takes to read and change keys all over a state ten times as large as the cache."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.ours.state_operations import CACHE_BYTES_PER_VALUE
from benchmarks.results import Row

NAME = "memory"
TOUCHED_MAX = 200_000
FUNCTIONS = "benchmarks.ours.state"


def run(bench: Bench) -> Iterator[Row]:
    count = bench.sizes.keys
    touched = min(count, TOUCHED_MAX)
    cache_bytes = count * CACHE_BYTES_PER_VALUE // 10
    for backend in bench.backends:
        with bench.place() as place, bench.server(backend) as (url, servers):
            where = {"backend": backend, "folder": str(place), "redis_url": url, "count": count}
            bench.measure(f"{NAME}: {backend}", f"{FUNCTIONS}:made", settings=[], **where)
            options = {**where, "touched": touched, "cache_bytes": cache_bytes}
            measured = bench.measure(
                f"{NAME}: {backend}", f"{FUNCTIONS}:through_a_small_cache", beside=servers, **options
            )
        row = Row(NAME, f"{count:,} keys", f"statestore {backend}", "statestore", backend, touched, "keys")
        row.seconds, row.peak_mib = measured.value, measured.peak_mib
        row.shown = {"cache MiB": f"{cache_bytes / 2**20:.1f}"}
        yield row
