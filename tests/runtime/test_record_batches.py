"""Files read as Arrow record batches: the same rows, the same bad records and the same positions as event by event."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import itertools
import json
import math
import sys
from typing import Annotated

import msgspec
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from statestore.errors import ConfigError, UsageError
from statestore_runtime import Job
from statestore_runtime.sources import BadRecordError, FileSource, SourceContext
from statestore_runtime.sources.files import blocks
from tests.runtime.batch_reading import GOOD, HEADER, Event, check_same, in_batches, rows, rows_of, told
from tests.runtime.source_files import zipped
from tests.runtime.source_reading import Reading


@dataclasses.dataclass
class Pair:
    key: str
    value: int | None


EVENTS = [Event(f"user-{n % 7}", n * n - 20, n / 4, n % 3 == 0) for n in range(60)]


@pytest.fixture(params=["lines", "blocks"])
def cuts(request, monkeypatch):
    """Blocks of a few lines, and of a few bytes."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    if request.param == "blocks":
        monkeypatch.setattr(blocks, "LINES_COUNTED", 0)


def json_lines(values):
    return b"".join(msgspec.json.encode(value) + b"\n" for value in values)


def spaced(values):
    return "".join(json.dumps(msgspec.to_builtins(value)) + "\n" for value in values).encode()


def csv_of(values):
    lines = [f"{e.key},{e.value},{'' if e.price is None else e.price},{str(e.is_new).lower()}\n" for e in values]
    return ("key,value,price,is_new\n" + "".join(lines)).encode()


def table_of(values):
    return pa.Table.from_pylist(rows_of(values))


WRITERS = {
    "a.jsonl": lambda path, events: path.write_bytes(json_lines(events)),
    "b.jsonl": lambda path, events: path.write_bytes(spaced(events)),
    "c.jsonl.gz": lambda path, events: path.write_bytes(gzip.compress(json_lines(events))),
    "d.jsonl.zst": lambda path, events: path.write_bytes(zstandard.compress(json_lines(events))),
    "e.jsonl.zip": lambda path, events: zipped(path, json_lines(events)),
    "f.csv": lambda path, events: path.write_bytes(csv_of(events)),
    "g.csv.gz": lambda path, events: path.write_bytes(gzip.compress(csv_of(events))),
    "h.parquet": lambda path, events: parquet.write_table(table_of(events), path, row_group_size=13),
    "i.arrow": lambda path, events: _write_arrow(pa.ipc.new_file, path, events),
    "j.arrows": lambda path, events: _write_arrow(pa.ipc.new_stream, path, events),
}


def _write_arrow(make, path, events):
    table = table_of(events)
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=13)


@pytest.mark.parametrize("name", WRITERS)
def test_every_cut(tmp_path, cuts, name):
    WRITERS[name](tmp_path / name, EVENTS)
    for size, next_size in itertools.product((1, 7, 1000), (4, 1000)):
        for cut in range(0, len(EVENTS) // size + 2, 5):
            reading, found = Reading(in_batches(tmp_path / name, size)), []
            for _ in range(cut):
                batch = reading.next_batch()
                found += batch.to_pylist() if batch else []
            position = json.loads(json.dumps(reading.position()))
            reading.close()
            assert found + rows(in_batches(tmp_path / name, next_size), position) == rows_of(EVENTS)


@pytest.mark.parametrize("name", WRITERS)
def test_a_position_is_good_for_both_ways_of_reading(tmp_path, name):
    WRITERS[name](tmp_path / name, EVENTS)
    with contextlib.closing(Reading(in_batches(tmp_path / name, 10))) as reading:
        found = reading.next_batch().to_pylist()
        position = reading.position()
    assert 0 < len(found) <= 13
    with contextlib.closing(Reading(FileSource(tmp_path / name, type=Event), position)) as reading:
        while (batch := reading.next_batch()) is not None:
            found += rows_of(batch)
    assert found == rows_of(EVENTS)


def test_columns_have_the_types_of_the_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(EVENTS))
    with contextlib.closing(Reading(in_batches(path))) as reading:
        schema = reading.next_batch().schema
    assert schema == pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("value", pa.int64(), nullable=False),
            ("price", pa.float64()),
            pa.field("is_new", pa.bool_(), nullable=False),
        ]
    )


# Types


class Open(msgspec.Struct):
    key: str
    value: int


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    value: int


class Positive(msgspec.Struct):
    key: str
    value: Annotated[int, msgspec.Meta(gt=0)]


class Checked(msgspec.Struct):
    key: str
    value: int

    def __post_init__(self):
        if self.value == 2:
            raise ValueError("not 2")


class Renamed(msgspec.Struct, rename={"name": "key"}):
    value: int
    name: str = "nobody"


class Bytes(msgspec.Struct):
    key: bytes
    value: int = 0


@pytest.mark.parametrize("declared", [Open, Closed, Positive, Checked, Renamed, Pair, Bytes])
def test_types_with_rules_of_their_own(tmp_path, declared):
    """Further fields, conditions, checks, other names, base64."""
    path = tmp_path / "a.jsonl"
    texts = [f'{{"key":"abcd","value":{value}}}' for value in (1, 2, -3)]
    more = ['{"key":"abcd","value":4,"x":12}', '{"key":"abcd","value":5,"x":true}', '{"key":"abcd","value":6,"x":1.}']
    for lines in (texts, texts[::-1], more[:2], more, ['{"value":7}'], ['{"value":null,"key":"abcd"}']):
        path.write_text("\n".join(lines) + "\n")
        check_same(path, declared)


def test_quoted_fields_across_blocks(tmp_path, cuts):
    """A block may end within a field."""
    path = tmp_path / "a.csv"
    lines = [f'"{"x" * (n % 30)}\n{n}\n,""",{n},1,true' for n in range(60)]
    path.write_text("\n".join([HEADER, *lines, "a,1,1.5,true", *lines]) + "\n")
    expected = told(FileSource(path, type=Event), "fail")
    for batch_rows in (1, 5, 1000):
        assert told(in_batches(path, batch_rows), "fail") == expected


def test_null_values_and_columns_that_nobody_wants(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("more,value,key\nx,1,a\ny,NA,b\nz,,c\n")
    check_same(path, Pair, null_values=("NA", ""))
    assert rows(in_batches(path, type=Pair, null_values=("NA", ""))) == [
        {"key": "a", "value": 1},
        {"key": "b", "value": None},
        {"key": "c", "value": None},
    ]


@pytest.mark.parametrize("text", ["", "\n\n", HEADER, HEADER + "\n", "\n" + HEADER + "\n\n"])
def test_nothing_but_a_header(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    check_same(path)


def test_a_missing_column(tmp_path):
    for name in ("a.csv", "a.parquet"):
        path = tmp_path / name
        if name == "a.csv":
            path.write_text("key,price\na,1\n")
        else:
            parquet.write_table(pa.table({"key": ["a"]}), path)
        with pytest.raises(ConfigError, match="has no column 'value'"):
            rows(in_batches(path))


# Parquet and Arrow

TABLES = [
    pa.table({"key": ["a", "b"], "value": pa.array([1, 2], pa.int8()), "price": pa.array([1, None], pa.int32())}),
    pa.table({"key": pa.array(["a", "b"]).dictionary_encode(), "value": pa.array([1, 2], pa.uint64())}),
    pa.table({"key": ["a", None], "value": [1, 2]}),
    pa.table({"key": ["a", "b"], "value": [1.0, 2.5]}),
    pa.table({"key": ["a", "b"], "value": ["1", "2"]}),
    pa.table({"key": ["a", "b"], "value": [True, False]}),
    pa.table({"key": [b"a", b"b"], "value": [1, 2]}),
    pa.table({"key": ["a", "b"], "value": [1, 2], "price": pa.array([2**60 + 1, 3], pa.int64())}),
    pa.table({"key": pa.array(["a", "b"], pa.large_string()), "value": [1, 2], "price": [math.inf, 1.0]}),
]


@pytest.mark.parametrize("table", TABLES, ids=range(len(TABLES)))
def test_columns_of_other_types(tmp_path, table):
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    check_same(path)


def test_rows_of_no_type_are_as_the_file_has_them(tmp_path):
    table = pa.table({"at": pa.array([1, 2, 3], pa.timestamp("ns")), "list": [[1], None, []]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with contextlib.closing(Reading(FileSource(tmp_path / "a.parquet").record_batches(100))) as reading:
        batch = reading.next_batch()
        assert reading.next_batch() is None
    assert pa.table(batch) == table


def test_records_that_are_appended(tmp_path, cuts):
    for name, head, lines in (
        ("a.jsonl", b"", json_lines(EVENTS).splitlines(keepends=True)),
        ("a.csv", HEADER.encode() + b"\n", csv_of(EVENTS).splitlines(keepends=True)[1:]),
    ):
        path = tmp_path / name
        path.write_bytes(head)
        source, found = in_batches(path, 10, follow=True), []
        with contextlib.closing(Reading(source)) as reading:
            for line in lines:
                for piece in (line[:5], line[5:]):
                    with path.open("ab") as file:
                        file.write(piece)
                    batch = reading.next_batch()
                    found += batch.to_pylist() if len(batch) else []
        assert found == rows_of(EVENTS)


def test_integers_have_64_bits(tmp_path):
    """One that does not fit is a bad record."""
    numbers = [1, -(2**63), 2**63, 1]
    (tmp_path / "a.jsonl").write_text("".join(GOOD.replace("1", str(number), 1) + "\n" for number in numbers))
    (tmp_path / "a.csv").write_text(HEADER + "".join(f"\na,{number},1.5,true" for number in numbers))
    numbers[1] = 0
    parquet.write_table(pa.table({"key": ["a"] * 4, "value": pa.array(numbers, pa.uint64())}), tmp_path / "a.parquet")
    for name, place in (("a.jsonl", "line 3"), ("a.csv", "line 4"), ("a.parquet", "row 3")):
        letters = []
        found = rows(in_batches(tmp_path / name), None, SourceContext("dead-letter", letters.extend))
        assert ([row["value"] for row in found][::2], len(found)) == ([1, 1], 3)
        assert [f"line {letter.line}" if letter.line else f"row {letter.row}" for letter in letters] == [place]
        with pytest.raises(BadRecordError, match=rf"{place}: integers of record batches have 64 bits - at `\$\.value`"):
            rows(in_batches(tmp_path / name))


# What can't be served


class Nested(msgspec.Struct):
    tags: list[str]


@pytest.mark.parametrize("declared", [Nested, dict, list[int], int])
def test_types_that_have_no_rows(tmp_path, declared):
    with pytest.raises(UsageError, match="record batches"):
        in_batches(tmp_path / "a.jsonl", type=declared)


def test_lines_need_a_type(tmp_path):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).touch()
        with pytest.raises(UsageError, match="give FileSource type="):
            rows(FileSource(tmp_path / name).record_batches(10))
    with pytest.raises(UsageError, match="batch_size is 0"):
        in_batches(tmp_path / "a.jsonl", 0)


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pyarrow is not installed.*statestore\[arrow\]"):
        in_batches(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"pyarrow is not installed.*statestore\[arrow\]"):
        Job("job").record_batches(FileSource(tmp_path / "a.parquet"))


def test_a_bad_record_waits_for_what_is_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    monkeypatch.setattr(blocks, "LINES_COUNTED", 0)
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(EVENTS) + b"bad\n")
    with contextlib.closing(Reading(in_batches(path, 1000))) as reading:
        assert len(reading.next_batch()) > 40
        for _ in range(2):
            with pytest.raises(BadRecordError, match="line 61"):
                while reading.next_batch():
                    pass
