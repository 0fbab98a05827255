"""What is measured. A workload is a module with a name, and a function that yields rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.bench import Bench
from benchmarks.results import Row
from benchmarks.workloads import (
    checkpoints,
    flights,
    keyed_count,
    log,
    memory,
    parallelism,
    recovery,
    start_up,
    state_operations,
    windows,
)

MODULES = (
    keyed_count,
    windows,
    flights,
    state_operations,
    log,
    checkpoints,
    recovery,
    memory,
    parallelism,
    start_up,
)
SUMMARIES = {module.NAME: (module.__doc__ or "").strip() for module in MODULES}
WORKLOADS: dict[str, Callable[[Bench], Iterator[Row]]] = {module.NAME: module.run for module in MODULES}
