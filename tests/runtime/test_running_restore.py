"""What `restore` means for a run, on every backend."""

from __future__ import annotations

import pytest

from statestore.errors import CheckpointNotFoundError, IncompatibleStateError, UsageError
from statestore_runtime.messages import CheckpointCompleted, Started
from tests.runtime.run_stories import (
    CHECKPOINT,
    Crash,
    expected,
    key_of,
)


def test_an_unfinished_run_is_not_given_up_by_accident(stage):
    stage.crash([1, CHECKPOINT, 2, Crash(), 3])
    with pytest.raises(UsageError, match=r"did not finish, its last checkpoint is .*story/chk-2.*--restore latest"):
        stage.play([1, 2, 3])
    stage.play([1, 2, 3], restore="none")
    stage.check([1, 2, 3])


def test_a_finished_job_starts_afresh(stage):
    for events in ([1, 2, 3, 4], [4, 5], [7]):
        finished = stage.play(events)
        stage.check(events)
        assert (finished.events, finished.keys) == (len(events), len({key_of(event) for event in events}))


def test_latest_of_a_finished_job_reads_only_what_is_new(stage):
    stage.play([1, 2])
    finished = stage.play([1, 2, 3, 4], restore="latest")
    stage.check([1, 2, 3, 4])
    assert (finished.events, finished.events_this_run) == (4, 2)
    (started,) = stage.told(Started)
    assert (started.restored_checkpoint, started.attempt, started.backend) == (2, 2, stage.backend)


def test_the_path_of_a_checkpoint(stage, caplog):
    caplog.set_level("ERROR")
    story = [1, CHECKPOINT, 2, CHECKPOINT, 3]
    stage.play(story)
    path = f"{stage.checkpoints}/chk-2"  # chk-1 is the beginning
    assert (stage.checkpoints / "chk-2").is_dir()
    stage.play([1, CHECKPOINT, 20, 30], restore=path)
    assert stage.sink.results == expected([1, 20, 30])
    assert stage.written() == expected([1, 20, 30])
    assert sorted(stage.hidden()) == [
        ".undone-story-2-part-0001-000-000002.jsonl",
        ".undone-story-2-part-0001-000-000003.jsonl",
    ]


def test_latest_after_the_path_of_an_older_checkpoint(stage, caplog):
    """The given up future does not come back, not even when the run dies at once."""
    caplog.set_level("ERROR")
    stage.play([1, CHECKPOINT, 2, CHECKPOINT, 3])
    changed = [1, CHECKPOINT, Crash(), 20]
    stage.crash(changed, restore=f"{stage.checkpoints}/chk-2")
    stage.play(changed, restore="latest")
    assert stage.sink.results == stage.written() == expected([1, 20])


def test_nothing_to_restore(stage):
    with pytest.raises(CheckpointNotFoundError, match="there is no checkpoint"):
        stage.play([1], restore="latest")
    with pytest.raises(CheckpointNotFoundError):
        stage.play([1], restore=f"{stage.checkpoints}/chk-7")
    with pytest.raises(UsageError, match="no checkpoint's path"):
        stage.play([1], restore="newest")
    stage.play([1])
    stage.check([1])


def test_a_fresh_start_begins_with_a_checkpoint(stage):
    """So that latest never means what an earlier run has left."""
    stage.play([1, 2, CHECKPOINT, 3])
    stage.crash([4, Crash(), 5], restore="none")
    (begun,) = stage.told(CheckpointCompleted)
    assert begun.checkpoint == 4
    stage.play([4, 5], restore="latest")
    stage.check([4, 5])


def test_latest_begins_without_a_checkpoint(stage):
    stage.crash([1, CHECKPOINT, 2, Crash()])
    stage.crash([1, CHECKPOINT, 2, Crash()], restore="latest")
    assert stage.told(CheckpointCompleted) == []
    assert [message.restored_checkpoint for message in stage.told(Started)] == [2]


def test_a_restart_within_a_run_goes_on_whatever_restore_says(stage):
    story = [1, CHECKPOINT, 2, Crash(), 3, CHECKPOINT, Crash(), 4]
    stage.crash(story, restore="none", run="r")
    stage.crash(story, restore="none", run="r")
    stage.play(story, restore="none", run="r")
    stage.check([1, 2, 3, 4])


def test_another_number_of_key_groups(memory_stage):
    stage = memory_stage()
    stage.play([1])
    stage.config = stage.configured("state.max-parallelism=64")
    with pytest.raises(IncompatibleStateError, match=r"set state\.max-parallelism = 128"):
        stage.play([1, 2], restore="latest")
    stage.play([1, 2], restore="none")
    stage.check([1, 2])


def test_output_of_an_earlier_run_ends_the_job_before_it_begins(stage):
    stage.play([1])
    with pytest.raises(UsageError, match="part files of an earlier run"):
        stage.play([2], if_exists="error")
    assert stage.written() == expected([1])
    stage.play([2], if_exists="append")
    assert stage.written() == expected([1]) + expected([2])
