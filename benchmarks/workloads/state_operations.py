"""Operations on keyed state by the names of Flink's benchmarks, with all of it in the cache, and with ten times as much as the cache takes.

Values have 100 random bytes, lists and maps ten of them. Hot operations are compared with those on the memory backend, and these
with a dict; cold ones with what the backend is made of.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from benchmarks.bench import Bench
from benchmarks.process import Measured
from benchmarks.results import Role, Row, compare, in_order_of_cases

NAME = "state-operations"
KINDS = ("value", "list", "map")
RAW = {"rocksdb": "raw rocksdict", "redis": "raw redis"}
FOR_SCALE = ("redis MGET", "sqlite", "lmdb")


def run(bench: Bench) -> Iterator[Row]:
    rows: dict[tuple[str, str], Row] = {}
    missing = []
    for _ in range(bench.sizes.rounds):
        # One kind after the other, so that what is compared is measured within seconds.
        for kinds in [(kind,) for kind in KINDS] if bench.sizes.thorough else [KINDS]:
            _keep_best(rows, _dict(bench, kinds))
            for backend in bench.backends:
                _keep_best(rows, _statestore(bench, kinds, backend))
        for name in (*[RAW[backend] for backend in bench.backends if backend in RAW], *FOR_SCALE):
            if "redis" in name and "redis" not in bench.backends:
                continue
            if name == "lmdb" and importlib.util.find_spec("lmdb") is None:
                missing.append(Row(NAME, "", name, "floor", missing="not installed: pip install lmdb"))
                continue
            _keep_best(rows, _raw(bench, name))
    for (case, system), row in rows.items():
        if row.role == "statestore":
            raw = RAW.get(row.backend, "")
            names = [raw, "statestore memory", "dict"] if "cold" in case else ["statestore memory", "dict", raw]
            compare(row, [rows[case, name] for name in (*names, *FOR_SCALE) if (case, name) in rows and name != system])
    yield from in_order_of_cases(rows.values())
    yield from missing[:1]


def _keep_best(rows: dict[tuple[str, str], Row], new: Iterator[Row]) -> None:
    for row in new:
        held = rows.setdefault((row.case, row.system), row)
        if row.seconds < held.seconds:
            rows[row.case, row.system] = row


def _rows(system: str, role: Role, backend: str, measured: Measured) -> Iterator[Row]:
    for case, (count, seconds) in measured.value.items():
        row = Row(NAME, case, system, role, backend, operations=count, unit="operations", seconds=seconds)
        row.peak_mib = measured.peak_mib
        yield row


def _dict(bench: Bench, kinds: tuple[str, ...]) -> Iterator[Row]:
    function = "benchmarks.floors.state_operations:state_operations"
    yield from _rows("dict", "floor", "", bench.measure(f"{NAME}: dict", function, kinds=kinds, count=bench.sizes.keys))


def _raw(bench: Bench, name: str) -> Iterator[Row]:
    with bench.place() as place, bench.server("redis" if "redis" in name else "") as (url, servers):
        arguments: dict[str, Any] = {"name": name, "count": bench.sizes.keys, "folder": str(place), "redis_url": url}
        function = "benchmarks.floors.raw_stores:value_operations"
        yield from _rows(name, "floor", "", bench.measure(f"{NAME}: {name}", function, beside=servers, **arguments))


def _statestore(bench: Bench, kinds: tuple[str, ...], backend: str) -> Iterator[Row]:
    with bench.place() as place, bench.server(backend) as (url, servers):
        where = {"backend": backend, "count": bench.sizes.keys, "folder": str(place), "redis_url": url}
        function = "benchmarks.ours.state_operations:state_operations"
        measured = bench.measure(f"{NAME}: {backend}", function, beside=servers, kinds=kinds, **where)
        yield from _rows(f"statestore {backend}", "statestore", backend, measured)
