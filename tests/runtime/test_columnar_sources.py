"""Parquet and Arrow files as sources."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import functools
from typing import Any, TypedDict

import msgspec
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from statestore.errors import ConfigError, CorruptionError, UsageError
from statestore_runtime.sources import BadRecordError, FileSource, SourceContext
from tests.runtime.source_reading import Reading, check_every_cut, read, stopped, until_bad


class Order(msgspec.Struct, frozen=True):
    id: int
    city: str
    price: float | None = None


@dataclasses.dataclass(frozen=True)
class Item:
    id: int
    city: str


class Row(TypedDict):
    id: int
    city: str


ORDERS = [Order(number, f"city {number}", number / 4 if number % 3 else None) for number in range(11)]
TABLE = pa.Table.from_pylist([msgspec.to_builtins(order) for order in ORDERS])


def write_stream(table, path, rows):
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def write_file(table, path, rows):
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


WRITERS = {
    "orders.parquet": lambda table, path, rows: parquet.write_table(table, path, row_group_size=rows),
    "orders.arrow": write_file,
    "orders.arrows": write_stream,
    "orders.feather": lambda table, path, rows: feather.write_feather(table, str(path), chunksize=rows),
}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Writes a table; returns the path."""

    def write(table=TABLE, rows=4):
        WRITERS[request.param](table, tmp_path / request.param, rows)
        return tmp_path / request.param

    return write


def test_rows_of_a_type(write):
    path = write()
    assert read(FileSource(path, type=Order)) == ORDERS
    assert read(FileSource(path, type=Item)) == [Item(order.id, order.city) for order in ORDERS]
    assert read(FileSource(path, type=Row)) == [{"id": order.id, "city": order.city} for order in ORDERS]
    assert read(FileSource(path, type=dict[str, Any])) == TABLE.to_pylist()
    assert read(FileSource(path)) == TABLE.to_pylist()


@pytest.mark.parametrize("rows", [1, 2, 4, 100])
def test_every_cut(write, rows):
    check_every_cut(functools.partial(FileSource, write(rows=rows), type=Order), ORDERS)


def test_groups_larger_than_what_is_decoded_at_a_time(write):
    table = pa.table({"n": range(20_000)})
    path = write(table, 15_000)
    position, batches = stopped(FileSource(path, batch_size=3_000), 6)
    rows = [row for batch in batches for row in batch] + read(FileSource(path), position)
    assert [row["n"] for row in rows] == list(range(20_000))
    assert {len(batch) for batch in batches} > {3_000}, "batches end with the pieces and the groups"


def test_going_on_reads_no_group_before_the_position(write, monkeypatch):
    path = write()
    position, batches = stopped(FileSource(path, batch_size=4), 2)
    assert [len(batch) for batch in batches] == [4, 4]
    read_groups = []
    whole = parquet.ParquetFile.iter_batches

    def iter_batches(file, *arguments, **options):
        read_groups.extend(options["row_groups"])
        return whole(file, *arguments, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    assert [row["id"] for row in read(FileSource(path), position)] == [8, 9, 10]
    assert read_groups == ([1, 2] if path.suffix == ".parquet" else [])


def test_files_without_rows(write):
    assert read(FileSource(write(TABLE.slice(0, 0)), type=Order)) == []


class Visit(msgspec.Struct):
    at: datetime.datetime
    times: list[datetime.datetime]


VISITS = pa.list_(pa.struct([("at", pa.timestamp("ns")), ("times", pa.list_(pa.timestamp("ns")))]))


def test_values_of_many_types(write):
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)

    class Event(msgspec.Struct):
        at: datetime.datetime
        local: datetime.datetime
        day: datetime.date
        hour: datetime.time
        took: datetime.timedelta
        amount: decimal.Decimal
        raw: bytes
        tags: list[str]
        place: Item
        counts: dict[str, int]
        kind: str
        visits: list[Visit]

    nanoseconds = pa.array([1_767_323_045_678_901_234])
    table = pa.table(
        {
            "at": nanoseconds.cast(pa.timestamp("ns", "UTC")),
            "local": nanoseconds.cast(pa.timestamp("ns")),
            "day": [moment.date()],
            "hour": pa.array([3_600_000_000_123]).cast(pa.time64("ns")),
            "took": pa.array([1_500_000_999]).cast(pa.duration("ns")),
            "amount": [decimal.Decimal("12.30")],
            "raw": [b"\x00\xff"],
            "tags": [["a", "b"]],
            "place": [{"id": 7, "city": "rome"}],
            "counts": pa.array([[("x", 1)]], pa.map_(pa.string(), pa.int64())),
            "kind": pa.array(["k"]).dictionary_encode(),
            "visits": pa.array([[{"at": 1_001, "times": [2_002]}]], VISITS),
        }
    )
    (event,) = read(FileSource(write(table), type=Event))
    assert event == Event(
        moment,
        moment.replace(tzinfo=None),
        moment.date(),
        datetime.time(1),
        datetime.timedelta(seconds=1.5),
        decimal.Decimal("12.30"),
        b"\x00\xff",
        ["a", "b"],
        Item(7, "rome"),
        {"x": 1},
        "k",
        [Visit(datetime.datetime(1970, 1, 1, 0, 0, 0, 1), [datetime.datetime(1970, 1, 1, 0, 0, 0, 2)])],
    )


def test_nanoseconds_within_collections(write):
    moment = pa.timestamp("ns")
    table = pa.table(
        {
            "large": pa.array([[1_001]], pa.large_list(moment)),
            "fixed": pa.array([[2_002]], pa.list_(moment, 1)),
            "named": pa.array([[("x", 3_003)]], pa.map_(pa.string(), moment)),
        }
    )
    (row,) = read(FileSource(write(table)))
    at = [datetime.datetime(1970, 1, 1, 0, 0, 0, microseconds) for microseconds in (1, 2, 3)]
    assert row == {"large": at[:1], "fixed": at[1:2], "named": {"x": at[2]}}


def test_a_time_that_python_can_not_hold(write):
    table = pa.table({"at": pa.array([2**60], pa.timestamp("us"))})
    with pytest.raises(CorruptionError, match=r"it can't be read: .*out of range"):
        read(FileSource(write(table)))


def test_renamed_fields(write):
    class Renamed(msgspec.Struct, rename="upper"):
        n: int

    assert read(FileSource(write(pa.table({"other": ["x"], "N": [1]})), type=Renamed)) == [Renamed(1)]


def test_types_whose_constructor_takes_no_columns_by_place(write):
    class Keywords(msgspec.Struct, kw_only=True):
        price: float = 0.0
        id: int

    class Sparse(msgspec.Struct):
        price: float | None = None
        clerk: str = "none"
        id: int = 0

    path = write(TABLE.slice(1, 1))
    assert read(FileSource(path, type=Keywords)) == [Keywords(price=0.25, id=1)]
    assert read(FileSource(path, type=Sparse)) == [Sparse(0.25, "none", 1)]


def test_a_type_with_checks_of_its_own(write):
    class Even(msgspec.Struct):
        id: int
        tags: list[int]

        def __post_init__(self):
            if self.id % 2:
                raise ValueError("it is odd")

    path = write(pa.table({"id": [0, 1, 2, 4], "tags": [[1], [1], [1], [1, None]]}))
    context = SourceContext("dead-letter", (letters := []).extend)
    assert read(FileSource(path, type=Even), context=context) == [Even(0, [1]), Even(2, [1])]
    assert [letter.error for letter in letters] == [
        "it is odd",
        "column 'tags': Expected `int`, got `null` - at `$[1]`",
    ]


# Bad records, and files that can't be read


BAD = pa.table({"id": [0, 1, None, 3, None], "city": ["a", "b", "c", "d", "e"]})


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_bad_rows(write, batch_size):
    source = FileSource(path := write(BAD, 2), type=Order, batch_size=batch_size)
    with pytest.raises(BadRecordError, match=r"row 3: column 'id': Expected `int`, got `null`; the row is") as caught:
        read(source)
    assert (caught.value.source, caught.value.unit, caught.value.number) == (str(path), "row", 3)
    letters = []
    context = SourceContext("dead-letter", letters.extend)
    assert [order.id for order in read(source, context=context)] == [0, 1, 3]
    assert [(letter.row, letter.line, letter.text) for letter in letters] == [
        (3, None, "{'id': None, 'city': 'c'}"),
        (5, None, "{'id': None, 'city': 'e'}"),
    ]
    assert b'"line"' not in msgspec.json.encode(letters[0])


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_position_after_a_bad_row_is_before_its_batch(write, batch_size):
    make = functools.partial(FileSource, write(BAD, 4), type=Order, batch_size=batch_size)
    events, position = until_bad(make())
    events += read(make(), position, SourceContext("skip"))
    assert [order.id for order in events] == [0, 1, 3]


def test_rows_are_counted_on_after_a_restore(write):
    path = write(BAD, 2)
    position, _ = stopped(FileSource(path, type=Order, batch_size=2), 1)
    with pytest.raises(BadRecordError, match="row 3"):
        read(FileSource(path, type=Order), position)


def test_a_missing_column(write):
    with pytest.raises(ConfigError, match=r"has no column 'city'; its columns are id, town"):
        read(FileSource(write(pa.table({"id": [1], "town": ["x"]})), type=Order, on_error="skip"))

    class Optional(msgspec.Struct):
        price: float | None = None

    with pytest.raises(ConfigError, match=r"has no column 'price'; its columns are id"):
        read(FileSource(write(pa.table({"id": [1]})), type=Optional))


def test_a_file_that_was_written_anew(write):
    path = write()
    position, _ = stopped(FileSource(path, batch_size=2), 1)
    write(pa.concat_tables([TABLE, TABLE]))
    with pytest.raises(UsageError, match=r"has another size|begins differently"):
        read(FileSource(path), position)
    path.unlink()
    with pytest.raises((UsageError, ConfigError), match=path.name):
        read(FileSource(path), position)


@pytest.mark.parametrize("keep", [0, 3, 8, -1, -9])
def test_files_that_are_cut_off(write, keep):
    path = write()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptionError) as caught:
        read(FileSource(path))
    assert caught.value.file == str(path)


def test_damaged_pages(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"n": range(10_000)}), path, write_page_checksum=True, compression="zstd")
    data = bytearray(path.read_bytes())
    data[1000:1100] = b"\xff" * 100
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"a\.parquet"):
        read(FileSource(path))


def test_what_is_not_served(tmp_path):
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(b"")
    with pytest.raises(ConfigError, match="unpack it"):
        Reading(FileSource(packed))
    parquet.write_table(TABLE, tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match="can't be followed"):
        Reading(FileSource(tmp_path / "b.parquet", follow=True))
    old = tmp_path / "old.feather"
    old.write_bytes(b"FEA1" + b"\0" * 60)
    with pytest.raises(ConfigError, match="old version 1"):
        read(FileSource(old))

    class ArrayLike(msgspec.Struct, array_like=True):
        id: int

    with pytest.raises(UsageError, match="array_like"):
        read(FileSource(tmp_path / "b.parquet", type=ArrayLike))
