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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from statestore.errors import ConfigError, StateStoreError, UsageError
from statestore_runtime.sources import BadRecordError, FileSource, SourceContext
from statestore_runtime.sources.files import blocks
from tests.runtime.source_files import zipped
from tests.runtime.source_reading import Reading


class Event(msgspec.Struct):
    key: str
    value: int
    price: float | None = None
    is_new: bool = False


@dataclasses.dataclass
class Pair:
    key: str
    value: int | None


def rows_of(events):
    return [msgspec.to_builtins(event, builtin_types=(bytes,)) for event in events]


EVENTS = [Event(f"user-{n % 7}", n * n - 20, n / 4, n % 3 == 0) for n in range(60)]


def in_batches(path, batch_rows=1 << 20, **options):
    return FileSource(path, type=options.pop("type", Event), **options).record_batches(batch_rows)


def drained(reading):
    rows = []
    while (batch := reading.next_batch()) is not None:
        assert isinstance(batch, pa.RecordBatch) or batch == []
        rows += batch.to_pylist() if len(batch) else []
    return rows


def rows(source, position=None, context=None):
    with contextlib.closing(Reading(source, position, context)) as reading:
        return drained(reading)


def comparable(row):
    return {name: "nan" if value != value else value for name, value in row.items()}


def outcome(source, context):
    """All rows, or events as rows, and the error that ended it; as a job would see them."""
    found = []
    with contextlib.closing(Reading(source, None, context)) as reading:
        try:
            while (batch := reading.next_batch()) is not None:
                read = batch.to_pylist() if isinstance(batch, pa.RecordBatch) else rows_of(batch)
                found += map(comparable, read)
        except StateStoreError as error:
            return found, str(error), reading.position()
        return found, None, reading.position()


def told(source, on_error):
    """Rows, dead letters, error and position."""
    letters = []
    context = SourceContext(on_error, letters.extend)
    found, error, position = outcome(source, context)
    return found, error, rows_of(letters), position if error is None else None


def check_same(path, declared=Event, **options):
    """Under each policy both ways of reading give the same; where it ends at a bad record, batches may have come less far."""
    for on_error in ("skip", "dead-letter"):
        expected = told(FileSource(path, type=declared, batch_size=3, **options), on_error)
        for batch_rows in (2, 1 << 20):
            assert told(in_batches(path, batch_rows, type=declared, **options), on_error) == expected
    expected, error, _ = outcome(FileSource(path, type=declared, batch_size=1, **options), SourceContext("fail"))
    for batch_rows in (1, 1 << 20):
        found, problem, position = outcome(
            in_batches(path, batch_rows, type=declared, **options), SourceContext("fail")
        )
        assert problem == error
        assert found == expected[: len(found)]
        if batch_rows == 1 or error is None:
            assert found == expected
        rest = rows(in_batches(path, type=declared, **options), position, SourceContext("skip"))
        assert found + list(map(comparable, rest)) == told(FileSource(path, type=declared, **options), "skip")[0]


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
        for cut in range(0, len(EVENTS) // size + 2, 3):
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


# Good and bad lines. The first line is the one that others are compared with.

GOOD = '{"key":"a","value":1,"price":1.5,"is_new":true}'
LINES = [
    GOOD,
    GOOD.replace("1.5", "null"),
    '{"key":"b","value":-2,"price":-0.25e-3,"is_new":false}',
    '{"key":"b","value":-2}',
    '{"key":"ü, ö","value":-0,"price":2,"is_new":false}',
    '{"key":"q\\"uote","value":7,"price":1e2,"is_new":true}',
    '{"value":9223372036854775807,"key":"order","price":1E+2,"is_new":true}',
    '{"key":"n","value":007,"price":1.5,"is_new":true}',
    '{"key":"n","value":0x7,"price":1.5,"is_new":true}',
    '{"key":"n","value":-01,"price":1.5,"is_new":true}',
    '{"key":"n","value":1.0,"price":1.5,"is_new":true}',
    '{"key":"n","value":1,"price":1.,"is_new":true}',
    '{"key":"n","value":1,"price":.5,"is_new":true}',
    '{"key":"n","value":1,"price":NaN,"is_new":true}',
    '{"key":"n","value":1,"price":1e999,"is_new":true}',
    '{"key":"n","value":1,"price":1.5,"is_new":1}',
    '{"key":"n","value":1,"price":1.5,"is_new":True}',
    '{"key":"n","value":"1","price":1.5,"is_new":true}',
    '{"key":1,"value":1,"price":1.5,"is_new":true}',
    '{"key":null,"value":1,"price":1.5,"is_new":true}',
    '{"key":"a","value":null,"price":1.5,"is_new":true}',
    '{"key":"a","value":1,"price":1.5,"is_new":true,"more":{"x":[1]}}',
    '{"key":"a","value":1,"price":1.5,"is_new":true}' * 2,
    '{"key":"a","value":1,"price":1.5,"is_new":true',
    '{"key":"a","value":1,"price":1.5,"is_new":true}}',
    '{"key":"a,"value":1,"price":1.5,"is_new":true}',
    '{"key":"a"","value":1,"price":1.5,"is_new":true}',
    '{"key":"","value":1,"price":1.5,"is_new":true}',
    '{"key":"a\tb","value":1,"price":1.5,"is_new":true}',
    '{"key":"a\x7fb","value":1,"price":1.5,"is_new":true}',
    '{"key":"a","key":"b","value":1,"price":1.5,"is_new":true}',
    '{"key":"',
    GOOD + "\r",
    GOOD + " ",
    " " + GOOD,
    "",
    " ",
    "[]",
    '"text"',
    "{}",
]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_one_odd_line(tmp_path, number):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([GOOD, LINES[number], GOOD]) + "\n", newline="")
    check_same(path)
    path.write_text("\n".join([LINES[number], LINES[number], GOOD, GOOD]), newline="")
    check_same(path)


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


_WORDS = st.sampled_from(["a", "b", "", "x,y", 'q"', "\\", "ü", "\t", "}", "{"])
_NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.floats(), st.none(), st.just("1"), st.just(True)
)


@st.composite
def records(draw):
    record = {"key": draw(st.one_of(_WORDS, _NUMBERS)), "value": draw(_NUMBERS)}
    if draw(st.booleans()):
        record["price"] = draw(_NUMBERS)
    if draw(st.integers(0, 5)) == 0:
        record = dict(reversed(record.items()))
    if draw(st.integers(0, 5)) == 0:
        record["more"] = draw(_NUMBERS)
    return json.dumps(
        record, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    )


@st.composite
def damaged(draw, texts):
    """Lines of which some have a character changed, taken out or put in."""
    lines = []
    for text in draw(st.lists(texts, min_size=1, max_size=8)):
        if draw(st.integers(0, 3)) == 0 and text:
            place = draw(st.integers(0, len(text) - 1))
            rest = text[place + draw(st.integers(0, 1)) :]
            text = text[:place] + draw(st.sampled_from(['"', ",", "}", "{", "0", "-", " ", "\r", "", "e"])) + rest
        lines.append(text)
    return lines


@given(damaged(st.one_of(st.just(GOOD), records())))
@settings(deadline=None, max_examples=150)
def test_lines_at_random(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_text("\n".join(lines) + "\n", newline="")
    check_same(path)


# CSV

HEADER = "key,value,price,is_new"
CSV_ROWS = [
    "a,1,1.5,true",
    "b,-2,,false",
    ",3,2,false",
    '"x,y",4,1,true',
    '"two\nlines",5,1,true',
    'a"b,6,1,true',
    "a,007,1,true",
    "a, 8,1,true",
    "a,9,nan,true",
    "a,1e1,1,true",
    "a,10,1e999,true",
    "a,11,1,TRUE",
    "a,12,1,1",
    "a,13,1,",
    "a,,1,true",
    "a,14,1",
    "a,15,1,true,5",
    "",
    "a\tb,16,1,true",
    "ü,17,1,true\r",
    '"open',
]


@pytest.mark.parametrize("number", range(len(CSV_ROWS)))
def test_one_odd_row(tmp_path, number):
    path = tmp_path / "a.csv"
    path.write_text("\n".join([HEADER, CSV_ROWS[0], CSV_ROWS[number], CSV_ROWS[0]]) + "\n", newline="")
    check_same(path)
    path.write_text("\n".join(["\ufeff" + HEADER, CSV_ROWS[number], CSV_ROWS[0], CSV_ROWS[0]]), newline="")
    check_same(path)


@given(damaged(st.sampled_from(CSV_ROWS)), st.booleans())
@settings(deadline=None, max_examples=150)
@example(["a,1,1.5,true", '"two', 'lines",5,1,true', "a,2,1,true", "a,3,x,true"], True)
def test_rows_at_random(tmp_path_factory, lines, is_wide):
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    header = HEADER if is_wide else "value,more,key,price"
    path.write_text("\n".join([header, *lines]) + "\n", newline="")
    check_same(path)


def test_quoted_fields_across_blocks(tmp_path, cuts):
    """A block may end within a field."""
    path = tmp_path / "a.csv"
    lines = [f'"{"x" * (n % 30)}\n{n}\n,""",{n},1,true' for n in range(60)]
    path.write_text("\n".join([HEADER, *lines, *CSV_ROWS[:2], *lines]) + "\n")
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
