"""Checkpoints by how much has changed and how large the state is: time, the part of it that stands still, and bytes.

The floor writes the changed keys and values to a file and syncs it.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.results import Row, compare, in_order_of_cases
from benchmarks.timing import VALUE_BYTES, key

NAME = "checkpoints"
SHARES = {0.001: "0.1 %", 0.01: "1 %", 0.1: "10 %", 1.0: "100 %"}
ENTRY_BYTES = len(key(0)) + VALUE_BYTES
FUNCTIONS = "benchmarks.ours.state"


def run(bench: Bench) -> Iterator[Row]:
    rows: list[Row] = []
    for count in bench.sizes.scales:
        cases = {max(1, int(count * share)): f"{text} of {count:,} keys" for share, text in SHARES.items()}
        floors = list(_floors(bench, cases))
        rows += floors
        for backend in bench.backends:
            for row, floor in zip(_checkpoints(bench, backend, count, cases), floors, strict=True):
                compare(row, [floor])
                rows.append(row)
    yield from in_order_of_cases(rows)


def _checkpoints(bench: Bench, backend: str, count: int, cases: dict[int, str]) -> Iterator[Row]:
    with bench.place() as place, bench.server(backend) as (url, servers):
        where = {"backend": backend, "folder": str(place), "redis_url": url, "count": count}
        bench.measure(f"{NAME}: {backend}", f"{FUNCTIONS}:made", settings=[], **where)
        options = {**where, "changed": list(cases), "beside": servers}
        measured = bench.measure(f"{NAME}: {backend}, {count:,} keys", f"{FUNCTIONS}:checkpointed", **options)
    for (dirty, case), value in zip(cases.items(), measured.value, strict=True):
        row = Row(NAME, case, f"statestore {backend}", "statestore", backend, dirty, "changed keys", value["seconds"])
        row.peak_mib, row.details = measured.peak_mib, {**value, "changed_bytes": dirty * ENTRY_BYTES}
        row.shown = {
            "stands still ms": f"{value['blocking_seconds'] * 1000:.2f}",
            "uploaded MB": f"{value['uploaded_bytes'] / 1e6:.3f}",
            "of what changed": f"{value['uploaded_bytes'] / (dirty * ENTRY_BYTES):.2f}",
        }
        yield row


def _floors(bench: Bench, cases: dict[int, str]) -> Iterator[Row]:
    with bench.place() as place:
        options = {"folder": str(place), "sizes": [dirty * ENTRY_BYTES for dirty in cases]}
        measured = bench.measure(f"{NAME}: plain file", "benchmarks.floors.files:written_at_once", **options)
    for (dirty, case), seconds in zip(cases.items(), measured.value, strict=True):
        yield Row(NAME, case, "plain file", "floor", "", dirty, "changed keys", seconds, peak_mib=measured.peak_mib)
