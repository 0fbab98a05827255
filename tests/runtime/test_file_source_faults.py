"""Files as sources: what becomes of bad records, and of files that can't be read at all."""

from __future__ import annotations

import functools
import zipfile
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
from tests.runtime.source_files import Order, file
from tests.runtime.source_reading import Reading, drained, read, until_bad

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
    with pytest.raises(ConfigError, match=r"is a folder; give a pattern such as .*/\*\.jsonl"):
        Reading(FileSource(tmp_path, format="csv"))


@pytest.mark.parametrize("damage", ["password", "method"])
def test_a_zip_archive_that_is_packed_in_another_way(tmp_path, damage):
    path = tmp_path / "a.jsonl.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jsonl", "1\n")
    data = bytearray(path.read_bytes())
    local, central = 0, data.index(b"PK\x01\x02")
    for field in (local + 6, central + 8) if damage == "password" else (local + 8, central + 10):
        data[field] |= 1 if damage == "password" else 9  # 9 is Deflate64
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"'a\.jsonl' in .*a\.jsonl\.zip can't be read: .*without a password"):
        read(FileSource(path))


def test_a_file_of_a_list_that_is_named_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = file(tmp_path / "a.jsonl", "1\n")
    for other in ("./a.jsonl", path, f"file://{path}"):
        with pytest.raises(UsageError, match="is named twice"):
            Reading(FileSource(["a.jsonl", other]))


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
@pytest.mark.parametrize(
    "line",
    [
        "[1,\n2]\n",
        "1 2\n",
        "[1,\n2] 3\n",
        '{} {"a":\n{}}\n',
        '{}{"a":[{},\n{}]}\n',
        "[" * 100_000 + "]" * 100_000 + "\n",
    ],
)
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
