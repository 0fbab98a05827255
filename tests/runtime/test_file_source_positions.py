"""Positions in files belong to exactly the batches before them, and to the file that they were taken in."""

from __future__ import annotations

import functools
import gzip
import random

import pytest

from statestore.errors import ConfigError, UsageError
from statestore_runtime.sources import (
    BadRecordError,
    FileSource,
    SourceContext,
)
from tests.runtime.source_files import CSV, JSON_LINES, ORDERS, TRICKY_CSV, WRITERS, Order, file
from tests.runtime.source_reading import Reading, check_every_cut, drained, read


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


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_every_batch_of_lines_of_any_length(tmp_path, compression):
    """Lines that are read together are cut at the right places, however much longer or shorter than those before them they are."""
    randomness, lines, expected = random.Random(3), [], []
    for number in range(3000):
        size = randomness.choice([1, 5, 50, 5000]) if number % 1000 > 300 else 20
        lines.append(randomness.choice(['{"n": %d, "text": "%s"}', '{"n": %d, "text": "%s"} ']) % (number, "x" * size))
        expected.append({"n": number, "text": "x" * size})
        if number % 97 == 0:
            lines += ["", '{"n": bad}']
    path = file(tmp_path / f"a.jsonl{compression}", "\n".join(lines))
    make = functools.partial(FileSource, path, batch_size=100, on_error="skip")
    context = SourceContext("skip")
    source, events, positions = Reading(make(), None, context), [], []
    while (batch := source.next_batch()) is not None:
        assert len(batch) <= 100
        events += batch
        positions.append((source.position(), len(events)))
    source.close()
    assert (events, context.bad_records) == (expected, 31)
    for position, count in positions[::7]:
        assert read(make(), position, SourceContext("skip")) == expected[count:]


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


@pytest.mark.parametrize(("name", "head"), [("a.jsonl", ""), ("a.csv", "x,y\n")])
def test_a_last_line_that_was_not_complete_when_it_was_read(tmp_path, name, head):
    path = file(tmp_path / name, head + ("1\n2" if not head else "1,1\n2,2"))
    position = middle_of(path)
    path.write_bytes(path.read_bytes() + b"3\n")
    line = 2 if not head else 3
    with pytest.raises(UsageError, match=rf"line {line} has become longer since it was read: .*follow=True"):
        read(FileSource(path), position)


def test_a_newline_that_comes_late(tmp_path):
    path = file(tmp_path / "a.jsonl", "1\n2")
    position = middle_of(path)
    path.write_bytes(path.read_bytes() + b"\n3\n")
    assert read(FileSource(path), position) == [3]


@pytest.mark.parametrize(("change", "problem"), [("cut", "has been cut down"), ("anew", "has been written anew")])
def test_a_file_that_is_changed_while_it_is_read(tmp_path, change, problem):
    """What one reader saw of it may be of two files, or the rest is gone."""
    lines = "".join(f"{number}\n" for number in range(200_000))  # more than is read ahead
    path = file(tmp_path / "a.jsonl", lines)
    source = Reading(FileSource(path, batch_size=1000))
    assert source.next_batch() == list(range(1000))
    path.write_text("0\n" if change == "cut" else "9\n" + lines[2:] + "7\n")
    with pytest.raises(UsageError, match=rf"a\.jsonl {problem} while it was read, .*--restore none"):
        drained(source)
    source.close()


def test_a_file_that_is_removed_or_grows_while_it_is_read(tmp_path):
    path = file(tmp_path / "a.jsonl", "1\n2\n")
    source = Reading(FileSource(path, batch_size=1))
    assert source.next_batch() == [1]
    path.write_bytes(path.read_bytes() + b"3\n")
    path.unlink()
    assert drained(source) == [2, 3]
    source.close()
