"""FileSink: parts that are ended by size and time, and disks that fail."""

from __future__ import annotations

import errno
import os

import pyarrow
import pyarrow.parquet
import pytest

from statestore.errors import (
    UnavailableError,
    UsageError,
)
from statestore.testing.clock import FakeClock
from statestore_runtime import FileSink, SinkContext
from tests.runtime.sink_driving import events, part_files, sink_in, written


def test_parts_of_a_size(tmp_path):
    sink = sink_in(tmp_path, roll_size="1kb")
    for number in range(10):
        sink.write(["x" * 300, number])
    assert part_files(tmp_path) == []
    sink.commit(sink.prepare())
    assert [path.stat().st_size for path in part_files(tmp_path)] == [4 * 305, 4 * 305, 2 * 305]
    assert events(tmp_path)[1::2] == list(range(10))
    assert sink.snapshot()["next"] == 4


def test_parts_of_an_age(tmp_path):
    clock = FakeClock()
    sink = FileSink(tmp_path, roll_interval="1min")
    sink.open(SinkContext("job", 1, clock=clock))
    for event, seconds in enumerate((0, 59, 1, 30, 29.5, 0.5)):
        clock.advance(seconds)
        sink.write([event])
    sink.commit(sink.prepare())
    assert [path.read_text().split() for path in part_files(tmp_path)] == [["0", "1"], ["2", "3", "4"], ["5"]]


def test_parts_that_no_barrier_came_to_are_removed(tmp_path):
    sink = sink_in(tmp_path, roll_size=1)
    sink.write([1])
    sink.write([2])
    assert len(list(tmp_path.glob(".part-*"))) == 2
    sink.close()
    assert list(tmp_path.glob("*part-*")) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"dir": "s3://bucket/out"}, "FileSink dir is 's3://bucket/out': it must be a folder of a file system"),
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
        FileSink(**{"dir": tmp_path} | arguments)


def test_a_url_of_the_local_disk(tmp_path):
    written(sink_in(f"file://{tmp_path}/out"), [1])
    assert events(tmp_path / "out") == [1]


@pytest.mark.parametrize("moment", ["roll", "prepare"])
def test_what_could_not_be_synced_is_never_committed(tmp_path, monkeypatch, moment):
    sink = sink_in(tmp_path, roll_size=1 if moment == "roll" else None)
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
    sink = sink_in(tmp_path / "out")
    sink.write([1])
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError, match="No such file"):
        sink.prepare()
    sink.close()
