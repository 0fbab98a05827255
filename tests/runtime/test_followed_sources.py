"""Files that grow, and folders to which files are added."""

from __future__ import annotations

import csv
import io
import itertools
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.errors import ConfigError, UsageError
from statestore_runtime.sources import BadRecordError, FileSource, SourceContext
from tests.runtime.source_reading import Reading


class Row(msgspec.Struct, frozen=True):
    id: int
    text: str


CSV = 'id,text\n1,a\n\n2,"b\nb"\n3,"c ""c"",\n\nc"\n4,d\r\n5,"e"\n'
ROWS = [Row(1, "a"), Row(2, "b\nb"), Row(3, 'c "c",\n\nc'), Row(4, "d"), Row(5, "e")]
JSON_LINES = "".join(f'{{"id":{row.id},"text":{json.dumps(row.text)}}}\n' for row in ROWS)
DATA = {"a.csv": CSV, "a.jsonl": JSON_LINES, "b.csv": "\ufeff" + CSV, "b.jsonl": "\ufeff\n" + JSON_LINES}


class Followed:
    """A file, a reading of it that is begun again at will, and what it has read."""

    def __init__(self, path, **options):
        self.path, self._options = path, {"type": Row, **options}
        self.events, self.context = [], SourceContext("skip")
        self.path.write_bytes(b"")
        self.reading = Reading(FileSource(path, follow=True, **self._options), None, self.context)

    def append(self, data):
        with self.path.open("ab") as file:
            file.write(data.encode() if isinstance(data, str) else data)

    def drain(self):
        while batch := self.reading.next_batch():
            self.events += batch
        assert batch == [], "a followed file has no end"

    def begin_again(self):
        position = json.loads(json.dumps(self.reading.position()))
        self.reading.close()
        self.reading = Reading(FileSource(self.path, follow=True, **self._options), position, self.context)


@pytest.fixture
def follow(tmp_path):
    begun = []

    def follow(name, **options):
        begun.append(Followed(tmp_path / name, **options))
        return begun[-1]

    yield follow
    for followed in begun:
        followed.reading.close()


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("is_begun_again", [False, True])
@pytest.mark.parametrize("batch_size", [1, 100])
def test_a_file_that_grows_byte_by_byte(follow, name, is_begun_again, batch_size):
    followed = follow(name, batch_size=batch_size)
    for byte in DATA[name].encode():
        followed.append(bytes([byte]))
        followed.drain()
        if is_begun_again:
            followed.begin_again()
    assert followed.events == ROWS
    assert followed.context.bad_records == 0


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("step", [2, 7, 30])
@pytest.mark.parametrize("batch_size", [2, 256])
def test_a_file_that_grows_in_pieces(follow, name, step, batch_size):
    followed, data = follow(name, batch_size=batch_size), DATA[name].encode()
    for begin in range(0, len(data), step):
        followed.append(data[begin : begin + step])
        followed.drain()
    assert followed.events == ROWS


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text('ab",\n\r ', max_size=6), min_size=1, max_size=8),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    restarts=st.lists(st.booleans(), min_size=1, max_size=8),
    batch_size=st.sampled_from([1, 2, 5]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_any_csv_written_in_any_pieces(tmp_path_factory, texts, steps, restarts, batch_size, quoting):
    if quoting == csv.QUOTE_MINIMAL:  # the writer leaves a single carriage return without quotes: then it is none
        texts = [text.replace("\r", "") for text in texts]
    rows = [Row(number, text) for number, text in enumerate(texts)]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=quoting).writerows(
        [("id", "text"), *map(msgspec.structs.astuple, rows)]
    )
    data = buffer.getvalue().encode()
    followed = Followed(tmp_path_factory.mktemp("any") / "a.csv", batch_size=batch_size)
    begin, pieces = 0, itertools.cycle(zip(itertools.cycle(steps), restarts))
    while begin < len(data):
        step, is_begun_again = next(pieces)
        followed.append(data[begin : begin + step])
        begin += step
        followed.drain()
        if is_begun_again:
            followed.begin_again()
    followed.reading.close()
    assert (followed.events, followed.context.bad_records) == (rows, 0)


def test_a_line_counts_when_its_newline_is_there(follow):
    followed = follow("a.jsonl", type=int)
    followed.append("1\n2")
    followed.drain()
    assert followed.events == [1]
    followed.append("3\n")
    followed.drain()
    assert followed.events == [1, 23]


def test_what_is_not_complete_is_read_again_only_when_there_is_more(follow, monkeypatch):
    followed = follow("a.csv")
    followed.append('id,text\n1,a\n2,"b\n')
    followed.drain()
    reads, (reader,) = [], followed.reading.readers.values()
    whole = reader._reader.read
    monkeypatch.setattr(reader._reader, "read", lambda count: reads.append(count) or whole(count))
    for _ in range(5):
        followed.drain()
    assert reads == []
    followed.append('b"\n')
    followed.drain()
    assert followed.events == [Row(1, "a"), Row(2, "b\nb")]
    assert len(reads) == 2, "to the end, and to know that it is one"


def test_bad_records_of_a_growing_file_are_met_once(follow):
    followed = follow("a.csv")
    for piece in ("id,text\n1,a\nx,", "b\n", 'y,"c\n', 'c"\nz,"', '"\n2,d\n'):
        followed.append(piece)
        followed.drain()
    assert (followed.events, followed.context.bad_records) == ([Row(1, "a"), Row(2, "d")], 3)


def test_bad_records_have_their_line_numbers(follow):
    followed = follow("a.csv")
    followed.context = SourceContext("fail")
    followed.append('id,text\n1,"a\n')
    followed.begin_again()
    followed.drain()
    followed.append('a"\nx,b\n')
    with pytest.raises(BadRecordError, match=r"a\.csv, line 4"):
        followed.drain()


def replaced(followed):
    other = followed.path.with_name("other")
    other.write_bytes(followed.path.read_bytes())
    other.replace(followed.path)


CHANGES = {
    "is not there any more": lambda followed: followed.path.unlink(),
    "replaced by another file": replaced,
    r"cut down to 0 bytes, \d+ had been read": lambda followed: followed.path.write_bytes(b""),
    "written anew": lambda followed: followed.path.write_text(JSON_LINES.replace("a", "A") * 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_does_not_only_grow(follow, change):
    followed = follow("a.jsonl")
    followed.append(JSON_LINES)
    followed.drain()
    CHANGES[change](followed)
    with pytest.raises(UsageError, match=rf"a\.jsonl, which is followed, .*{change}"):
        followed.drain()


def test_a_followed_file_that_was_changed_while_nobody_read_it(follow):
    followed = follow("a.jsonl")
    followed.append(JSON_LINES)
    followed.drain()
    followed.path.write_text(JSON_LINES.replace("a", "A") * 2)
    with pytest.raises(UsageError, match="begins differently"):
        followed.begin_again()


def test_several_files_are_followed_side_by_side(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(f'"{name}1"\n')
    reading = Reading(FileSource(tmp_path / "*.jsonl", follow=True, discovery_interval=1))
    events = []

    def drain():
        while batch := reading.next_batch():
            events.extend(batch)

    drain()
    assert events == ["a1", "b1"]
    for name in "bac":
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write(f'"{name}2"\n')
    drain()
    assert events == ["a1", "b1", "a2", "b2"]
    assert reading.look() == [str(tmp_path / "c.jsonl")]
    drain()
    assert events[4:] == ["c2"]
    reading.close()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst", "a.jsonl.zip"])
def test_what_can_not_be_followed(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="can't be followed"):
        Reading(FileSource(tmp_path / name, follow=True))


# Discovery


def test_files_that_come_later(tmp_path):
    source = FileSource(tmp_path / "*.jsonl", discovery_interval=5)
    assert (source.discovery_interval, source.is_concurrent) == (5, False)
    reading = Reading(source)
    for name in "ba":
        (tmp_path / f"{name}.jsonl").write_text(f'"{name}"\n')
    assert reading.look() == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert reading.look() == []
    assert [reading.next_batch(), reading.next_batch(), reading.next_batch()] == [["a"], ["b"], None]
    (tmp_path / "0.jsonl").write_text("0\n")
    (tmp_path / "a.jsonl").unlink()
    assert reading.look() == [str(tmp_path / "0.jsonl")]
    assert reading.next_batch() == [0]
    reading.close()


def test_a_file_that_must_be_there_is_missed_also_by_one_that_looks_again(tmp_path):
    for path in (tmp_path / "none.jsonl", [tmp_path / "none.jsonl"]):
        with pytest.raises(ConfigError, match="there is no file"):
            Reading(FileSource(path, discovery_interval=5))
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(ConfigError, match="does not tell its format"):
        Reading(FileSource(tmp_path / "*", discovery_interval=5))


def test_files_are_read_in_order_one_after_the_other(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.jsonl").write_text(f'"{name}1"\n"{name}2"\n')
    reading = Reading(FileSource(tmp_path / "*.jsonl", batch_size=1))
    read_events = [reading.next_batch() for _ in range(3)]
    assert (read_events, list(reading.readers)) == ([["a1"], ["a2"], ["b1"]], [str(tmp_path / "b.jsonl")])
    reading.close()
