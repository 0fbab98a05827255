"""Drives one sink as a worker would, and looks at what a FileSink has written."""

from __future__ import annotations

import csv
import gzip
import io
import json

import msgspec
import pyarrow.parquet
import zstandard

from statestore.testing.clock import FakeClock
from statestore_runtime import FileSink, SinkContext


def fresh(attempt=1, job="job", **arguments):
    return SinkContext(job, attempt, **arguments)


def restored(attempt, transactions, *snapshots, job="job", **arguments):
    """As a worker makes it from a checkpoint's JSON; one snapshot for each subtask that there was."""
    transactions, snapshots = json.loads(json.dumps([transactions, snapshots]))
    transactions, snapshots = tuple(transactions), dict(enumerate(snapshots))
    return SinkContext(job, attempt, fresh=False, transactions=transactions, snapshots=snapshots, **arguments)


def opened(sink, context=None):
    sink.open(context or fresh())
    return sink


def barrier(sink):
    """Transaction and snapshot, as they go into a checkpoint."""
    return sink.prepare(), sink.snapshot()


def written(sink, *batches):
    """One committed part with these batches."""
    for batch in batches:
        sink.write(batch)
    transaction, snapshot = barrier(sink)
    sink.commit(transaction)
    return transaction, snapshot


def snapshot_of(next_number):
    return {"attempt": 1, "base": 1, "next": next_number}


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".owner"))


def visible(folder):
    return [name for name in names(folder) if not name.startswith(".")]


def events(folder):
    return [json.loads(line) for name in visible(folder) for line in (folder / name).read_text().splitlines()]


def sink_in(folder, attempt=1, subtask=0, parallelism=1, **arguments):
    sink = FileSink(folder, **arguments).for_subtask(subtask)
    sink.open(SinkContext("job", attempt, subtask, parallelism, clock=FakeClock()))
    return sink


# Parts of pairs


class Event(msgspec.Struct):
    key: int
    number: int


def read_part(path):
    """Pairs of key and number."""
    if path.suffix == ".parquet":
        return [(row["key"], row["number"]) for row in pyarrow.parquet.read_table(path).to_pylist()]
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    if ".csv" in path.name:
        return [(int(key), int(number)) for key, number in list(csv.reader(data.decode().splitlines()))[1:]]
    return [(event["key"], event["number"]) for event in map(json.loads, data.decode().splitlines())]


def part_files(folder):
    return sorted(path for path in folder.iterdir() if path.name.startswith("part-"))


def output(folder):
    return [event for part in part_files(folder) for event in read_part(part)]


class EventSink(FileSink):
    """Takes pairs."""

    def write(self, batch):
        super().write([Event(*pair) for pair in batch])
