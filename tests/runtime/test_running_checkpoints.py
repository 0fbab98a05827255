"""Checkpoints of a run that fail, get stuck or come too late: every event counts exactly once all the same."""

from __future__ import annotations

import threading

import pytest

from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import FencedError, UnavailableError
from statestore.io import LocalStorage, open_storage
from statestore_runtime import (
    CheckpointFailedError,
    FileSink,
)
from statestore_runtime.messages import CheckpointCompleted, CheckpointFailed
from tests.runtime.run_stories import CHECKPOINT, INTERVAL, OVERDUE, TIMEOUT, Call, Crash, Failing, expected

FIVE = [1, CHECKPOINT, 2, CHECKPOINT, 3, CHECKPOINT, 4, CHECKPOINT, 5]


@pytest.mark.parametrize("fails", [[2], [2, 3], [3, 4, 5], [2, 4], [6], [5, 6, 7]])
def test_transactions_of_failed_checkpoints_go_with_the_next(stage, monkeypatch, fails):
    """Checkpoint 1 is the beginning, 6 the final one, which is tried again."""
    stage.config = stage.configured("checkpointing.tolerable-failed=3")
    Failing(monkeypatch, CheckpointStorage, "complete", fails)
    visible = []
    story = list(FIVE)
    for place in (8, 6, 4, 2):
        story.insert(place, Call(lambda: visible.append(len(stage.sink.results))))
    finished = stage.play(story)
    stage.check([1, 2, 3, 4, 5])
    # A failed checkpoint makes nothing visible, the next good one makes up for it.
    good = 0
    for number, count in enumerate(visible, 2):
        good = good if number in fails else number - 1
        assert count == good
    failures = stage.told(CheckpointFailed)
    assert len(failures) == len(fails)
    assert all("no answer" in failure.reason for failure in failures)
    numbers = [message.checkpoint for message in stage.told(CheckpointCompleted)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert (finished.checkpoints, finished.last_checkpoint) == (len(numbers), numbers[-1])


@pytest.mark.parametrize("fails", [[2], [2, 3], [3, 4, 5]])
def test_a_crash_after_failed_checkpoints(stage, monkeypatch, fails):
    stage.config = stage.configured("checkpointing.tolerable-failed=3")
    Failing(monkeypatch, CheckpointStorage, "complete", fails)
    story = [*FIVE, Crash(), 6]
    stage.crash(story)
    good = [number for number in range(1, 6) if number not in fails][-1]
    stage.check_visible(range(1, good))
    stage.play(story, restore="latest")
    stage.check([1, 2, 3, 4, 5, 6])


def test_a_crash_between_a_failed_and_a_good_checkpoint(stage, monkeypatch):
    """The good one carries the transactions of both, and only its commit is missing."""
    stage.config = stage.configured("checkpointing.tolerable-failed=3")
    Failing(monkeypatch, CheckpointStorage, "complete", [2])
    Failing(monkeypatch, FileSink, "commit", [1])
    story = [1, CHECKPOINT, 2, CHECKPOINT, 3]
    with pytest.raises(UnavailableError, match="no answer"):
        stage.play(story)
    assert stage.written() == []
    stage.play(story, restore="latest")
    assert stage.written() == expected([1, 2, 3])
    assert stage.hidden() == []


def test_a_checkpoint_names_the_transactions_that_are_not_committed_yet(memory_stage, monkeypatch):
    stage = memory_stage("checkpointing.tolerable-failed=3", "checkpointing.num-retained=9")
    Failing(monkeypatch, CheckpointStorage, "complete", [3, 4])
    stage.play(FIVE)
    checkpoints = CheckpointStorage(open_storage(str(stage.checkpoints.parent)), "story")
    metas = [checkpoints.load(number).meta for number in checkpoints.retained()]
    assert [meta["events"] for meta in metas] == [0, 1, 4, 5]
    for uid in ("sink-1", "sink-2"):
        assert [len(meta["sinks"][uid]["transactions"]) for meta in metas] == [0, 1, 3, 1]


def test_uploads_that_fail(stage, monkeypatch):
    stage.config = stage.configured("checkpointing.tolerable-failed=1", "checkpointing.inline-threshold=0")
    original, uploads = LocalStorage.write, []

    def write(storage, name, data):
        if "/delta-" in name:
            uploads.append(name)
            if len(uploads) in (2, 5):
                raise UnavailableError("storage", storage.url, "disk full")
        original(storage, name, data)

    monkeypatch.setattr(LocalStorage, "write", write)
    stage.crash([1, CHECKPOINT, 2, CHECKPOINT, 3, CHECKPOINT, 4, Crash(), 5])
    assert len(stage.told(CheckpointFailed)) == 2
    stage.play([1, CHECKPOINT, 2, CHECKPOINT, 3, CHECKPOINT, 4, 5], restore="latest")
    stage.check([1, 2, 3, 4, 5])


def test_more_failures_than_tolerated(stage, monkeypatch):
    stage.config = stage.configured("checkpointing.tolerable-failed=1")
    Failing(monkeypatch, CheckpointStorage, "complete", [3, 4])
    with pytest.raises(CheckpointFailedError, match=r"2 checkpoints in a row failed: .*no answer") as caught:
        stage.play(FIVE)
    assert caught.value.exit_code == 3
    stage.check_visible([1])
    stage.play(FIVE, restore="latest")
    stage.check([1, 2, 3, 4, 5])


def test_no_failure_is_tolerated_by_default(stage, monkeypatch):
    Failing(monkeypatch, CheckpointStorage, "complete", [2])
    with pytest.raises(CheckpointFailedError, match="the checkpoint failed"):
        stage.play(FIVE)
    stage.play(FIVE, restore="latest")
    stage.check([1, 2, 3, 4, 5])


def test_a_first_checkpoint_that_fails_processes_nothing(memory_stage, monkeypatch):
    stage = memory_stage()
    Failing(monkeypatch, CheckpointStorage, "complete", [1])
    with pytest.raises(CheckpointFailedError):
        stage.play([1])
    assert stage.story.index == 0
    stage.play([1])
    stage.check([1])


def test_a_newer_attempt_stops_this_one(stage):
    """However many failures are tolerated; and nothing of it becomes visible."""
    stage.config = stage.configured("checkpointing.tolerable-failed=100")
    checkpoints = CheckpointStorage(open_storage(str(stage.checkpoints.parent)), "story")
    with pytest.raises(FencedError):
        stage.play([1, CHECKPOINT, 2, Call(checkpoints.claim_attempt), CHECKPOINT, 3])
    stage.check_visible([1])


class Stuck:
    """A method's call number `number`, of those with such a first argument, waits until it is released."""

    def __init__(self, monkeypatch, owner, name, number, counts=lambda argument: True):
        original, self.calls = getattr(owner, name), 0
        self._is_stuck, self._released = threading.Event(), threading.Event()

        def call(called, argument, *more):
            if counts(argument):
                self.calls += 1
                if self.calls == number:
                    self._is_stuck.set()
                    assert self._released.wait(60)
            original(called, argument, *more)

        monkeypatch.setattr(owner, name, call)

    def release(self):
        self._released.set()

    def pass_time(self, stage, seconds):
        """A place of a story where so much time passes, once the call is stuck."""

        def pass_it():
            if not self._is_stuck.is_set():
                return False
            stage.clock.now += seconds
            return True

        return Call(pass_it)


def interval(stage):
    """A place of a story where a checkpoint comes to be due; the events behind it do not wait."""
    return Call(lambda: setattr(stage.clock, "now", stage.clock.now + INTERVAL))


@pytest.mark.parametrize("number", [2, 3])
def test_a_stuck_upload_is_given_up(stage, monkeypatch, number):
    """Its time comes to an end on the clock; it wakes up when the next one is complete, and changes nothing."""
    stage.config = stage.configured("checkpointing.tolerable-failed=1", "checkpointing.inline-threshold=0")
    stuck = Stuck(monkeypatch, LocalStorage, "write", number, lambda name: "/delta-" in name)
    story = [1, CHECKPOINT, 2, CHECKPOINT, 3, CHECKPOINT, 4]
    at = 2 * number - 3
    story[at : at + 1] = [interval(stage), stuck.pass_time(stage, OVERDUE)]
    story.append(Call(stuck.release))
    threads = threading.active_count()
    finished = stage.play(story)
    assert [failure.reason for failure in stage.told(CheckpointFailed)] == [
        f"checkpoint unavailable at {stage.checkpoints}: it took longer than checkpointing.timeout ({TIMEOUT:g} s): "
        "worker 0 has not acknowledged it"
    ]
    stage.check([1, 2, 3, 4])
    assert finished.last_checkpoint == len(stage.told(CheckpointCompleted)) == 4
    join_checkpoints()
    assert threading.active_count() <= threads
    assert not (stage.checkpoints / "chk-5").exists()
    stage.play([*story, 5], restore="latest")
    stage.check([1, 2, 3, 4, 5])


def test_a_checkpoint_that_is_being_completed_is_not_given_up(stage, monkeypatch):
    """Its time is over while the manifest is written: whether it exists would be unknown."""
    stuck = Stuck(monkeypatch, CheckpointStorage, "complete", 2)

    def go_on():
        stuck.release()
        join_checkpoints()

    story = [1, interval(stage), stuck.pass_time(stage, OVERDUE), 2, Call(go_on), CHECKPOINT, 3]
    finished = stage.play(story)
    assert stage.told(CheckpointFailed) == []
    assert finished.checkpoints == stuck.calls == len(stage.told(CheckpointCompleted))
    stage.check([1, 2, 3])


def test_a_manifest_that_is_written_for_ever_ends_the_run(stage, monkeypatch):
    """Only a new start can tell whether it is complete."""
    stuck = Stuck(monkeypatch, CheckpointStorage, "complete", 2)
    monkeypatch.setattr("statestore_runtime.task.barriers.CLOSING_SECONDS", 0.01)
    story = [1, interval(stage), stuck.pass_time(stage, 2 * OVERDUE), 2, 3]
    with pytest.raises(UnavailableError, match="only a new start can tell"):
        stage.play(story)
    stuck.release()
    join_checkpoints()
    stage.play(story, restore="latest")
    stage.check([1, 2, 3])


def join_checkpoints():
    for thread in threading.enumerate():
        if thread.name == "statestore-checkpoint":
            thread.join(60)
