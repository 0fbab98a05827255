"""Sinks: hidden until the commit, visible once, and nothing left of what was given up."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import subprocess
import sys
from typing import NamedTuple

import msgspec
import pytest

from statestore.errors import CorruptionError, UnavailableError, UsageError
from statestore_runtime import CallableSink, CollectSink, FileSink, PrintSink, SinkContext
from tests.runtime.sink_conformance import JobOfSinks, numbered


def fresh(attempt=1, job="job", **arguments):
    return SinkContext(job, attempt, **arguments)


def restored(attempt, transactions, *snapshots, job="job", **arguments):
    """As a worker makes it from a checkpoint's JSON; one snapshot for each subtask that there was."""
    transactions, snapshots = json.loads(json.dumps([transactions, snapshots]))
    transactions, snapshots = tuple(transactions), dict(enumerate(snapshots))
    return SinkContext(job, attempt, fresh=False, transactions=transactions, snapshots=snapshots, **arguments)


def opened(sink, context=None):
    sink.open(context or fresh())
    return sink


def barrier(sink):
    """Transaction and snapshot, as they go into a checkpoint."""
    return sink.prepare(), sink.snapshot()


def written(sink, *batches):
    """One committed part with these batches."""
    for batch in batches:
        sink.write(batch)
    transaction, snapshot = barrier(sink)
    sink.commit(transaction)
    return transaction, snapshot


def snapshot_of(next_number):
    return {"attempt": 1, "base": 1, "next": next_number}


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".owner"))


def visible(folder):
    return [name for name in names(folder) if not name.startswith(".")]


def events(folder):
    return [json.loads(line) for name in visible(folder) for line in (folder / name).read_text().splitlines()]


# FileSink: from writing to visible


def test_nothing_is_visible_before_the_commit(tmp_path):
    sink = opened(FileSink(tmp_path / "deep" / "out"))
    folder = tmp_path / "deep" / "out"
    sink.write([1, 2])
    assert visible(folder) == []
    sink.write([3])
    transaction, _ = barrier(sink)
    assert visible(folder) == []
    sink.write([4])
    sink.commit(transaction)
    assert visible(folder) == ["part-0001-000-000001.jsonl"]
    assert events(folder) == [1, 2, 3]
    sink.close()
    assert names(folder) == ["part-0001-000-000001.jsonl"]


def test_a_barrier_without_events_has_no_transaction(tmp_path):
    sink = opened(FileSink(tmp_path))
    assert barrier(sink) == (None, snapshot_of(1))
    written(sink, [1])
    assert barrier(sink) == (None, snapshot_of(2))
    sink.close()


def test_a_transaction_is_committed_once_however_often_it_is_asked_for(tmp_path):
    sink = opened(FileSink(tmp_path))
    transaction, _ = written(sink, [1])
    sink.commit(transaction)
    opened(FileSink(tmp_path), restored(2, [transaction], snapshot_of(2))).close()
    assert events(tmp_path) == [1]


def test_transactions_of_failed_checkpoints_are_committed_later(tmp_path):
    sink = opened(FileSink(tmp_path))
    transactions = []
    for event in (1, 2, 3):
        sink.write([event])
        transactions.append(barrier(sink)[0])
    assert visible(tmp_path) == []
    for transaction in transactions:
        sink.commit(transaction)
    assert events(tmp_path) == [1, 2, 3]
    sink.close()


def test_many_parts_sort_in_the_order_of_writing(tmp_path):
    sink = opened(FileSink(tmp_path))
    for event in range(12):
        written(sink, [event])
    sink.close()
    assert events(tmp_path) == list(range(12))


def test_close_is_idempotent_and_allowed_before_open(tmp_path):
    sink = FileSink(tmp_path)
    sink.close()
    opened(sink).write([1])
    sink.close()
    sink.close()
    assert names(tmp_path) == []


def test_place_and_name(tmp_path):
    sink = FileSink(tmp_path / "out")
    assert sink.place == sink.name == str(tmp_path / "out")
    assert CollectSink().place is None


# FileSink: after a crash


def crashed(folder, attempt=1):
    """A committed part, a prepared one, and one that no barrier came to; a process that then died."""
    sink = opened(FileSink(folder), fresh(attempt))
    _, first = written(sink, ["committed"])
    sink.write(["prepared"])
    transaction, second = barrier(sink)
    sink.write(["lost"])
    sink._file.close()
    return transaction, first, second


def test_restored_transactions_are_committed_and_the_rest_is_written_again(tmp_path):
    transaction, _, snapshot = crashed(tmp_path)
    sink = opened(FileSink(tmp_path), restored(2, [transaction], snapshot))
    assert visible(tmp_path) == ["part-0001-000-000001.jsonl", "part-0001-000-000002.jsonl"]
    written(sink, ["again"])
    sink.close()
    assert names(tmp_path) == ["part-0001-000-000001.jsonl", "part-0001-000-000002.jsonl", "part-0002-000-000003.jsonl"]
    assert events(tmp_path) == ["committed", "prepared", "again"]


def test_what_was_prepared_after_the_checkpoint_is_removed(tmp_path):
    _, snapshot, _ = crashed(tmp_path)
    sink = opened(FileSink(tmp_path), restored(2, [], snapshot))
    assert len(names(tmp_path)) == 3, "a checkpoint of the attempt before may still come to light, and need them"
    written(sink, ["new"])
    sink.close()
    assert names(tmp_path) == visible(tmp_path)


def test_parts_newer_than_the_checkpoint_are_renamed(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    sink = opened(FileSink(tmp_path))
    checkpoints = [written(sink, [event]) for event in (1, 2, 3)]
    sink.close()
    sink = opened(FileSink(tmp_path), restored(2, [checkpoints[0][0]], checkpoints[0][1]))
    assert visible(tmp_path) == ["part-0001-000-000001.jsonl"]
    written(sink, [2])
    sink.close()
    assert events(tmp_path) == [1, 2]
    undone = [name for name in names(tmp_path) if name.startswith(".undone")]
    assert undone == [".undone-job-2-part-0001-000-000002.jsonl", ".undone-job-2-part-0001-000-000003.jsonl"]
    assert (tmp_path / undone[0]).read_text() == "2\n"


def test_undone_parts_of_two_restores_do_not_meet(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    sink = opened(FileSink(tmp_path))
    transaction, snapshot = written(sink, [1])
    for attempt in (2, 3, 4):
        written(sink, [attempt])
        sink.close()
        sink = opened(FileSink(tmp_path), restored(attempt, [transaction], snapshot))
    sink.close()
    assert events(tmp_path) == [1]
    undone = {name: (tmp_path / name).read_text() for name in names(tmp_path) if name.startswith(".undone")}
    assert sorted(undone.values()) == ["2\n", "3\n", "4\n"]


def test_leftovers_of_older_attempts_go_and_nobody_elses(tmp_path):
    kept = [
        ".part-0001-000-000001.jsonl.other.1.inprogress",
        ".part-0001-000-000001.jsonl.job.x.1.inprogress",
        ".part-0006-000-000009.jsonl.job.6.inprogress",
        ".part-0007-000-000001.jsonl.job.7.inprogress",
        ".undone-job-2-part-0001-000-000001.jsonl",
        ".hidden",
        "notes.txt",
        "part-1.jsonl",
    ]
    for name in [*kept, ".part-0003-000-000009.jsonl.job.3.inprogress", ".part-0005-000-000001.csv.job.5.inprogress"]:
        (tmp_path / name).touch()
    sink = opened(FileSink(tmp_path), fresh(6))
    written(sink, ["new"])
    sink.close()
    assert names(tmp_path) == sorted({*kept, *visible(tmp_path)})


@pytest.mark.parametrize("damage", ["gone", "cut"])
@pytest.mark.parametrize("was_committed", [True, False])
def test_a_part_that_the_checkpoint_counts_on(tmp_path, damage, was_committed):
    sink = opened(FileSink(tmp_path))
    sink.write(["important"])
    transaction, snapshot = barrier(sink)
    if was_committed:
        sink.commit(transaction)
    sink.close()
    (part,) = map(tmp_path.joinpath, names(tmp_path))
    part.unlink() if damage == "gone" else part.write_bytes(b'"impo')
    with pytest.raises(CorruptionError, match="is gone" if damage == "gone" else "5 bytes, the checkpoint says 12"):
        opened(FileSink(tmp_path), restored(2, [transaction], snapshot))


def test_a_file_in_the_way_of_a_part(tmp_path):
    sink = opened(FileSink(tmp_path))
    sink.write([1])
    transaction, _ = barrier(sink)
    (tmp_path / "part-0001-000-000001.jsonl").write_text("somebody else's\n")
    with pytest.raises(CorruptionError, match="in the way"):
        sink.commit(transaction)
    sink.close()
    assert (tmp_path / "part-0001-000-000001.jsonl").read_text() == "somebody else's\n"


@pytest.mark.parametrize(
    "transaction",
    [
        {"parts": [["../x", "part-0001-000-000001.jsonl", 0]]},
        {"parts": [[".part-0001-000-000001.jsonl.job.1.inprogress", "/etc/passwd", 0]]},
        {"replaces": ["../../precious"]},
        {"replaces": ["notes.txt"]},
    ],
)
def test_a_transaction_touches_nothing_but_parts(tmp_path, transaction):
    (tmp_path / "notes.txt").touch()
    sink = opened(FileSink(tmp_path))
    with pytest.raises(CorruptionError, match="no FileSink writes"):
        sink.commit(transaction)
    assert names(tmp_path) == ["notes.txt"]


# FileSink: what was there before


def earlier_run(folder, *, attempt=1):
    sink = opened(FileSink(folder), fresh(attempt))
    written(sink, ["old 1"])
    written(sink, ["old 2"])
    sink.close()


def test_an_earlier_run_is_an_error_by_default(tmp_path):
    earlier_run(tmp_path)
    with pytest.raises(UsageError, match=r"holds 2 part files.*if_exists='replace'"):
        opened(FileSink(tmp_path), fresh(2))
    assert events(tmp_path) == ["old 1", "old 2"]


def test_append_goes_on_behind_an_earlier_run(tmp_path):
    earlier_run(tmp_path)
    sink = opened(FileSink(tmp_path, if_exists="append"), fresh(2))
    written(sink, ["new"])
    sink.close()
    assert events(tmp_path) == ["old 1", "old 2", "new"]
    assert visible(tmp_path)[-1] == "part-0002-000-000003.jsonl"


def test_replace_removes_the_old_parts_with_the_first_commit_only(tmp_path):
    earlier_run(tmp_path)
    (tmp_path / "notes.txt").touch()
    sink = opened(FileSink(tmp_path, if_exists="replace"), fresh(2))
    old = ["notes.txt", "part-0001-000-000001.jsonl", "part-0001-000-000002.jsonl"]
    assert visible(tmp_path) == old
    sink.write(["new"])
    assert visible(tmp_path) == old
    first, _ = barrier(sink)
    sink.write(["newer"])
    second, _ = barrier(sink)
    assert visible(tmp_path) == old
    sink.commit(first)
    assert visible(tmp_path) == ["notes.txt", "part-0002-000-000003.jsonl"]
    sink.commit(second)
    sink.commit(first)
    sink.close()
    assert visible(tmp_path) == ["notes.txt", "part-0002-000-000003.jsonl", "part-0002-000-000004.jsonl"]


def test_replace_by_a_run_without_events(tmp_path):
    earlier_run(tmp_path)
    sink = opened(FileSink(tmp_path, if_exists="replace"), fresh(2))
    transaction, snapshot = barrier(sink)
    assert visible(tmp_path) == ["part-0001-000-000001.jsonl", "part-0001-000-000002.jsonl"]
    sink.commit(transaction)
    sink.close()
    assert (names(tmp_path), snapshot) == ([], {"attempt": 2, "base": 3, "next": 3})


def test_replace_is_finished_by_the_run_that_goes_on(tmp_path):
    """A crash between the checkpoint and its commit."""
    earlier_run(tmp_path)
    sink = opened(FileSink(tmp_path, if_exists="replace"), fresh(2))
    sink.write(["new"])
    transaction, snapshot = barrier(sink)
    sink = opened(FileSink(tmp_path, if_exists="replace"), restored(3, [transaction], snapshot))
    assert visible(tmp_path) == ["part-0002-000-000003.jsonl"]
    written(sink, ["newer"])
    sink.close()
    assert events(tmp_path) == ["new", "newer"]


def test_replace_of_a_run_that_died_before_its_first_checkpoint(tmp_path):
    earlier_run(tmp_path)
    sink = opened(FileSink(tmp_path, if_exists="replace"), fresh(2))
    sink.write(["lost"])
    barrier(sink)
    sink = opened(FileSink(tmp_path, if_exists="replace"), fresh(3))
    assert events(tmp_path) == ["old 1", "old 2"]
    written(sink, ["new"])
    sink.close()
    assert names(tmp_path) == ["part-0003-000-000003.jsonl"]


# FileSink: formats


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


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="file"):
        opened(FileSink(tmp_path / "file" / "out"))


# Sinks without files


def test_collect_sink_shows_what_is_committed():
    sink = opened(CollectSink())
    sink.write([1, 2])
    sink.write([3])
    first, _ = barrier(sink)
    sink.write([4])
    assert sink.results == []
    sink.commit(first)
    assert sink.results == [1, 2, 3]
    second, _ = barrier(sink)
    sink.commit(first)
    sink.commit(second)
    sink.commit(second)
    assert sink.results == [1, 2, 3, 4]
    assert barrier(sink) == (None, [1, 2])


def test_collect_sink_goes_back_to_a_checkpoint():
    sink = opened(CollectSink())
    _, early = written(sink, [1])
    sink.write([2])
    transaction, late = barrier(sink)
    sink.write([3])
    opened(sink, restored(2, [transaction], late))
    assert sink.results == [1, 2]
    written(sink, [3])
    assert sink.results == [1, 2, 3]
    opened(sink, restored(3, [], early))
    assert sink.results == [1]
    sink.write([2])
    barrier(sink)
    opened(sink, restored(4, [], early))
    assert sink.results == [1]


def test_collect_sink_starts_afresh():
    sink = opened(CollectSink())
    written(sink, [1])
    sink.write([2])
    barrier(sink)
    opened(sink, fresh(2))
    assert sink.results == []
    written(sink, [3])
    assert sink.results == [3]


def test_collect_sinks_transactions_are_told_apart_by_their_attempt():
    sink = opened(CollectSink())
    sink.write(["given up"])
    old, _ = barrier(sink)
    opened(sink, fresh(2))
    sink.write(["new"])
    new, _ = barrier(sink)
    assert old != new
    sink.commit(old)
    sink.commit(new)
    assert sink.results == ["new"]


def collecting(events):
    sink = CollectSink()
    return sink, JobOfSinks(lambda: sink, events)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 2)])
def test_collect_sink_of_several_subtasks(before, after):
    sink, job = collecting(numbered(60))
    job.deploy(before)
    job.checkpointed(10)
    early = job.checkpoint
    job.checkpointed(10)
    job.process(10)
    job.checkpoint = job.barrier()
    job.process(10)
    assert sorted(sink.results) == sorted(job.events[:20])
    job.deploy(after)
    assert sorted(sink.results) == sorted(job.events[:30])
    job.checkpointed(10)
    assert sorted(sink.results) == sorted(job.events[:40])
    job.deploy(before, early)
    assert sorted(sink.results) == sorted(job.events[:10])
    job.run_to_the_end(10)
    assert sorted(sink.results) == sorted(job.events)
    job.deploy(after, None)
    assert sink.results == []


def test_collect_sink_keeps_the_order_of_a_subtask():
    sink, job = collecting(numbered(60))
    job.deploy(2)
    job.run_to_the_end(10)
    for key in range(2):
        own = [event for event in sink.results if event[0] == key]
        assert own == [event for event in job.events if event[0] == key]


def test_copies_for_subtasks_call_one_function():
    seen = []
    sink = CallableSink(seen.append)
    for number in range(2):
        opened(sink.for_subtask(number), fresh(subtask=number, parallelism=2)).write([number])
    assert seen == [0, 1]


def test_callable_sink_calls_at_once():
    seen, batches = [], []
    sink = opened(CallableSink(seen.append))
    sink.write([1, 2])
    assert seen == [1, 2]
    assert barrier(sink) == (None, None)
    opened(CallableSink(batches.append, batch=True)).write([1, 2])
    assert batches == [[1, 2]]
    assert CallableSink(print).name == "print"
    with pytest.raises(UsageError, match="takes a function, not int"):
        CallableSink(3)


def test_print_sink_prints(capsys):
    opened(PrintSink()).write([1, "two", {"three": 3}])
    assert capsys.readouterr().out == "1\ntwo\n{'three': 3}\n"


def test_drivers_are_imported_when_they_are_needed():
    program = (
        "import sys, statestore_runtime.sinks; print({'redis', 'pyarrow', 'confluent_kafka'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.stdout == "set()\n", run.stderr
