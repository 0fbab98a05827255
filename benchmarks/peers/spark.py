"""Keyed count with Spark Structured Streaming in local mode: state in RocksDB, a checkpoint for each micro-batch.

The file is cut into ten, and each is a micro-batch; so a sink gets each key's updates of a tenth together. Spark's checkpoints come by
batches, not by time.
"""

from __future__ import annotations

import time
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession, functions

from benchmarks.job_run import JobRun, digest

PARTS = 10
PROVIDER = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.streaming.stateStore.providerClass": PROVIDER,
}


def cut(file: str, folder: Path) -> None:
    """Divide a file of lines into parts of about the same size."""
    lines = Path(file).read_bytes().splitlines(keepends=True)
    step = -(-len(lines) // PARTS)
    for number in range(PARTS):
        (folder / f"part-{number:02}.jsonl").write_bytes(b"".join(lines[number * step : (number + 1) * step]))


def keyed_count(file: str, folder: str) -> JobRun:
    place = Path(folder)
    (place / "events").mkdir()
    cut(file, place / "events")
    builder = SparkSession.builder.master("local[*]").appName("keyed-count")
    for name, setting in SETTINGS.items():
        builder = builder.config(name, setting)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    last: dict[str, tuple[int, int]] = {}
    sunk = 0

    def took(batch: DataFrame, number: int) -> None:
        nonlocal sunk
        updates = batch.toArrow().to_pydict()
        sunk += len(updates["key"])
        last.update(zip(updates["key"], zip(updates["count"], updates["total"], strict=True), strict=True))

    begun = time.perf_counter()
    reader = session.readStream.schema("key string, value long, ts long").option("maxFilesPerTrigger", 1)
    events = reader.json(str(place / "events"))
    counts = functions.count("*").alias("count"), functions.sum("value").alias("total")
    query = (
        events.groupBy("key").agg(*counts).writeStream.outputMode("update").foreachBatch(took)
        .option("checkpointLocation", str(place / "checkpoints")).trigger(availableNow=True).start()
    )  # fmt: skip
    query.awaitTermination()
    seconds = time.perf_counter() - begun
    counted = sum(count for count, _ in last.values())

    def result() -> str:
        session.stop()
        return digest((key, *sums) for key, sums in last.items())

    return JobRun(counted, seconds, result, {"updates": sunk})
