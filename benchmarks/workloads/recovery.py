"""How long a state takes to come back, from opening the store to the first event committed.

- *restart*: over what survived locally;
- *restore, eager*: from the checkpoint storage alone, all of it loaded first; the floor copies the checkpoint's files;
- *restore, lazy*: the same, served from where it lies;
- *rescale 2 to 3*: a state in two parts, restored in three.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.process import Measured
from benchmarks.results import Row, compare, in_order_of_cases

NAME = "recovery"
FUNCTIONS = "benchmarks.ours.state"
LAZY = "state-recovery.lazy=true"


def run(bench: Bench) -> Iterator[Row]:
    for count in bench.sizes.scales:
        yield from _of_size(bench, count, bench.backends)
    if bench.sizes.thorough and "rocksdb" in bench.backends:  # whose files are copied: only then does their size tell
        yield from _of_size(bench, 10 * bench.sizes.keys, ("rocksdb",))


def _of_size(bench: Bench, count: int, backends: tuple[str, ...]) -> list[Row]:
    rows: list[Row] = []
    for backend in backends:
        with bench.place() as place, bench.server(backend) as (url, servers):
            where: dict[str, Any] = {"backend": backend, "folder": str(place), "redis_url": url}
            rows += _of_backend(bench, count, place, where, servers)
        if not bench.sizes.thorough and backend != backends[-1]:
            continue
        with bench.place() as place, bench.server(backend) as (url, servers):
            where |= {"folder": str(place), "redis_url": url, "count": count}
            text = f"{NAME}: {backend}, rescale"
            measured = bench.measure(text, f"{FUNCTIONS}:rescaled", beside=servers, **where)
            rows.append(_row(backend, "rescale 2 to 3", count, measured))
    return in_order_of_cases(rows)


def _of_backend(
    bench: Bench, count: int, place: Path, where: dict[str, Any], servers: tuple[int, ...]
) -> Iterator[Row]:
    backend = where["backend"]

    def back(case: str, restore: str | None, *settings: str) -> Row:
        options = {**where, "count": count, "restore": restore, "settings": settings, "beside": servers}
        measured = bench.measure(f"{NAME}: {backend}, {case}", f"{FUNCTIONS}:first_event", **options)
        return _row(backend, case, count, measured)

    bench.measure(f"{NAME}: {backend}", f"{FUNCTIONS}:made", count=count, settings=[], **where)
    if backend != "memory":
        yield back("restart", None)
    floor = _copy(bench, backend, count, place / "checkpoints")
    yield floor
    eager = back("restore, eager", "latest")
    compare(eager, [floor])
    yield eager
    if backend == "rocksdb":  # whose native base can't be read where it lies
        bench.measure(f"{NAME}: {backend}", f"{FUNCTIONS}:rebased", settings=[LAZY], **where)
    yield back("restore, lazy", "latest", LAZY)


def _row(backend: str, case: str, count: int, measured: Measured) -> Row:
    row = Row(NAME, f"{case}, {count:,} keys", f"statestore {backend}", "statestore", backend, count, "keys")
    row.seconds, row.peak_mib, row.cpu_seconds = measured.value, measured.peak_mib, measured.cpu_seconds
    return row


def _copy(bench: Bench, backend: str, count: int, source: Path) -> Row:
    with bench.place() as place:
        options = {"source": str(source), "folder": str(place)}
        measured = bench.measure(f"{NAME}: file copy", "benchmarks.floors.files:copied", **options)
    row = Row(NAME, f"restore, eager, {count:,} keys", f"file copy ({backend})", "floor", "", count, "keys")
    row.seconds, row.peak_mib = measured.value["seconds"], measured.peak_mib
    row.shown = {"MB": f"{measured.value['bytes'] / 1e6:.1f}"}
    return row
