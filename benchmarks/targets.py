"""What the results are to reach, as ratios within one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.results import Row
from benchmarks.workloads.keyed_count import RECORD_BATCHES


@dataclass(frozen=True)
class Target:
    """A figure and its bound."""

    text: str
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Judged:
    """A target and the worst that was measured of it."""

    target: Target
    value: float
    where: str

    @property
    def met(self) -> bool:
        return self.target.met(self.value)


Figures = Iterator[tuple[float, str]]


def _ratios(rows: list[Row], workload: str, other: str, case: str = "", *, with_start_up: bool = False) -> Figures:
    for row in rows:
        ratios = row.ratios_with_start_up if with_start_up else row.ratios
        if row.workload == workload and row.role == "statestore" and row.case.endswith(case) and other in ratios:
            yield ratios[other], f"{row.system} {row.case}".strip()


def _per_event(rows: list[Row], other: str, *, with_start_up: bool = False) -> Figures:
    """The keyed count by a process function."""
    general = [row for row in rows if "," not in row.system]
    yield from _ratios(general, "keyed-count", other, with_start_up=with_start_up)


def _record_batches(rows: list[Row]) -> Iterator[Row]:
    return (row for row in rows if row.workload == "keyed-count" and row.system.endswith(RECORD_BATCHES))


def _batches_of_events(rows: list[Row]) -> Figures:
    """Rates in record batches, of those of the process function on the same backend."""
    rates = {(row.case, row.backend): row.per_second for row in rows if row.system == f"statestore {row.backend}"}
    for row in _record_batches(rows):
        yield row.per_second / rates[row.case, row.backend], f"{row.backend} {row.case}"


def _batches_of_pathway(rows: list[Row]) -> Figures:
    yield from _ratios(list(_record_batches(rows)), "keyed-count", "pathway")


def _memory(rows: list[Row]) -> Figures:
    pathway = {row.case: row for row in rows if row.system == "pathway" and row.peak_mib and not row.missing}
    for row in rows:
        if row.workload == "keyed-count" and row.role == "statestore" and row.case in pathway:
            yield (row.peak_mib or 0) / (pathway[row.case].peak_mib or 1), f"{row.system} {row.case}"


def _hot(rows: list[Row]) -> Figures:
    yield from _ratios(rows, "state-operations", "statestore memory", "hot")


def _cold(raw: str) -> Callable[[list[Row]], Figures]:
    return lambda rows: _ratios(rows, "state-operations", raw, "in batches")


def _uploaded(rows: list[Row]) -> Figures:
    for row in rows:
        if (
            row.workload == "checkpoints" and row.role == "statestore" and row.operations >= 100
        ):  # below, heads count most
            yield row.details["uploaded_bytes"] / row.details["changed_bytes"], f"{row.system} {row.case}"


def _restored(rows: list[Row]) -> Figures:
    """Of the largest state, as of small files the time to open them counts most."""
    largest = max((row.operations for row in rows if row.workload == "recovery"), default=0)
    large = [row for row in rows if row.operations == largest]
    yield from _ratios(large, "recovery", "file copy (rocksdb)")


def _start_up(case: str) -> Callable[[list[Row]], Figures]:
    return lambda rows: (
        (row.seconds * 1000, row.case) for row in rows if row.workload == "start-up" and row.case == case
    )


TARGETS: list[tuple[Target, Callable[[list[Row]], Figures]]] = [
    (Target("keyed count: of the plain loop", 0.5), lambda rows: _per_event(rows, "plain loop")),
    (Target("keyed count: of bytewax", 10), lambda rows: _per_event(rows, "bytewax")),
    (Target("keyed count: of pathway", 1), lambda rows: _per_event(rows, "pathway")),
    (
        Target("keyed count: of pathway, start-up included", 1.5),
        lambda rows: _per_event(rows, "pathway", with_start_up=True),
    ),
    (Target("keyed count in record batches: of that by events", 5), _batches_of_events),
    (Target("keyed count in record batches: of pathway", 1), _batches_of_pathway),
    (Target("keyed count: peak memory, of pathway's", at_most=1), _memory),
    (Target("hot state operations: of the memory backend", 0.9), _hot),
    (Target("cold state operations: of raw rocksdict", 0.7), _cold("raw rocksdict")),
    (Target("cold state operations: of raw Redis", 0.7), _cold("raw redis")),
    (Target("log: of plain sequential writes", 0.7), lambda rows: _ratios(rows, "log", "plain file")),
    (Target("checkpoint: bytes uploaded, of those that changed", at_most=1.5), _uploaded),
    (Target("restore to rocksdb: of a file copy", 0.5), _restored),
    (Target("import statestore", at_most=100, unit="ms"), _start_up("import statestore, alone")),
    (Target("statestore --help", at_most=300, unit="ms"), _start_up("statestore --help")),
]


def judge(rows: Iterable[Row]) -> list[Judged]:
    """Every target of which something was measured, by its worst figure."""
    measured = [row for row in rows if not row.missing]
    found = []
    for target, figures in TARGETS:
        values = sorted(figures(measured), reverse=target.at_least is None)
        if values:
            found.append(Judged(target, *values[0]))
    return found
