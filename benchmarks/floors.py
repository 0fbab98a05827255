"""The least that the same work costs without statestore: a dict, raw RocksDB, a raw Redis pipeline, a plain loop."""

from __future__ import annotations

import csv
import io
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

BATCH = 1000
Timed = tuple[int, float]
"""Operations, and the seconds they took."""


def timed(count: int, work: Callable[[], object]) -> Timed:
    """`count` operations done by `work`."""
    begun = time.perf_counter()
    work()
    return count, time.perf_counter() - begun


def batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


# State operations: keys and values are bytes already, and nothing is logged.


def dict_operations(keys: list[str], value: bytes) -> dict[str, Timed]:
    held: dict[str, bytes] = {}

    def add() -> None:
        for key in keys:
            held[key] = value

    def get() -> None:
        for key in keys:
            held[key]

    return {
        "valueAdd": timed(len(keys), add),
        "valueUpdate": timed(len(keys), add),
        "valueGet": timed(len(keys), get),
        "valueGetCold": timed(len(keys), get),
    }


def rocksdict_operations(keys: list[str], value: bytes, folder: Path) -> dict[str, Timed]:
    """Write batches with RocksDB's own log off, and multi-gets."""
    from rocksdict import Options, Rdict, WriteBatch, WriteOptions

    write: Any = WriteOptions()
    write.disable_wal = True
    encoded = [key.encode() for key in keys]
    database = Rdict(str(folder), options=Options(raw_mode=True))

    def put() -> None:
        for part in batches(encoded):
            batch = WriteBatch(raw_mode=True)
            for key in part:
                batch.put(key, value)
            database.write(batch, write)
        database.flush()

    def get() -> None:
        for part in batches(encoded):
            database[list(part)]

    try:
        return {
            "valueAdd": timed(len(keys), put),
            "valueUpdate": timed(len(keys), put),
            "valueGetCold": timed(len(keys), get),
        }
    finally:
        database.close()


def redis_operations(keys: list[str], value: bytes, url: str) -> dict[str, Timed]:
    """Pipelines of SET, and MGET."""
    import redis

    client = redis.Redis.from_url(url)

    def put() -> None:
        for part in batches(keys):
            pipeline = client.pipeline(transaction=False)
            for key in part:
                pipeline.set(f"raw:{key}", value)
            pipeline.execute()

    def get() -> None:
        for part in batches(keys):
            client.mget([f"raw:{key}" for key in part])

    try:
        return {
            "valueAdd": timed(len(keys), put),
            "valueUpdate": timed(len(keys), put),
            "valueGetCold": timed(len(keys), get),
        }
    finally:
        client.close()


# Jobs: the same file, the same result, nothing that survives.


class Event(msgspec.Struct):
    key: str
    value: int
    ts: int


@contextmanager
def _sink(folder: Path) -> Iterator[Any]:
    with (folder / "floor.jsonl").open("wb") as file:
        yield file


def keyed_count(file: Path) -> Timed:
    """Count and sum per key of JSON lines, in a dict; every update to a counting sink."""
    counted, sunk = 0, 0
    sums: dict[str, tuple[int, int]] = {}
    decode = msgspec.json.Decoder(Event).decode
    begun = time.perf_counter()
    with file.open("rb") as lines:
        for line in lines:
            event = decode(line)
            count, total = sums.get(event.key, (0, 0))
            sums[event.key] = count + 1, total + event.value
            counted += 1
            sunk += 1
    return counted, time.perf_counter() - begun


def flights(file: Path, folder: Path) -> Timed:
    """The flights job with the csv module and a dict."""
    encode = msgspec.json.Encoder().encode
    held: dict[str, list[Any]] = {}
    counted = 0
    begun = time.perf_counter()
    with zipfile.ZipFile(file) as archive, archive.open("flights.csv") as raw, _sink(folder) as out:
        rows = csv.reader(io.TextIOWrapper(raw, newline=""))
        header = next(rows)
        tail, delay = header.index("tailnum"), header.index("dep_delay")
        for row in rows:
            name = row[tail] if row[tail] not in ("", "NA") else "unknown"
            seen = held.setdefault(name, [0, 0, 0.0, None])
            seen[0] += 1
            if row[delay] not in ("", "NA"):
                minutes = float(row[delay])
                seen[1] += 1
                seen[2] += minutes
                seen[3] = minutes if seen[3] is None else max(seen[3], minutes)
            mean = seen[2] / seen[1] if seen[1] else None
            out.write(encode({"tailnum": name, "flights": seen[0], "mean": mean, "worst": seen[3]}) + b"\n")
            counted += 1
    return counted, time.perf_counter() - begun
