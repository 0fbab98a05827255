"""Files as sources: typed events of each format, and which files there are."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
import zstandard

from statestore.errors import ConfigError
from statestore_runtime.sources import (
    FileSource,
)
from tests.runtime.source_files import CSV, JSON_LINES, ORDERS, TRICKY_CITIES, TRICKY_CSV, WRITERS, Item, Order, file
from tests.runtime.source_reading import Reading, read


@pytest.mark.parametrize("compression", WRITERS)
def test_json_lines_of_a_type(tmp_path, compression):
    path = file(tmp_path / f"orders.jsonl{compression}", JSON_LINES)
    assert read(FileSource(path, type=Order)) == ORDERS


@pytest.mark.parametrize("compression", WRITERS)
def test_csv_of_a_type(tmp_path, compression):
    path = file(tmp_path / f"orders.csv{compression}", CSV)
    assert read(FileSource(path, type=Order)) == ORDERS


def test_events_without_a_type(tmp_path):
    assert read(FileSource(file(tmp_path / "a.jsonl", '{"a": 1}\n[2]\n"three"\n'))) == [{"a": 1}, [2], "three"]
    assert read(FileSource(file(tmp_path / "a.csv", "x,y\n1,\n"))) == [{"x": "1", "y": ""}]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_have_the_size_asked_for(tmp_path, batch_size):
    for path in (file(tmp_path / "a.jsonl", JSON_LINES), file(tmp_path / "a.csv", CSV)):
        source, sizes = Reading(FileSource(path, type=Order, batch_size=batch_size)), []
        while (batch := source.next_batch()) is not None:
            sizes.append(len(batch))
        source.close()
        assert set(sizes[:-1]) <= {batch_size}
        assert (sum(sizes), 0 < sizes[-1] <= batch_size) == (11, True)


def test_blank_lines_and_byte_order_marks_are_passed_over(tmp_path):
    assert read(FileSource(file(tmp_path / "a.jsonl", "\ufeff1\n\n  \r\n2\r\n\n3"))) == [1, 2, 3]
    assert read(FileSource(file(tmp_path / "a.csv", "\ufeffx,y\r\n\r\n1,2\r\n"))) == [{"x": "1", "y": "2"}]


def test_empty_files(tmp_path):
    assert read(FileSource(file(tmp_path / "a.jsonl", ""))) == []
    assert read(FileSource(file(tmp_path / "a.csv", ""))) == []
    assert read(FileSource(file(tmp_path / "b.csv", "id,city\n"), type=Order)) == []


def test_csv_fields_over_several_lines(tmp_path):
    for batch_size in (1, 2, 3, 100):
        events = read(FileSource(file(tmp_path / "a.csv", TRICKY_CSV), type=Order, batch_size=batch_size))
        assert [event.city for event in events] == TRICKY_CITIES
        assert [event.id for event in events] == list(range(7))


def test_one_column(tmp_path):
    path = file(tmp_path / "a.csv", 'name\n"a,b"\nc\n\n"d"\n')
    assert [event["name"] for event in read(FileSource(path, batch_size=2))] == ["a,b", "c", "d"]


def test_csv_columns_are_found_by_name(tmp_path):
    path = file(tmp_path / "a.csv", "note,price,city,id\nx,1.5,rome,7\n")
    assert read(FileSource(path, type=Order)) == [Order(7, "rome", 1.5)]
    without = file(tmp_path / "b.csv", "city,id\nrome,7\n")
    assert read(FileSource(without, type=Order)) == [Order(7, "rome")]


def test_csv_into_dataclasses(tmp_path):
    path = file(tmp_path / "a.csv", "id,city,is_new\n1,rome,true\n2,,0\n")
    assert read(FileSource(path, type=Item)) == [Item(1, "rome", True), Item(2, None, False)]


def test_csv_into_renamed_and_keyword_only_fields(tmp_path):
    class Renamed(msgspec.Struct, rename="camel", kw_only=True):
        first_name: str
        how_many: int = 3

    path = file(tmp_path / "a.csv", "firstName,howMany\nann,1\n")
    assert read(FileSource(path, type=Renamed)) == [Renamed(first_name="ann", how_many=1)]


def test_null_values_mean_none_only_where_none_is_admitted(tmp_path):
    class Row(msgspec.Struct):
        name: str
        nick: str | None
        age: Annotated[int, msgspec.Meta(ge=0)] | None

    path = file(tmp_path / "a.csv", "name,nick,age\nNA,NA,NA\n-,-,-\nann,,3\n")
    found = read(FileSource(path, type=Row, null_values=["NA", "-"]))
    assert found == [Row("NA", None, None), Row("-", None, None), Row("ann", "", 3)]


def test_globs_are_read_in_the_order_of_names_and_lists_in_their_own(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl.gz", "deep/d.txt"):
        file(tmp_path / name, json.dumps(name) + "\n")
    assert read(FileSource(tmp_path / "*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert read(FileSource(str(tmp_path / "**/*.jsonl*"))) == ["a.jsonl", "b.jsonl", "deep/er/c.jsonl.gz"]
    assert read(FileSource([tmp_path / "b.jsonl", str(tmp_path / "a.jsonl")])) == ["b.jsonl", "a.jsonl"]


def test_a_name_with_the_signs_of_a_glob(tmp_path):
    assert read(FileSource(file(tmp_path / "a[1].jsonl", "1\n"))) == [1]


def test_the_format_can_be_given(tmp_path):
    path = file(tmp_path / "orders", CSV)
    assert read(FileSource(path, type=Order, format="csv")) == ORDERS
    with pytest.raises(ConfigError, match="does not tell its format"):
        Reading(FileSource(path))


def test_a_zip_archive_tells_its_format_by_its_first_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("__MACOSX/._orders.csv", "rubbish")
        archive.writestr("orders.csv", CSV)
    assert read(FileSource(tmp_path / "all.zip", type=Order)) == ORDERS


def test_several_frames_and_members_are_one_file(tmp_path):
    gz = tmp_path / "a.jsonl.gz"
    gz.write_bytes(gzip.compress(b"1\n2\n") + gzip.compress(b"3\n"))
    zst = tmp_path / "a.jsonl.zst"
    zst.write_bytes(zstandard.compress(b"1\n2\n") + zstandard.compress(b"3\n"))
    assert read(FileSource(gz)) == read(FileSource(zst)) == [1, 2, 3]


def test_closing_twice(tmp_path):
    reading = Reading(FileSource(file(tmp_path / "a.jsonl", "1\n")))
    assert reading.next_batch() == [1]
    reading.close()
    reading.close()


def test_names():
    assert FileSource("a.jsonl").name == "a.jsonl"
    assert FileSource([Path("a.jsonl"), "b.jsonl"]).name == "a.jsonl, b.jsonl"


def test_urls_of_the_local_disk(tmp_path):
    path = file(tmp_path / "a.jsonl", "1\n")
    assert read(FileSource(f"file://{path}")) == [1]
    assert FileSource(f"file://{path}").discover([]) == FileSource(path).discover([]), "they are the same file"
