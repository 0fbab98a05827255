"""A job as a plain loop, with statestore on each backend, and with peers.

They run in turn, each in a process of its own, and all must have the same result. Each of ours is compared with the loop as it ran just
before: the machine may be twice as fast a minute later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench import Bench
from benchmarks.peers import PEERS
from benchmarks.process import Measured, MeasurementError
from benchmarks.results import Role, Row, compare

FLOOR = "plain loop"


@dataclass(frozen=True)
class System:
    """One that does the job."""

    name: str
    role: Role
    function: str
    backend: str = ""
    python: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    once: bool = False
    """Whether its one turn is enough: it takes long, or is a variation of another."""


def statestore(
    function: str, backends: tuple[str, ...], way: str = "", *, once: bool = False, **arguments: Any
) -> list[System]:
    """Our own job on each backend; `way` tells apart several of them."""
    suffix = f", {way}" if way else ""
    place = function if ":" in function else f"benchmarks.ours.jobs:{function}"
    return [
        System(f"statestore {backend}{suffix}", "statestore", place, backend, arguments=arguments, once=once)
        for backend in backends
    ]


def peers(names: tuple[str, ...]) -> list[System]:
    """Those that are asked for; one that is not installed says how to."""
    found = []
    for peer in (PEERS[name] for name in names):
        python = peer.python()
        missing = "" if python else f"not installed: {peer.how_to_install}"
        found.append(System(peer.name, "peer", peer.function, python=python, missing=missing, once=True))
    return found


def run(
    bench: Bench, workload: str, case: str, floor: str, systems: list[System], file: str, **arguments: Any
) -> Iterator[Row]:
    """Rows of one case, the floor's first.

    Raises
    ------
    MeasurementError
        Statestore has failed, or has another result than the floor. Peers may: their rows say so.
    """
    loop = System(FLOOR, "floor", f"benchmarks.floors.jobs:{floor}")
    taken: dict[str, list[Measured]] = {system.name: [] for system in systems}
    before: dict[str, list[Measured]] = {system.name: [] for system in systems}  # the loop's
    failed = {system.name: system.missing for system in systems if system.missing}
    for turn in range(bench.sizes.rounds):
        for number, system in enumerate(systems):
            if system.name in failed or (turn and system.once):
                continue
            if not number or (system.role == "statestore" and bench.sizes.thorough):
                before[system.name].append(_measured(bench, f"{workload} {case}", loop, file, arguments))
            try:
                taken[system.name].append(_measured(bench, f"{workload} {case}", system, file, arguments))
            except MeasurementError as error:
                if system.role != "peer":
                    raise
                failed[system.name] = f"failed: {error}"
    loops = [measured for some in before.values() for measured in some]
    loops = loops or [_measured(bench, f"{workload} {case}", loop, file, arguments)]
    expected = loops[0].value

    def row_of(system: System, measured: list[Measured]) -> Row:
        row = Row(workload, case, system.name, system.role, system.backend, missing=failed.get(system.name, ""))
        if not row.missing:
            _fill(row, min(measured, key=lambda each: float(each.value["seconds"])), expected)
        return row

    floor_row, rows = row_of(loop, loops), [row_of(system, taken[system.name]) for system in systems]
    others = [row for row in rows if row.role == "peer"]
    yield floor_row
    for row in rows:
        if row.role == "statestore":
            compare(row, [row_of(loop, before[row.system] or loops), *others])
        else:
            compare(row, [floor_row])
        yield row


def _measured(bench: Bench, text: str, system: System, file: str, arguments: dict[str, Any]) -> Measured:
    with bench.place() as place, bench.server(system.backend) as (url, servers):
        options: dict[str, Any] = {"file": file, **arguments, **system.arguments}
        if system.role == "statestore":
            options |= {"backend": system.backend, "redis_url": url}
        options["folder"] = str(place)
        if system.python:
            options["python"] = system.python
        return bench.measure(f"{text}: {system.name}", system.function, beside=servers, **options)


def _fill(row: Row, measured: Measured, expected: dict[str, Any]) -> None:
    value = measured.value
    for name in ("events", "result"):
        if value[name] != expected[name]:
            wrong = f"{row.system}: {name} are {value[name]}, not {expected[name]}"
            if row.role == "peer":
                row.missing = f"wrong result: {wrong}"
                return
            raise MeasurementError(f"{row.workload} {row.case}, {wrong}")
    row.operations, row.seconds = value["events"], value["seconds"]
    row.start_up_seconds = measured.wall_seconds - row.seconds
    row.cpu_seconds, row.peak_mib = measured.cpu_seconds, measured.peak_mib
    row.details = {key: each for key, each in value.items() if key not in ("events", "seconds")}
