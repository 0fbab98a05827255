"""Files as sources: typed events, positions that belong to exactly the batches before them, and what becomes of bad records."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import zipfile
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
import zstandard

from statestore.errors import ConfigError, CorruptionError, UnavailableError, UsageError
from statestore_runtime.sources import (
    BadRecordError,
    DeadLetter,
    FileSource,
    SourceContext,
)
from tests.runtime.source_reading import Reading, check_every_cut, drained, read, until_bad


class Order(msgspec.Struct, frozen=True):
    id: int
    city: str
    price: float | None = None


@dataclasses.dataclass(frozen=True)
class Item:
    id: int
    city: str | None = None
    is_new: bool = False


ORDERS = [Order(number, f"city {number}", number / 4 if number % 3 else None) for number in range(11)]
JSON_LINES = b"".join(msgspec.json.encode(order) + b"\n" for order in ORDERS)
CSV = "id,city,price\n" + "".join(f"{o.id},{o.city},{'' if o.price is None else o.price}\n" for o in ORDERS)

# Blank lines, CRLF, fields over several lines, quotes, no newline at the end: 7 records.
TRICKY_CSV = 'id,city,price\r\n0,a,1\r\n\r\n1,"b\nc",2\n2,"d,\n\n""e""\n",\n3,f,4\n\n\n4,"g",5\n5,"\n",6\n6,h,'
TRICKY_CITIES = ["a", "b\nc", 'd,\n\n"e"\n', "f", "g", "\n", "h"]


def zipped(path, data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "not this one")
        archive.writestr(path.name.removesuffix(".zip"), data)


WRITERS = {
    "": lambda path, data: path.write_bytes(data),
    ".gz": lambda path, data: path.write_bytes(gzip.compress(data)),
    ".zst": lambda path, data: path.write_bytes(zstandard.compress(data)),
    ".zip": zipped,
}


def file(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS.get(path.suffix, WRITERS[""])(path, data.encode() if isinstance(data, str) else data)
    return path


# Reading


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


# Positions


@pytest.mark.parametrize("compression", WRITERS)
def test_every_cut_of_json_lines(tmp_path, compression):
    path = file(tmp_path / f"orders.jsonl{compression}", b"\xef\xbb\xbf\n" + JSON_LINES.rstrip())
    check_every_cut(functools.partial(FileSource, path, type=Order), ORDERS)


@pytest.mark.parametrize("compression", WRITERS)
def test_every_cut_of_csv(tmp_path, compression):
    path = file(tmp_path / f"orders.csv{compression}", TRICKY_CSV)
    expected = read(FileSource(path, type=Order))
    assert len(expected) == 7
    check_every_cut(functools.partial(FileSource, path, type=Order), expected)


def test_every_cut_of_a_glob(tmp_path):
    for number, compression in enumerate(["", ".gz", ".zst", "", ".zip"]):
        lines = "".join(f"{number}{line}\n" for line in range(number))
        file(tmp_path / f"{number}.jsonl{compression}", lines)
    expected = [10, 20, 21, 30, 31, 32, 40, 41, 42, 43]
    check_every_cut(functools.partial(FileSource, tmp_path / "*"), expected)


def test_every_cut_with_bad_records(tmp_path):
    """Bad records before the position are not met again, those after it are."""
    path = file(tmp_path / "a.csv", 'x,y\n1,1\nbad\n2,2\n"bad\nbad"\nbad\n3,3\nbad\n')
    make = functools.partial(FileSource, path, batch_size=1)
    for cut in range(8):
        before, after = SourceContext("skip"), SourceContext("skip")
        source = Reading(make(), None, before)
        events = [event for _ in range(cut) for event in source.next_batch() or []]
        position = source.position()
        source.close()
        events += read(make(), position, after)
        assert [event["x"] for event in events] == ["1", "2", "3"]
        assert before.bad_records + after.bad_records == 4


def test_lines_are_counted_on_after_a_restore(tmp_path):
    path = file(tmp_path / "a.csv", 'x,y\n1,"a\nb"\n2,c\nbad\n')
    for compression in ("", ".gz"):
        path = file(tmp_path / f"a.csv{compression}", 'x,y\n1,"a\nb"\n2,c\nbad\n')
        source = Reading(FileSource(path, batch_size=1))
        source.next_batch()
        position = source.position()
        source.close()
        with pytest.raises(BadRecordError) as caught:
            read(FileSource(path, batch_size=1), position)
        assert (caught.value.source, caught.value.number) == (str(path), 5)


def test_new_files_are_read_and_finished_ones_may_be_gone(tmp_path):
    for name in "bc":
        file(tmp_path / f"{name}.jsonl", f'"{name}"\n')
    source = Reading(FileSource(tmp_path / "*.jsonl"))
    assert [source.next_batch(), source.next_batch()] == [["b"], ["c"]]
    position = source.position()
    source.close()
    (tmp_path / "b.jsonl").unlink()
    for name in "ad":
        file(tmp_path / f"{name}.jsonl", f'"{name}"\n')
    assert read(FileSource(tmp_path / "*.jsonl"), position) == ["a", "d"]


def test_a_file_may_have_grown(tmp_path):
    for compression in ("", ".gz"):
        path = file(tmp_path / f"a.jsonl{compression}", "1\n2\n")
        source = Reading(FileSource(path))
        assert source.next_batch() == [1, 2]
        position = source.position()
        source.close()
        data = b"3\n" if compression == "" else gzip.compress(b"3\n")
        path.write_bytes(path.read_bytes() + data)
        assert read(FileSource(path), position) == [3]


def middle_of(path):
    """Position after two events, which is not the end."""
    source = Reading(FileSource(path, batch_size=2))
    assert len(source.next_batch()) == 2
    position = source.position()
    source.close()
    return position


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.zst"])
def test_a_file_that_changed_since_the_checkpoint(tmp_path, name):
    data, other = (CSV, CSV.replace("id", "ID")) if ".csv" in name else (JSON_LINES, JSON_LINES.replace(b"i", b"I"))
    path = file(tmp_path / name, data)
    position = middle_of(path)
    assert len(read(FileSource(path), position)) == 9
    file(path, other + other)
    with pytest.raises(UsageError, match=r"begins differently.*--restore none"):
        read(FileSource(path), position)
    path.write_bytes(path.read_bytes()[:3])
    with pytest.raises(UsageError, match="has become shorter"):
        read(FileSource(path), position)
    path.unlink()
    with pytest.raises((UsageError, ConfigError), match=name):
        read(FileSource(path), position)


def test_a_file_of_a_glob_that_is_gone(tmp_path):
    path = file(tmp_path / "a.jsonl", "1\n2\n3\n")
    file(tmp_path / "b.jsonl", "4\n")
    position = middle_of(tmp_path / "*.jsonl")
    path.unlink()
    with pytest.raises(UsageError, match=r"a\.jsonl, in which the checkpoint stands at line 2, is not there"):
        read(FileSource(tmp_path / "*.jsonl"), position)


# Bad records


BAD_JSON = '{"id": 1, "city": "a"}\n\n{"id": "two", "city": "b"}\n{"id": 3\n\xff\n{"id": 4, "city": "d"}\n'.encode(
    "latin-1"
)
BAD_CSV = 'id,city,price\n1,a,1\n\ntwo,b,2\n3,"c\nc",x\n4,d\n5,e,5,5\n6,\xff,6\n"7","g\ng",7\n'.encode("latin-1")


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(
    ("name", "data", "line", "problem"),
    [
        ("a.jsonl", BAD_JSON, 3, "Expected `int`, got `str`"),
        ("a.jsonl.gz", BAD_JSON, 3, "Expected `int`, got `str`"),
        ("b.jsonl", b"{}\n", 1, "missing required field `id`"),
        ("c.jsonl", b'{"id": 1, "city": "a"}\n{"id": 2, "ci', 2, "truncated"),
        ("a.csv", BAD_CSV, 4, "column 'id': Expected `int`, got `str`"),
        ("b.csv", b"id,city\n1,a\n2\n", 3, "1 fields, the header has 2"),
        ("c.csv", b"id,city\n1,a\n2,b,c\n", 3, "3 fields, the header has 2"),
        ("d.csv", b'id,city\n"1","a\nb"\n"x","a\nb"\n', 4, "column 'id'"),
        ("e.csv", b"id,city\n1,\xff\n", 2, "not UTF-8"),
    ],
)
def test_a_bad_record_fails_with_its_place(tmp_path, name, data, line, problem, batch_size):
    path = file(tmp_path / name, data)
    with pytest.raises(BadRecordError, match=problem) as caught:
        read(FileSource(path, type=Order, batch_size=batch_size))
    assert (caught.value.source, caught.value.number, caught.value.exit_code) == (str(path), line, 8)
    assert f"{path}, line {line}: " in str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_records_are_skipped_and_counted(tmp_path, batch_size):
    for path, ids, bad in (
        (file(tmp_path / "a.jsonl", BAD_JSON), [1, 4], 3),
        (file(tmp_path / "a.csv", BAD_CSV), [1, 7], 5),
    ):
        context = SourceContext("skip")
        assert [event.id for event in read(FileSource(path, type=Order, batch_size=batch_size), None, context)] == ids
        assert context.bad_records == bad


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_records_become_dead_letters(tmp_path, batch_size):
    path, letters = file(tmp_path / "a.csv", BAD_CSV), []
    context = SourceContext("dead-letter", letters.extend)
    assert [event.id for event in read(FileSource(path, type=Order, batch_size=batch_size), None, context)] == [1, 7]
    assert all(isinstance(letter, DeadLetter) and letter.source == str(path) for letter in letters)
    assert [(letter.line, letter.text) for letter in letters] == [
        (4, "two,b,2"),
        (5, '3,"c\nc",x'),
        (7, "4,d"),
        (8, "5,e,5,5"),
        (9, "6,\\xff,6"),
    ]
    assert context.bad_records == 5
    assert letters[2].error == "2 fields, the header has 3"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.zst"])
def test_the_position_after_a_bad_record_is_before_its_batch(tmp_path, name, batch_size):
    path = file(tmp_path / name, b"\xef\xbb\xbf" + (BAD_CSV if ".csv" in name else BAD_JSON))
    make = functools.partial(FileSource, path, type=Order, batch_size=batch_size)
    events, position = until_bad(make())
    events += read(make(), position, SourceContext("skip"))
    assert [event.id for event in events] == ([1, 7] if ".csv" in name else [1, 4])


def test_an_unfinished_quote_is_one_bad_record(tmp_path):
    path = file(tmp_path / "a.csv", 'id,city,price\n1,a,1\n2,"b,2\n3,c,3\n')
    context = SourceContext("skip")
    assert read(FileSource(path, type=Order), None, context) == [Order(1, "a", 1.0)]
    assert context.bad_records == 1
    with pytest.raises(BadRecordError) as caught:
        read(FileSource(path, type=Order))
    assert caught.value.number == 3


def test_a_long_bad_line_is_shown_in_part():
    error = BadRecordError("a.jsonl", "line", 1, "bad", "x" * 1000)
    assert len(str(error)) < 400
    assert error.text == "x" * 1000


def test_a_checks_own_constraint_makes_a_bad_record(tmp_path):
    class Positive(msgspec.Struct):
        id: Annotated[int, msgspec.Meta(gt=0)]
        name: str

    path = file(tmp_path / "a.csv", "id,name\n1,a\n0,b\n")
    with pytest.raises(BadRecordError, match="column 'id': Expected `int` >= 1") as caught:
        read(FileSource(path, type=Positive))
    assert caught.value.number == 3


# Files that can't be read at all


def test_a_missing_column_names_file_and_columns(tmp_path):
    path = file(tmp_path / "a.csv", "id,town\n1,a\n")
    with pytest.raises(ConfigError, match=r"a\.csv has no column 'city'; its columns are id, town"):
        read(FileSource(path, type=Order, on_error="skip"), None, SourceContext("skip"))


def test_two_columns_of_one_name(tmp_path):
    with pytest.raises(ConfigError, match="two columns of the same name"):
        read(FileSource(file(tmp_path / "a.csv", "id,id\n1,2\n")))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*none\.jsonl"):
        Reading(FileSource(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="no file matches"):
        Reading(FileSource(tmp_path / "*.jsonl"))
    with pytest.raises(ConfigError, match="is a folder"):
        Reading(FileSource(tmp_path, format="csv"))


def test_a_file_that_goes_while_the_job_runs(tmp_path):
    for name in "ab":
        file(tmp_path / f"{name}.jsonl", "1\n")
    source = Reading(FileSource(tmp_path / "*.jsonl"))
    assert source.next_batch() == [1]
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(UnavailableError, match=r"b\.jsonl"):
        source.next_batch()
    source.close()


@pytest.mark.parametrize(("compression", "offset"), [(".gz", 2000), (".zst", 6), (".zip", 2000)])
def test_damaged_compressed_data(tmp_path, compression, offset):
    path = file(tmp_path / f"a.jsonl{compression}", "".join(f"{n * n}\n" for n in range(30_000)))
    data = path.read_bytes()
    path.write_bytes(data[:offset] + b"\xff" * 2000 + data[offset + 2000 :])
    with pytest.raises(CorruptionError) as caught:
        read(FileSource(path))
    assert caught.value.file == str(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(CorruptionError):
        read(FileSource(path))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FileSource("a.jsonl", format="xml"),
        lambda: FileSource("a.jsonl", on_error="ignore"),
        lambda: FileSource("a.jsonl", batch_size=0),
        lambda: FileSource("a.jsonl", rate_limit=0),
        lambda: FileSource("*.jsonl", discovery_interval=-1),
        lambda: Reading(FileSource([__file__, __file__], format="csv")),
    ],
)
def test_wrong_arguments(make):
    with pytest.raises((UsageError, ConfigError)):
        make()


class ArrayLike(msgspec.Struct, array_like=True):
    id: int


@pytest.mark.parametrize("type_", [int, dict, ArrayLike])
def test_types_that_csv_can_not_fill(tmp_path, type_):
    path = file(tmp_path / "a.csv", "id\n1\n")
    with pytest.raises(UsageError, match="CSV records can"):
        read(FileSource(path, type=type_))


def test_closing_twice(tmp_path):
    reading = Reading(FileSource(file(tmp_path / "a.jsonl", "1\n")))
    assert reading.next_batch() == [1]
    reading.close()
    reading.close()


def test_names():
    assert FileSource("a.jsonl").name == "a.jsonl"
    assert FileSource([Path("a.jsonl"), "b.jsonl"]).name == "a.jsonl, b.jsonl"


# What readers must not let pass, or stumble over


@pytest.mark.parametrize("compression", [".gz", ".zst", ".zip"])
def test_compressed_files_that_are_cut_off(tmp_path, compression):
    numbers = b"".join(b"%d\n" % (n * 7919 % 100_003) for n in range(50_000))
    path = file(tmp_path / f"numbers.jsonl{compression}", numbers)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptionError, match=path.name):
        read(FileSource(path))


def test_zstandard_files_of_several_frames(tmp_path):
    path = tmp_path / "numbers.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(b"%d\n" % number) for number in range(5)) + zstandard.compress(b""))
    assert read(FileSource(path)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("line", ["[1,\n2]\n", "1 2\n", "[" * 100_000 + "]" * 100_000 + "\n"])
def test_a_value_is_a_line_however_batches_are_cut(tmp_path, batch_size, line):
    context = SourceContext("skip")
    path = file(tmp_path / "a.jsonl", f"0\n{line}3\n")
    assert read(FileSource(path, batch_size=batch_size), context=context) == [0, 3]
    assert context.bad_records == line.count("\n")


def test_csv_headers(tmp_path):
    assert read(FileSource(file(tmp_path / "quoted.csv", '\ufeff"id",b\n1,2\n'))) == [{"id": "1", "b": "2"}]
    assert read(FileSource(file(tmp_path / "blank.csv", "\n\nid,b\n1,2\n"))) == [{"id": "1", "b": "2"}]
    for name, data in {"latin.csv": b"caf\xe9,b\n1,2\n", "mac.csv": b"a,b\r1,2\r"}.items():
        with pytest.raises(ConfigError, match=f"{name} has no header line"):
            read(FileSource(file(tmp_path / name, data)))


def test_long_quoted_fields(tmp_path):
    text = "x" * 200_000
    assert read(FileSource(file(tmp_path / "a.csv", f'id,text\n1,"{text}"\n'))) == [{"id": "1", "text": text}]


def test_a_type_that_no_text_can_be_read_as(tmp_path):
    class Person(msgspec.Struct):
        age: Annotated[int | None, msgspec.Meta(ge=0)]

    path = file(tmp_path / "a.csv", "age\n1\n")
    with pytest.raises(UsageError, match="column 'age' of Person"):
        read(FileSource(path, type=Person), context=SourceContext("skip"))


@pytest.mark.parametrize("pattern", ["*.jsonl", "a.jsonl", ["a.jsonl", "b.jsonl"]])
def test_finished_files_may_be_gone(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    file(tmp_path / "a.jsonl", "1\n")
    file(tmp_path / "b.jsonl", "2\n")
    source = Reading(FileSource(pattern))
    drained(source)
    position = source.position()
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    assert read(FileSource(pattern), position) == []
    with pytest.raises(ConfigError):
        read(FileSource(pattern))
