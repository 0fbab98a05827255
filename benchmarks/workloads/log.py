"""Throughput of the write-ahead log, epochs of 10,000 entries each synced, against writing and syncing the same bytes to a file."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.results import Row, compare
from benchmarks.timing import VALUE_BYTES, key

NAME = "log"
PER_SYNC = 10_000
ENTRY_BYTES = len(key(0)) + VALUE_BYTES
CONTENTS = {"random": "random bytes", "text": "text"}


def run(bench: Bench) -> Iterator[Row]:
    entries = bench.sizes.log_bytes // ENTRY_BYTES
    for content, case in CONTENTS.items():
        best: dict[str, Row] = {}
        for _ in range(max(2, bench.sizes.rounds)):
            for row in (_floor(bench, case, entries), _log(bench, case, content, entries)):
                if row.system not in best or row.seconds < best[row.system].seconds:
                    best[row.system] = row
        floor, log = best.values()
        compare(log, [floor])
        yield from (floor, log)


def _floor(bench: Bench, case: str, entries: int) -> Row:
    with bench.place() as place:
        sizes = {"entry_bytes": ENTRY_BYTES, "entries": entries, "per_sync": PER_SYNC}
        measured = bench.measure(f"{NAME}: plain file", "benchmarks.floors.files:written", folder=str(place), **sizes)
    size, seconds = measured.value
    row = Row(NAME, case, "plain file", "floor", operations=size, unit="bytes", seconds=seconds)
    row.peak_mib, row.shown = measured.peak_mib, {"MB/s": f"{size / seconds / 1e6:,.0f}"}
    return row


def _log(bench: Bench, case: str, content: str, entries: int) -> Row:
    with bench.place() as place:
        sizes = {"content": content, "entries": entries, "per_sync": PER_SYNC}
        measured = bench.measure(f"{NAME}: statestore", "benchmarks.ours.log:appended", folder=str(place), **sizes)
    value = measured.value
    row = Row(
        NAME, case, "statestore log", "statestore", operations=value["bytes"], unit="bytes", seconds=value["seconds"]
    )
    row.peak_mib, row.cpu_seconds, row.details = measured.peak_mib, measured.cpu_seconds, value
    row.shown = {
        "MB/s": f"{value['bytes'] / value['seconds'] / 1e6:,.0f}",
        "written, of the bytes": f"{value['written'] / value['bytes']:.2f}",
    }
    return row
