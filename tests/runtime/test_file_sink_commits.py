"""FileSink from writing to visible: hidden until the commit, visible once, and nothing left of what was given up."""

from __future__ import annotations

import logging

import pytest

from statestore.errors import (
    CorruptionError,
    UnavailableError,
    UsageError,
)
from statestore_runtime import CollectSink, FileSink
from tests.runtime.sink_driving import (
    barrier,
    events,
    fresh,
    names,
    opened,
    restored,
    snapshot_of,
    visible,
    written,
)

# From writing to visible


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


# After a crash


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


# What was there before


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


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="file"):
        opened(FileSink(tmp_path / "file" / "out"))
