"""Keyed count with Bytewax: recovery on, a snapshot of what has changed each second."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import msgspec
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from benchmarks.job_run import JobRun, digest_of_sums

LINES_PER_BATCH = 1000


class Event(msgspec.Struct):
    key: str
    value: int
    ts: int


def keyed_count(file: str, folder: str, recovery: bool = True) -> JobRun:
    last: dict[str, tuple[int, int]] = {}
    sunk = 0
    parse = msgspec.json.Decoder(Event).decode

    class Partition(StatelessSinkPartition[Any]):
        def write_batch(self, items: list[Any]) -> None:
            nonlocal sunk
            sunk += len(items)
            last.update(items)

    class Counting(DynamicSink[Any]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Partition:
            return Partition()

    def decode(lines: list[str]) -> list[tuple[str, int]]:
        return [(event.key, event.value) for event in map(parse, lines)]

    def add(sums: tuple[int, int] | None, value: int) -> tuple[tuple[int, int], tuple[int, int]]:
        count, total = sums or (0, 0)
        sums = count + 1, total + value
        return sums, sums

    flow = Dataflow("keyed_count")
    lines = op.input("lines", flow, FileSource(file, batch_size=LINES_PER_BATCH))
    pairs = op.flat_map_batch("decode", lines, decode)
    op.output("out", op.stateful_map("count", pairs, add), Counting())

    place = Path(folder) / "recovery"
    place.mkdir()
    begun = time.perf_counter()
    init_db_dir(place, 1)
    cli_main(flow, epoch_interval=timedelta(seconds=1), recovery_config=RecoveryConfig(place) if recovery else None)
    return JobRun(sunk, time.perf_counter() - begun, lambda: digest_of_sums(last.items()), {"updates": sunk})
