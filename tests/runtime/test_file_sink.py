"""FileSink in several subtasks, in each format, in parts that are ended by size and time."""

from __future__ import annotations

import csv
import dataclasses
import errno
import gzip
import io
import itertools
import json
import logging
import os
import sys
from typing import ClassVar, NamedTuple

import msgspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from statestore.errors import ConfigError, FencedError, IncompatibleStateError, UnavailableError, UsageError
from statestore.testing.clock import FakeClock
from statestore_runtime import FileSink, SinkContext
from statestore_runtime.sinks import fencing, parquet, parts
from tests.runtime.sink_conformance import JobOfSinks, SinkConformance, numbered


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


def visible(folder):
    return sorted(path for path in folder.iterdir() if path.name.startswith("part-"))


def output(folder):
    return [event for part in visible(folder) for event in read_part(part)]


class EventSink(FileSink):
    """Takes pairs."""

    def write(self, batch):
        super().write([Event(*pair) for pair in batch])


class FileSinkConformance(SinkConformance):
    arguments: ClassVar = {}

    @pytest.fixture(autouse=True)
    def folders(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no crash of these takes the page cache with it
        caplog.set_level(logging.ERROR)
        self.places = (tmp_path / str(number) for number in itertools.count())

    def new_place(self):
        return next(self.places)

    def make(self, place):
        return EventSink(place, if_exists="append", **self.arguments)

    def output(self, place):
        return sorted(output(place))

    def expected(self, events):
        return sorted(events)

    def hidden(self, place):
        return [path.name for path in place.iterdir() if path.name.startswith(".part-")]

    def lose(self, place, name):
        (place / name).unlink()

    @pytest.mark.parametrize("after", [1, 2, 3])
    def test_a_restore_of_an_older_checkpoint_takes_output_back(self, place, job, after):
        job.deploy(2)
        job.checkpointed(10)
        early = job.checkpoint
        zombies = job.sinks
        for _ in range(2):
            job.checkpointed(10)
        job.process(10)
        late = job.barrier()
        transactions = job.uncommitted
        job.deploy(after, early)
        assert self.output(place) == self.expected(job.events[:10])
        for zombie, (transaction,) in zip(zombies, transactions, strict=True):
            with pytest.raises(FencedError):
                zombie.commit(transaction)
        assert late["position"] == 40
        job.run_to_the_end(10)
        assert self.output(place) == self.expected(job.events)
        assert len([path for path in place.iterdir() if path.name.startswith(".undone-")]) == 4


class TestJsonLines(FileSinkConformance):
    pass


class TestSmallCompressedCsv(FileSinkConformance):
    arguments: ClassVar = {"format": "csv", "compression": "gz", "roll_size": 1}


class TestSmallParquet(FileSinkConformance):
    arguments: ClassVar = {"format": "parquet", "compression": "zst", "roll_size": 20}


# Several subtasks
# Several subtasks


def opened(folder, attempt=1, subtask=0, parallelism=1, **arguments):
    sink = FileSink(folder, **arguments).for_subtask(subtask)
    sink.open(SinkContext("job", attempt, subtask, parallelism, clock=FakeClock()))
    return sink


def committed(sink, *batches):
    for batch in batches:
        sink.write(batch)
    sink.commit(sink.prepare())


def names(folder):
    return [path.name for path in visible(folder)]


def lines(folder):
    return [json.loads(line) for path in visible(folder) for line in path.read_text().splitlines()]


def test_names_of_several_subtasks(tmp_path):
    sinks = [opened(tmp_path, 1, subtask, 2) for subtask in range(2)]
    for sink in sinks:
        committed(sink, ["first"])
    committed(sinks[1], ["second"])
    assert names(tmp_path) == [
        "part-0001-000-000001.jsonl", "part-0001-001-000001.jsonl", "part-0001-001-000002.jsonl",
    ]  # fmt: skip


def test_subtasks_replace_an_earlier_run_together(tmp_path):
    committed(opened(tmp_path), ["old"])
    sinks = [opened(tmp_path, 2, subtask, 2, if_exists="replace") for subtask in (1, 0)]
    sinks[0].write(["new"])
    transactions = [sink.prepare() for sink in sinks]
    assert lines(tmp_path) == ["old"]
    for sink, transaction in zip(sinks, transactions, strict=True):
        sink.commit(transaction)
    assert names(tmp_path) == ["part-0002-001-000002.jsonl"]


def test_an_earlier_run_is_the_first_subtasks_business(tmp_path):
    committed(opened(tmp_path), ["old"])
    opened(tmp_path, 2, 1, 2).close()
    with pytest.raises(UsageError, match="holds 1 part files"):
        opened(tmp_path, 2, 0, 2)


def test_numbers_go_on_above_those_of_all_subtasks(tmp_path):
    job = JobOfSinks(lambda: EventSink(tmp_path), numbered(20))
    job.deploy(2)
    for event in job.events[:3]:
        job.sinks[1].write([event])
        job.complete(job.barrier())
    job.deploy(1)
    job.checkpointed(1)
    assert names(tmp_path)[-1] == "part-0002-000-000004.jsonl"
    job.close()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("part-0002-000-000005.jsonl", True),  # below what subtask 0 began with
        ("part-0009-003-000005.jsonl", True),  # of an earlier run, whose attempts were counted elsewhere
        ("part-0009-003-000006.jsonl", False),
        ("part-0002-003-000006.jsonl", False),
        ("part-0002-000-000007.jsonl", True),
        ("part-0002-000-000008.jsonl", False),
        ("part-0002-001-000004.jsonl", True),
        (
            "part-0002-001-000005.jsonl",
            False,
        ),  # subtask 1 began with 4: it had opened before an older part became visible
    ],
)
def test_what_a_checkpoint_knows(name, known):
    snapshots = {0: {"attempt": 2, "base": 6, "next": 8}, 1: {"attempt": 2, "base": 4, "next": 5}}
    assert parts.is_known(parts.VISIBLE_NAME.fullmatch(name), snapshots) is known


def prepared_by_two(folder):
    """A job whose checkpoint counts on a part of each of two subtasks, none of them committed."""
    job = JobOfSinks(lambda: EventSink(folder), numbered(10))
    job.deploy(2)
    job.process(10)
    job.checkpoint = job.barrier()
    return job


def test_a_part_that_gets_another_name_while_it_is_committed(tmp_path, monkeypatch):
    """Subtask 0 takes the older attempt's parts away from it while subtask 1 looks for one of them."""
    job = prepared_by_two(tmp_path)
    check_size, others = parts.check_size, []

    def checked(path, size):
        if not others:
            others.append(EventSink(tmp_path))
            others[0].open(SinkContext("job", 2, 0, 2, fresh=False, snapshots=job.checkpoint["snapshots"]))
        check_size(path, size)

    monkeypatch.setattr(parts, "check_size", checked)
    job.checkpoint["snapshots"] = {int(subtask): s for subtask, s in job.checkpoint["snapshots"].items()}
    sink = EventSink(tmp_path)
    transactions = tuple(job.checkpoint["transactions"])
    sink.open(SinkContext("job", 2, 1, 2, False, transactions, job.checkpoint["snapshots"]))
    assert sorted(output(tmp_path)) == sorted(job.events)
    job.close()


def test_an_owner_that_comes_while_a_zombie_commits(tmp_path, monkeypatch):
    """After the zombie has looked who the owner is, and before it renames."""
    job = prepared_by_two(tmp_path)
    (zombie, _), ((transaction,), _) = job.sinks, job.uncommitted
    found = zombie._folder._found

    def found_too_late(hidden):
        if job.attempt == 1:
            job.deploy(2, checkpoint=None)
        return found(hidden)

    monkeypatch.setattr(zombie._folder, "_found", found_too_late)
    with pytest.raises(FencedError, match="attempt 2 owns"):
        zombie.commit(transaction)
    assert output(tmp_path) == []
    job.close()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_zombie_prepares_nothing(tmp_path, moment):
    """A part that it begins after the owner has come is not renamed, so it must not get to a commit."""
    zombie = opened(tmp_path)
    if moment == "before":
        zombie.write([1])
    opened(tmp_path, attempt=2)
    if moment == "after":
        zombie.write([1])
    with pytest.raises(FencedError, match="attempt 2 owns"):
        zombie.prepare()
    zombie.close()


def test_an_owner_that_comes_while_a_zombie_opens(tmp_path, monkeypatch):
    claim = fencing.FolderFence.check
    newer = []

    def check(fence):
        if not newer:
            newer.append(FileSink(tmp_path))
            newer[0].open(SinkContext("job", 2))
        claim(fence)

    monkeypatch.setattr(fencing.FolderFence, "check", check)
    with pytest.raises(FencedError):
        opened(tmp_path)
    newer[0].write([1])
    newer[0].commit(newer[0].prepare())
    assert lines(tmp_path) == [1]


@pytest.mark.parametrize("snapshots", [{}, {0: None}, {0: [1, 2]}, {0: {"next": 3}}])
def test_snapshots_of_another_sink(tmp_path, snapshots):
    with pytest.raises(IncompatibleStateError, match="another sink has this sink's uid"):
        FileSink(tmp_path).open(SinkContext("job", 2, fresh=False, snapshots=snapshots))


# Parts that are ended by size and time


def test_parts_of_a_size(tmp_path):
    sink = opened(tmp_path, roll_size="1kb")
    for number in range(10):
        sink.write(["x" * 300, number])
    assert visible(tmp_path) == []
    sink.commit(sink.prepare())
    assert [path.stat().st_size for path in visible(tmp_path)] == [4 * 305, 4 * 305, 2 * 305]
    assert lines(tmp_path)[1::2] == list(range(10))
    assert sink.snapshot()["next"] == 4


def test_parts_of_an_age(tmp_path):
    clock = FakeClock()
    sink = FileSink(tmp_path, roll_interval="1min")
    sink.open(SinkContext("job", 1, clock=clock))
    for event, seconds in enumerate((0, 59, 1, 30, 29.5, 0.5)):
        clock.advance(seconds)
        sink.write([event])
    sink.commit(sink.prepare())
    assert [path.read_text().split() for path in visible(tmp_path)] == [["0", "1"], ["2", "3", "4"], ["5"]]


def test_parts_that_no_barrier_came_to_are_removed(tmp_path):
    sink = opened(tmp_path, roll_size=1)
    sink.write([1])
    sink.write([2])
    assert len(list(tmp_path.glob(".part-*"))) == 2
    sink.close()
    assert list(tmp_path.glob("*part-*")) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"roll_size": "large"}, "FileSink roll_size: 'large' is no size"),
        ({"roll_size": 0}, "roll_size is 0; it must be more than 0"),
        ({"roll_interval": "60"}, "roll_interval: '60' has no unit"),
        ({"compression": "xz"}, "compression is 'xz'; known: gz, zst"),
        ({"format": "parquet", "encoder": repr}, "encoder of one's own for lines, not for parquet"),
        ({"schema": pyarrow.schema([])}, "schema for parquet, not for jsonl"),
    ],
)
def test_arguments_that_can_not_be_served(tmp_path, arguments, problem):
    with pytest.raises(UsageError, match=problem):
        FileSink(tmp_path, **arguments)


# Compression and Parquet


@pytest.mark.parametrize("method", ["gz", "zst"])
def test_compressed_lines(tmp_path, method):
    batches = [[Event(n, 7) for n in range(1000)]] * 3
    committed(opened(tmp_path, compression=method), *batches)
    (part,) = visible(tmp_path)
    assert part.name == f"part-0001-000-000001.jsonl.{method}"
    assert read_part(part) == [(event.key, event.number) for batch in batches for event in batch]
    assert part.stat().st_size < 20_000


def test_a_parquet_file_has_the_schema_of_its_first_events(tmp_path):
    sink = opened(tmp_path, format="parquet")
    committed(sink, [{"a": 1}, {"a": 2, "b": "x"}], [{"a": None}], [{"a": 1.5}], [{"a": 2.5, "c": [1]}])
    tables = [pyarrow.parquet.read_table(path).to_pylist() for path in visible(tmp_path)]
    assert tables == [
        [{"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": None, "b": None}],
        [{"a": 1.5}],
        [{"a": 2.5, "c": [1]}],
    ]


def test_integers_that_a_column_of_floats_can_not_hold(tmp_path):
    committed(opened(tmp_path, format="parquet"), [{"a": 1.5}], [{"a": 2**53 + 1}])
    assert [pyarrow.parquet.read_table(path).to_pylist() for path in visible(tmp_path)] == [
        [{"a": 1.5}],
        [{"a": 2**53 + 1}],
    ]


class Pair(NamedTuple):
    key: int
    number: int


@dataclasses.dataclass
class Record:
    key: int
    number: float


NESTED = pyarrow.schema(
    [("key", pyarrow.int32()), ("number", pyarrow.float64()), ("deep", pyarrow.struct([("x", pyarrow.int64())]))]
)


def test_a_given_schema(tmp_path):
    batches = [[Event(1, 2)], [Pair(2, 3), Record(3, 4.5)], [{"deep": {"x": 1}}]]
    committed(opened(tmp_path, format="parquet", schema=NESTED), *batches)
    (part,) = visible(tmp_path)
    table = pyarrow.parquet.read_table(part)
    assert table.schema == NESTED
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (1, 2.0, None),
        (2, 3.0, None),
        (3, 4.5, None),
        (None, None, {"x": 1}),
    ]


REQUIRED = pyarrow.schema([pyarrow.field("key", pyarrow.int64(), nullable=False)])


@pytest.mark.parametrize(
    ("schema", "batch", "problem"),
    [
        (None, [1], "int is no Struct"),
        (None, [(1, 2)], "plain tuple has no names"),
        (None, [{}], "no fields"),
        (None, [{"a": 1}, {"a": "x"}], r"FileSink\(schema=\)"),
        (None, [{"a": 2**70}], "too large"),
        (None, [{"a": object()}], "object has no Arrow type"),
        (NESTED, [{"other": 1}], "no field 'other'"),
        (NESTED, [{"deep": {"x": 1, "y": 2}}], r"no field 'deep\.y'"),
        (NESTED, [{"key": 1.5}], "truncated"),
        (NESTED, [{"key": 2**40}], "not in range"),
        (REQUIRED, [{"key": None}], "'key' is missing or None"),
        (pyarrow.schema([("a", pyarrow.list_(NESTED.field("deep").type))]), [{"a": [{"y": 1}]}], r"no field 'a\.y'"),
    ],
)
def test_events_that_parquet_can_not_hold(tmp_path, schema, batch, problem):
    sink = opened(tmp_path, format="parquet", schema=schema)
    with pytest.raises(UsageError, match=f"can't be written as parquet: .*{problem}"):
        sink.write(batch)
    assert sink.prepare() is None


def test_parquet_is_written_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 10)
    committed(opened(tmp_path, format="parquet"), *[[Event(n, n), Event(n, n)] for n in range(8)])
    (part,) = visible(tmp_path)
    metadata = pyarrow.parquet.read_metadata(part)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [10, 6]
    assert metadata.row_group(0).column(0).compression == "SNAPPY"


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"install the extra 'statestore\[arrow\]'"):
        FileSink(tmp_path, "parquet")


# A disk that fails


@pytest.mark.parametrize("moment", ["roll", "prepare"])
def test_what_could_not_be_synced_is_never_committed(tmp_path, monkeypatch, moment):
    sink = opened(tmp_path, roll_size=1 if moment == "roll" else None)
    calls = iter([OSError(errno.EIO, "Input/output error")])

    def fsync(descriptor):
        for error in calls:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UnavailableError, match="Input/output error"):
        sink.write([1])
        sink.prepare()
    for again in (sink.prepare, lambda: sink.write([2])):
        with pytest.raises(UnavailableError, match="Input/output error"):
            again()
    sink.close()


def test_a_folder_that_was_removed(tmp_path):
    sink = opened(tmp_path / "out")
    sink.write([1])
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError, match="No such file"):
        sink.prepare()
    sink.close()
