"""Keyed count with PyFlink's DataStream API in its local mini cluster: state in RocksDB, an incremental checkpoint each second.

Updates go to files, as what Python collects from it comes one by one and slowly.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pyflink.common import Configuration, Encoder, Types, WatermarkStrategy
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import FileSink, FileSource, StreamFormat
from pyflink.datastream.state import ValueStateDescriptor

from benchmarks.job_run import JobRun, digest_of_sums

SETTINGS = {
    "state.backend.type": "rocksdb",
    "execution.checkpointing.incremental": "true",
    "execution.checkpointing.interval": "1 s",
    "execution.checkpointing.mode": "EXACTLY_ONCE",
    "parallelism.default": "1",
    "python.executable": sys.executable,
    "python.client.executable": sys.executable,
    "python.fn-execution.bundle.size": "10000",
    "restart-strategy.type": "none",
    "jobmanager.bind-host": "127.0.0.1",
    "taskmanager.bind-host": "127.0.0.1",
    "rest.address": "127.0.0.1",
    "rest.bind-address": "127.0.0.1",
}


class RunningSums(KeyedProcessFunction):
    """Count and sum of a key."""

    def open(self, runtime_context: RuntimeContext) -> None:
        self.sums = runtime_context.get_state(ValueStateDescriptor("sums", Types.TUPLE([Types.LONG(), Types.LONG()])))

    def process_element(self, value: tuple[str, int], ctx: KeyedProcessFunction.Context) -> Iterator[str]:
        count, total = self.sums.value() or (0, 0)
        count, total = count + 1, total + value[1]
        self.sums.update((count, total))
        yield f"{value[0]} {count} {total}"


def keyed_count(file: str, folder: str) -> JobRun:
    settings = Configuration()
    for name, setting in SETTINGS.items():
        settings.set_string(name, setting)
    settings.set_string("execution.checkpointing.dir", Path(folder, "checkpoints").as_uri())
    environment = StreamExecutionEnvironment.get_execution_environment(settings)
    source = FileSource.for_record_stream_format(StreamFormat.text_line_format(), file).build()
    pair = Types.TUPLE([Types.STRING(), Types.LONG()])

    def decode(line: str) -> tuple[str, int]:
        event = json.loads(line)
        return event["key"], event["value"]

    out = Path(folder, "updates")
    sink = FileSink.for_row_format(str(out), Encoder.simple_string_encoder()).build()
    (
        environment.from_source(source, WatermarkStrategy.no_watermarks(), "events")
        .map(decode, output_type=pair)
        .key_by(lambda event: event[0], key_type=Types.STRING())
        .process(RunningSums(), output_type=Types.STRING())
        .sink_to(sink)
    )
    begun = time.perf_counter()
    environment.execute("keyed-count")
    seconds = time.perf_counter() - begun
    files = [file for file in out.rglob("*") if file.is_file()]
    sunk = sum(file.read_bytes().count(b"\n") for file in files)
    return JobRun(sunk, seconds, lambda: digest_of_sums(_last(files).items()), {"updates": sunk})


def _last(files: list[Path]) -> dict[str, tuple[int, int]]:
    """The last update of each key, which is the one with the highest count."""
    last: dict[str, tuple[int, int]] = {}
    for file in files:
        for line in file.read_text().splitlines():
            key, count, total = line.split(" ")
            last[key] = max(last.get(key, (0, 0)), (int(count), int(total)))
    return last
