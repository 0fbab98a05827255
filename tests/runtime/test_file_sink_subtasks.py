"""FileSink in several subtasks, and attempts that meet in one folder."""

from __future__ import annotations

import pytest

from statestore.errors import (
    FencedError,
    IncompatibleStateError,
    UsageError,
)
from statestore_runtime import FileSink, SinkContext
from statestore_runtime.sinks import fencing, parts
from tests.runtime.sink_conformance import JobOfSinks, numbered
from tests.runtime.sink_driving import (
    EventSink,
    events,
    output,
    sink_in,
    visible,
    written,
)


def test_names_of_several_subtasks(tmp_path):
    sinks = [sink_in(tmp_path, 1, subtask, 2) for subtask in range(2)]
    for sink in sinks:
        written(sink, ["first"])
    written(sinks[1], ["second"])
    assert visible(tmp_path) == [
        "part-0001-000-000001.jsonl", "part-0001-001-000001.jsonl", "part-0001-001-000002.jsonl",
    ]  # fmt: skip


def test_subtasks_replace_an_earlier_run_together(tmp_path):
    written(sink_in(tmp_path), ["old"])
    sinks = [sink_in(tmp_path, 2, subtask, 2, if_exists="replace") for subtask in (1, 0)]
    sinks[0].write(["new"])
    transactions = [sink.prepare() for sink in sinks]
    assert events(tmp_path) == ["old"]
    for sink, transaction in zip(sinks, transactions, strict=True):
        sink.commit(transaction)
    assert visible(tmp_path) == ["part-0002-001-000002.jsonl"]


def test_an_earlier_run_is_the_first_subtasks_business(tmp_path):
    written(sink_in(tmp_path), ["old"])
    sink_in(tmp_path, 2, 1, 2).close()
    with pytest.raises(UsageError, match="holds 1 part files"):
        sink_in(tmp_path, 2, 0, 2)


def test_numbers_go_on_above_those_of_all_subtasks(tmp_path):
    job = JobOfSinks(lambda: EventSink(tmp_path), numbered(20))
    job.deploy(2)
    for event in job.events[:3]:
        job.sinks[1].write([event])
        job.complete(job.barrier())
    job.deploy(1)
    job.checkpointed(1)
    assert visible(tmp_path)[-1] == "part-0002-000-000004.jsonl"
    job.close()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("part-0002-000-000005.jsonl", True),  # below what subtask 0 began with
        ("part-0009-003-000005.jsonl", True),  # of an earlier run, whose attempts were counted elsewhere
        ("part-0009-003-000006.jsonl", False),
        ("part-0002-003-000006.jsonl", False),
        ("part-0002-000-000007.jsonl", True),
        ("part-0002-000-000008.jsonl", False),
        ("part-0002-001-000004.jsonl", True),
        (
            "part-0002-001-000005.jsonl",
            False,
        ),  # subtask 1 began with 4: it had opened before an older part became visible
    ],
)
def test_what_a_checkpoint_knows(name, known):
    snapshots = {0: {"attempt": 2, "base": 6, "next": 8}, 1: {"attempt": 2, "base": 4, "next": 5}}
    assert parts.is_known(parts.VISIBLE_NAME.fullmatch(name), snapshots) is known


def prepared_by_two(folder):
    """A job whose checkpoint counts on a part of each of two subtasks, none of them committed."""
    job = JobOfSinks(lambda: EventSink(folder), numbered(10))
    job.deploy(2)
    job.process(10)
    job.checkpoint = job.barrier()
    return job


def test_a_part_that_gets_another_name_while_it_is_committed(tmp_path, monkeypatch):
    """Subtask 0 takes the older attempt's parts away from it while subtask 1 looks for one of them."""
    job = prepared_by_two(tmp_path)
    check_size, others = parts.check_size, []

    def checked(path, size):
        if not others:
            others.append(EventSink(tmp_path))
            others[0].open(SinkContext("job", 2, 0, 2, fresh=False, snapshots=job.checkpoint["snapshots"]))
        check_size(path, size)

    monkeypatch.setattr(parts, "check_size", checked)
    job.checkpoint["snapshots"] = {int(subtask): s for subtask, s in job.checkpoint["snapshots"].items()}
    sink = EventSink(tmp_path)
    transactions = tuple(job.checkpoint["transactions"])
    sink.open(SinkContext("job", 2, 1, 2, False, transactions, job.checkpoint["snapshots"]))
    assert sorted(output(tmp_path)) == sorted(job.events)
    job.close()


def test_an_owner_that_comes_while_a_zombie_commits(tmp_path, monkeypatch):
    """After the zombie has looked who the owner is, and before it renames."""
    job = prepared_by_two(tmp_path)
    (zombie, _), ((transaction,), _) = job.sinks, job.uncommitted
    found = zombie._folder._found

    def found_too_late(hidden):
        if job.attempt == 1:
            job.deploy(2, checkpoint=None)
        return found(hidden)

    monkeypatch.setattr(zombie._folder, "_found", found_too_late)
    with pytest.raises(FencedError, match="attempt 2 owns"):
        zombie.commit(transaction)
    assert output(tmp_path) == []
    job.close()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_zombie_prepares_nothing(tmp_path, moment):
    """A part that it begins after the owner has come is not renamed, so it must not get to a commit."""
    zombie = sink_in(tmp_path)
    if moment == "before":
        zombie.write([1])
    sink_in(tmp_path, attempt=2)
    if moment == "after":
        zombie.write([1])
    with pytest.raises(FencedError, match="attempt 2 owns"):
        zombie.prepare()
    zombie.close()


def test_an_owner_that_comes_while_a_zombie_opens(tmp_path, monkeypatch):
    claim = fencing.FolderFence.check
    newer = []

    def check(fence):
        if not newer:
            newer.append(FileSink(tmp_path))
            newer[0].open(SinkContext("job", 2))
        claim(fence)

    monkeypatch.setattr(fencing.FolderFence, "check", check)
    with pytest.raises(FencedError):
        sink_in(tmp_path)
    newer[0].write([1])
    newer[0].commit(newer[0].prepare())
    assert events(tmp_path) == [1]


@pytest.mark.parametrize("snapshots", [{}, {0: None}, {0: [1, 2]}, {0: {"next": 3}}])
def test_snapshots_of_another_sink(tmp_path, snapshots):
    with pytest.raises(IncompatibleStateError, match="another sink has this sink's uid"):
        FileSink(tmp_path).open(SinkContext("job", 2, fresh=False, snapshots=snapshots))
