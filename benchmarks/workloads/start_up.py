"""How long `import statestore` and `statestore --help` take, the best of several fresh processes."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.results import Row

NAME = "start-up"
STARTED = {"python": "python -c pass", "import": "import statestore, alone", "help": "statestore --help"}


def run(bench: Bench) -> Iterator[Row]:
    for what, case in STARTED.items():
        value = bench.measure(f"{NAME}: {case}", "benchmarks.ours.start_up:started", what=what).value
        system = "python" if what == "python" else "statestore"
        row = Row(NAME, case, system, "floor" if what == "python" else "statestore", operations=1, unit="times")
        row.seconds, row.peak_mib = value["seconds"], value["peak_mib"]
        yield row
