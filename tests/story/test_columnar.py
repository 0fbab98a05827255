"""Record batches: every row counts exactly once, whatever happens between two of them, on all backends, with one worker or several."""

from __future__ import annotations

import random
from collections import defaultdict

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from statestore.config import load_config
from statestore_runtime import Count, FileSink, FileSource, Job, Source, Sum, UserCodeError
from statestore_runtime.sources import SplitReader
from statestore_runtime.testing import CHECKPOINT, CRASH, EOF, RESCALE, RESTART
from tests.conftest import seeds
from tests.story import jobs
from tests.story.jobs import events_of, pairs

SCHEMA = pa.schema([("key", pa.string()), ("value", pa.int64())])


class Batched(Source):
    """The events of another source, numbers, as record batches of keys and values."""

    def __init__(self, source):
        self.source = source
        self.discovery_interval, self.is_concurrent = source.discovery_interval, source.is_concurrent

    def record_batches(self, batch_rows):
        return self

    def discover(self, known):
        return self.source.discover(known)

    def read(self, split, position, context):
        return Reader(self.source.read(split, position, context))


class Reader(SplitReader):
    def __init__(self, reader):
        self.reader = reader
        self.position, self.close = reader.position, reader.close

    def position(self):
        return self.reader.position()

    def next_batch(self):
        events = self.reader.next_batch()
        if events is None:
            return None
        return pa.record_batch([[f"k{event % 7}" for event in events], events], schema=SCHEMA)


def totals(source, sink):
    job = Job("story")
    rows = job.record_batches(Batched(source)).filter(pc.field("value") != 5)
    rows.key_by("key", str).aggregate(Count(), Sum("value")).sink(sink)
    return job


def check(found, events):
    """Of each key there are results in order, and the last one is of all its events."""
    expected = defaultdict(list)
    for event in events:
        if event != 5:
            expected[f"k{event % 7}"].append(event)
    by_key = defaultdict(list)
    for key, result in found:
        by_key[key].append(result)
    assert by_key.keys() == expected.keys()
    for key, results in by_key.items():
        counts = [count for count, _ in results]
        assert counts == sorted(set(counts))
        assert results[-1] == (len(expected[key]), sum(expected[key]))


SCRIPTS = [
    [1, 2, CRASH, 3],
    [CRASH, 1, 8, 3],
    [1, 8, CHECKPOINT, CRASH, 3, 15],
    [1, 2, CHECKPOINT, 3, CRASH, 4, 5, CRASH, 6],
    [1, CHECKPOINT, 2, RESTART, 3, CHECKPOINT, 4, 8, 15, RESTART, 22],
    [1, 8, RESCALE(2), 15, 2, 9, CRASH, 3, 10, RESCALE(3), 4, CRASH, 11],
    [1, 2, 3, EOF, 4, 5, CRASH, 6, EOF, EOF, 7],
    [*range(20), CHECKPOINT, *range(20, 40), CRASH, *range(40, 60), CHECKPOINT, CRASH, *range(60, 80)],
    [*range(20), CHECKPOINT, *range(20), RESCALE(4), *range(20), CRASH, *range(20), RESCALE(1), CRASH, *range(20)],
    [],
]


@pytest.mark.parametrize(("backend", "parallelism", "script"), pairs(SCRIPTS))
def test_counts_and_sums(redis_url, backend, parallelism, script):
    harness = jobs.harness(totals, redis_url, backend, parallelism, batch_size=3)
    check(harness.run(script), events_of(script))
    assert harness.finished.events == len(events_of(script))


@pytest.mark.parametrize(("backend", "parallelism", "seed"), pairs(seeds(8)))
def test_at_random(monkeypatch, redis_url, backend, parallelism, seed):
    jobs.UnevenWorkers(monkeypatch, seed)
    rng = random.Random(seed)
    markers, script = [CHECKPOINT, CHECKPOINT, CRASH, RESTART, RESCALE(1), RESCALE(2), RESCALE(3), EOF], []
    for _ in range(60):
        script.append(rng.randrange(100))
        if rng.random() < 0.12:
            script.append(rng.choice(markers))
    settings = {"restart.attempts": 30, "job.on-error": ("fail", "skip")[seed // 4 % 2]}
    options = {"splits": 1 + seed % 2, "batch_size": 1 + seed % 5, "settings": settings}
    harness = jobs.harness(totals, redis_url, backend, parallelism, **options)
    check(harness.run(script), events_of(script))


class Event(msgspec.Struct):
    key: str
    value: int


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_rows", [7, 1000])
def test_a_file_is_gone_on_with_between_two_batches(tmp_path, batch_rows, seed):
    """The function fails now and then; the next run goes on from the last checkpoint."""
    rng = random.Random(seed)
    events = [Event(f"k{rng.randrange(5)}", number) for number in range(300)]
    lines = [msgspec.json.encode(event) for event in events]
    lines[100:100] = [b"bad"]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines))
    fails = sorted(rng.sample(range(300), 4))

    def failing(batch):
        if fails and fails[0] in batch["value"].to_pylist():
            fails.pop(0)
            raise ValueError("unlucky")
        return batch

    job = Job("file")
    rows = job.record_batches(FileSource(tmp_path / "events.jsonl", type=Event, on_error="skip"), batch_rows=batch_rows)
    counted = rows.map(failing).key_by("key", str).aggregate(Count(), Sum("value"))
    counted.sink(FileSink(tmp_path / "out"))
    settings = ["state.backend=rocksdb", "checkpointing.interval=1ms", f"state.dir={tmp_path / 'state'}"]
    restore, finished, runs = "none", None, 0
    while finished is None:
        runs += 1
        try:
            finished = job.run(load_config(overrides=settings), restore=restore)
        except UserCodeError:
            restore = "latest"
    assert (finished.events, finished.bad_records, runs) == (300, 1, 5)
    parts = sorted((tmp_path / "out").glob("part-*"))
    found = [msgspec.json.decode(line) for part in parts for line in part.read_bytes().splitlines()]
    by_key = defaultdict(list)
    for event in events:
        by_key[event.key].append(event.value)
    assert {key: tuple(result) for key, result in sorted(found, key=lambda row: row[1][0])} == {
        key: (len(values), sum(values)) for key, values in by_key.items()
    }
    for key in by_key:
        counts = [count for name, (count, _) in found if name == key]
        assert sorted(counts) == sorted(set(counts))
