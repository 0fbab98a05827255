"""FileSink: what is in a part of each format, and what can't be written into it."""

from __future__ import annotations

import csv
import dataclasses
import sys
from typing import NamedTuple

import msgspec
import pyarrow
import pyarrow.parquet
import pytest

from statestore.errors import (
    ConfigError,
    UsageError,
)
from statestore_runtime import FileSink
from statestore_runtime.sinks import parquet
from tests.runtime.sink_driving import (
    Event,
    barrier,
    events,
    names,
    opened,
    part_files,
    read_part,
    sink_in,
    written,
)


class Row(msgspec.Struct):
    id: int
    city: str | None = None


class Renamed(msgspec.Struct, rename="camel"):
    first_name: str


@dataclasses.dataclass
class Record:
    id: int
    city: str


class Pair(NamedTuple):
    id: int
    city: str


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ([Row(1, "rome"), Row(2)], [["id", "city"], ["1", "rome"], ["2", ""]]),
        ([Renamed("ann")], [["firstName"], ["ann"]]),
        ([Record(1, 'a "b", c\nd')], [["id", "city"], ["1", 'a "b", c\nd']]),
        ([{"id": 1, "city": None}, {"city": "b", "id": 2}], [["id", "city"], ["1", ""], ["2", "b"]]),
        ([(1, "a"), (2, "b")], [["1", "a"], ["2", "b"]]),
        ([Pair(1, "a")], [["id", "city"], ["1", "a"]]),
    ],
)
def test_csv(tmp_path, batch, expected):
    sink = opened(FileSink(tmp_path, "csv"))
    written(sink, batch, batch)
    sink.close()
    (name,) = names(tmp_path)
    assert name == "part-0001-000-000001.csv"
    with (tmp_path / name).open(newline="") as file:
        rows = list(csv.reader(file))
    body = expected[1:] if len(expected) == len(batch) + 1 else expected
    assert rows == expected + body


def test_each_csv_part_has_its_header(tmp_path):
    sink = opened(FileSink(tmp_path, "csv"))
    written(sink, [Row(1, "a")])
    written(sink, [Record(2, "b")])
    sink.close()
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["id,city\n1,a\n", "id,city\n2,b\n"]


def test_json_lines_of_anything(tmp_path):
    sink = opened(FileSink(tmp_path))
    written(sink, [Row(1, "a"), Record(2, "b"), Pair(3, "c"), {"x": [None]}, "text", 1.5])
    sink.close()
    expected = [{"id": 1, "city": "a"}, {"id": 2, "city": "b"}, [3, "c"], {"x": [None]}, "text", 1.5]
    assert events(tmp_path) == expected


def test_an_encoder_of_ones_own(tmp_path):
    sink = opened(FileSink(tmp_path, encoder=lambda batch: b"".join(b"<%d>" % event for event in batch)))
    written(sink, [1, 2], [3])
    sink.close()
    assert (tmp_path / "part-0001-000-000001.jsonl").read_bytes() == b"<1><2><3>"


@pytest.mark.parametrize(
    ("format", "batch"),
    [
        ("jsonl", [1, object()]),
        ("jsonl", [{1j: 2}]),
        ("csv", [1]),
        ("csv", ["text"]),
        ("csv", [Row(1), (1, 2)]),
        ("csv", [{"a": 1}, {"b": 2}]),
        ("csv", [{"a": 1}, {"a": 1, "b": 2}]),
    ],
)
def test_an_event_that_can_not_be_encoded(tmp_path, format, batch):
    sink = opened(FileSink(tmp_path, format))
    with pytest.raises(UsageError, match=f"an event can't be written as {format}"):
        sink.write(batch)
    assert barrier(sink)[0] is None
    sink.close()
    assert names(tmp_path) == []


def test_an_event_of_another_kind_in_a_later_batch(tmp_path):
    sink = opened(FileSink(tmp_path, "csv"))
    sink.write([Row(1)])
    with pytest.raises(UsageError, match="it is Record, those before are Row"):
        sink.write([Record(2, "b")])
    sink.close()


@pytest.mark.parametrize("arguments", [{"format": "xml"}, {"if_exists": "ignore"}])
def test_wrong_arguments(tmp_path, arguments):
    with pytest.raises(UsageError, match="known: "):
        FileSink(tmp_path, **arguments)


# Compression and Parquet


@pytest.mark.parametrize("method", ["gz", "zst"])
def test_compressed_lines(tmp_path, method):
    batches = [[Event(n, 7) for n in range(1000)]] * 3
    written(sink_in(tmp_path, compression=method), *batches)
    (part,) = part_files(tmp_path)
    assert part.name == f"part-0001-000-000001.jsonl.{method}"
    assert read_part(part) == [(event.key, event.number) for batch in batches for event in batch]
    assert part.stat().st_size < 20_000


def test_a_parquet_file_has_the_schema_of_its_first_events(tmp_path):
    sink = sink_in(tmp_path, format="parquet")
    written(sink, [{"a": 1}, {"a": 2, "b": "x"}], [{"a": None}], [{"a": 1.5}], [{"a": 2.5, "c": [1]}])
    tables = [pyarrow.parquet.read_table(path).to_pylist() for path in part_files(tmp_path)]
    assert tables == [
        [{"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": None, "b": None}],
        [{"a": 1.5}],
        [{"a": 2.5, "c": [1]}],
    ]


def test_integers_that_a_column_of_floats_can_not_hold(tmp_path):
    written(sink_in(tmp_path, format="parquet"), [{"a": 1.5}], [{"a": 2**53 + 1}])
    assert [pyarrow.parquet.read_table(path).to_pylist() for path in part_files(tmp_path)] == [
        [{"a": 1.5}],
        [{"a": 2**53 + 1}],
    ]


class KeyedPair(NamedTuple):
    key: int
    number: int


@dataclasses.dataclass
class KeyedRecord:
    key: int
    number: float


NESTED = pyarrow.schema(
    [("key", pyarrow.int32()), ("number", pyarrow.float64()), ("deep", pyarrow.struct([("x", pyarrow.int64())]))]
)


def test_a_given_schema(tmp_path):
    batches = [[Event(1, 2)], [KeyedPair(2, 3), KeyedRecord(3, 4.5)], [{"deep": {"x": 1}}]]
    written(sink_in(tmp_path, format="parquet", schema=NESTED), *batches)
    (part,) = part_files(tmp_path)
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
        (None, [{"a": {}}], "struct type 'a' with no child field"),
        (None, [{"a": [{}]}], "with no child field"),
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
    sink = sink_in(tmp_path, format="parquet", schema=schema)
    with pytest.raises(UsageError, match=f"can't be written as parquet: .*{problem}"):
        sink.write(batch)
    assert sink.prepare() is None


def test_events_after_one_that_parquet_can_not_hold(tmp_path):
    """As when the job skips what fails."""
    sink = sink_in(tmp_path, format="parquet")
    with pytest.raises(UsageError, match="no child field"):
        sink.write([{"a": {}}])
    written(sink, [{"a": {"b": 1}}])
    (part,) = part_files(tmp_path)
    assert pyarrow.parquet.read_table(part).to_pylist() == [{"a": {"b": 1}}]


def test_parquet_is_written_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 10)
    written(sink_in(tmp_path, format="parquet"), *[[Event(n, n), Event(n, n)] for n in range(8)])
    (part,) = part_files(tmp_path)
    metadata = pyarrow.parquet.read_metadata(part)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [10, 6]
    assert metadata.row_group(0).column(0).compression == "SNAPPY"


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"install the extra 'statestore\[arrow\]'"):
        FileSink(tmp_path, "parquet")
