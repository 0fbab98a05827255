"""Runs as stories, on every backend, in which every event counts exactly once; what a run tells, and what ends it."""

from __future__ import annotations

import random
import signal

import pytest

from statestore.checkpoint.storage import CheckpointStorage
from statestore.config import load_config
from statestore_runtime import (
    CollectionSource,
    CollectSink,
    FileSink,
    Finished,
    Job,
    UserCodeError,
    run_job,
)
from statestore_runtime.messages import CheckpointCompleted, Progress, Started
from tests.conftest import BACKENDS
from tests.runtime.run_stories import (
    CHECKPOINT,
    INTERVAL,
    Call,
    Clock,
    Count,
    Crash,
    Failing,
    Story,
    events_of,
    expected,
    key_of,
)


def test_without_a_crash(stage):
    finished = stage.play([1, 2, CHECKPOINT, 3, 4])
    stage.check([1, 2, 3, 4])
    assert (finished.events, finished.events_this_run, finished.keys, finished.checkpoints) == (4, 4, 3, 3)
    assert finished.outputs == [str(stage.out)]


CRASHES = [
    ["c", 1, 2, 3],
    [1, 2, "c", 3],
    [1, 2, CHECKPOINT, "c", 3],
    [1, 2, CHECKPOINT, 3, "c", 4],
    [1, CHECKPOINT, 2, CHECKPOINT, 3, "c", 4, CHECKPOINT, 5],
    [1, CHECKPOINT, 2, "c", 3, "c", CHECKPOINT, 4, "c"],
    ["c", "c", 1, CHECKPOINT, "c"],
]


@pytest.mark.parametrize("elements", CRASHES, ids=lambda elements: "-".join(str(e)[:2] for e in elements))
def test_a_crash_and_the_run_that_goes_on(stage, elements):
    story = [Crash() if element == "c" else element for element in elements]
    stage.crash(story)
    for _ in range(elements.count("c") - 1):
        stage.crash(story, restore="latest")
    finished = stage.play(story, restore="latest")
    stage.check(events_of(story))
    assert finished.events == len(events_of(story))
    assert finished.keys == len({key_of(event) for event in events_of(story)})


@pytest.mark.parametrize("seed", range(3))
def test_many_events_checkpoints_and_crashes(stage, seed):
    rng = random.Random(seed)
    story = []
    for event in range(40):
        story.append(event)
        story += [CHECKPOINT] if rng.random() < 0.2 else []
        story += [Crash()] if rng.random() < 0.1 else []
    crashes = [element for element in story if isinstance(element, Crash)]
    assert len(crashes) >= 2
    restore = None
    for _ in crashes:
        stage.crash(story, restore=restore)
        restore = "latest"
    stage.play(story, restore=restore)
    stage.check(range(40))


def test_nothing_uncommitted_is_visible_after_a_crash(stage):
    stage.crash([1, 2, CHECKPOINT, 3, Crash(), 4])
    stage.check([1, 2])
    stage.crash([1, 2, CHECKPOINT, 3, Crash(), 4], restore="latest")
    stage.check([1, 2])


def test_an_exception_in_a_users_function(places):
    for backend in BACKENDS:
        job, sink, armed, clock = Job(f"job-{backend}"), CollectSink(), [True], Clock()

        def fails_once(event, armed=armed):
            if event == 5 and armed.pop():
                raise RuntimeError("crash")
            return event

        numbers = job.source(CollectionSource(range(9), batch_size=2)).map(fails_once)
        numbers.key_by(key_of, str).process(Count()).sink(sink)
        config = load_config(overrides=places.overrides(backend))
        with pytest.raises(UserCodeError, match="operator 'map-1'"):
            run_job(job, config, clock=clock)
        assert sink.results == []
        armed.append(False)
        run_job(job, config, restore="latest", clock=clock)
        assert sink.results == expected(range(9))


def test_two_sources_each_go_back_to_their_own_position(memory_stage):
    stage, sink = memory_stage(), CollectSink()
    one = Story(stage.clock, [1, 2, CHECKPOINT, 3, Crash(), 4])
    two = Story(stage.clock, [10, 20, 30, 40, 50, 60])
    for restore in (None, "latest"):
        job = Job("story")
        job.source(one).union(job.source(two)).key_by(key_of, str).process(Count()).sink(sink)
        if restore is None:
            with pytest.raises(UserCodeError, match="crash"):
                run_job(job, stage.config, emit=one.tell, clock=stage.clock)
            assert 0 < len(sink.results) < 10
        else:
            run_job(job, stage.config, restore=restore, emit=one.tell, clock=stage.clock)
    found = [event for event, _, _ in sink.results]
    assert sorted(found) == [1, 2, 3, 4, 10, 20, 30, 40, 50, 60]
    assert sink.results == expected(found)


def test_listeners_hear_of_complete_checkpoints_only(stage, monkeypatch):
    stage.config = stage.configured("checkpointing.tolerable-failed=1")
    Failing(monkeypatch, CheckpointStorage, "complete", [3])
    heard = []
    Count.completed.clear()
    stage.sink.on_checkpoint_complete = heard.append
    stage.play([1, CHECKPOINT, 2, CHECKPOINT, 3])
    assert Count.completed == heard == [1, 2, 3]
    assert [message.checkpoint for message in stage.told(CheckpointCompleted)] == [1, 2, 3]


def test_a_listener_that_fails_is_the_users_fault(memory_stage):
    stage = memory_stage()
    stage.sink.on_checkpoint_complete = lambda checkpoint_id: 1 // 0
    with pytest.raises(UserCodeError, match=r"operator 'sink-1' failed.*ZeroDivisionError"):
        stage.play([1])


def test_messages_of_a_run(stage):
    finished = stage.play([1, 2, CHECKPOINT, 3, CHECKPOINT, 4])
    kinds = [type(message) for message in stage.story.messages if not isinstance(message, Progress)]
    assert kinds == [Started, *[CheckpointCompleted] * 4, Finished]
    assert stage.story.messages[-1] == finished
    (started,) = stage.told(Started)
    assert (started.job, started.restored_checkpoint, started.restored_epoch) == ("story", None, 0)
    assert started.checkpoints == str(stage.checkpoints)
    progress = [message.events for message in stage.told(Progress)]
    assert progress == sorted(progress)
    assert set(progress) <= {0, 1, 2, 3, 4}
    epochs = [message.epoch for message in stage.told(CheckpointCompleted)]
    assert epochs == [1, 2, 3, 4]
    assert set(finished.shares) == {"wal", "persistence", "checkpoint", "heartbeat", "recovery"}


def test_what_emit_raises_ends_the_job(memory_stage):
    stage = memory_stage()

    class Gone(Exception):
        pass

    def tell(message):
        if isinstance(message, CheckpointCompleted) and message.checkpoint == 2:
            raise Gone
        Story.tell(stage.story, message)

    job = Job("story")
    story = Story(stage.clock, [1, CHECKPOINT, 2])
    job.source(story).key_by(key_of, str).process(Count()).sink(stage.sink)
    with pytest.raises(Gone):
        run_job(job, stage.config, emit=tell, clock=stage.clock)


def test_no_interval_means_the_first_and_the_final_checkpoint(memory_stage):
    stage = memory_stage("checkpointing.interval=0")
    finished = stage.play([1, Call(lambda: setattr(stage.clock, "now", 1e6)), 2, 3])
    assert finished.checkpoints == 2
    stage.check([1, 2, 3])


def test_more_uncommitted_state_than_memory_brings_a_checkpoint(memory_stage):
    stage = memory_stage("state.cache-size=1kb", "checkpointing.interval=0")
    finished = stage.play(list(range(50)))
    assert finished.checkpoints > 2
    stage.check(range(50))


def test_the_final_checkpoint_keeps_the_pause(memory_stage):
    stage = memory_stage("checkpointing.min-pause=30s")
    stage.play([1, CHECKPOINT, 2])
    assert INTERVAL + 30 <= stage.clock.now < 2 * INTERVAL
    stage.check([1, 2])


def test_a_restart_within_a_run_from_a_path(memory_stage, caplog):
    """The path is where the run began; its own checkpoints come after it, and the path itself may be gone."""
    caplog.set_level("ERROR")
    stage = memory_stage()
    stage.play([1, CHECKPOINT, 2])
    path = f"{stage.checkpoints}/chk-2"
    story = [1, CHECKPOINT, 20, CHECKPOINT, 30, CHECKPOINT, 40, Crash(), 50]
    stage.crash(story, restore=path, run="r")
    stage.play(story, restore=path, run="r")
    (started,) = stage.told(Started)
    assert started.restored_checkpoint == 6
    assert stage.sink.results == stage.written() == expected([1, 20, 30, 40, 50])


def test_sigterm_ends_the_run_between_two_batches(memory_stage):
    stage = memory_stage()
    with pytest.raises(SystemExit) as caught:
        stage.play([1, CHECKPOINT, 2, Call(lambda: signal.raise_signal(signal.SIGTERM)), 3])
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    stage.check([1, 2])
    stage.play([1, CHECKPOINT, 2, Call(lambda: None), 3], restore="latest")
    stage.check([1, 2, 3])


def test_a_programs_own_handler_is_left_alone(memory_stage):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        stage = memory_stage()
        stage.play([1, Call(lambda: signal.raise_signal(signal.SIGTERM)), 2])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    stage.check([1, 2])


def test_output_between_the_final_checkpoint_and_its_commit_is_not_lost(memory_stage, tmp_path, monkeypatch):
    """The run dies there, and the next one starts afresh, as after every run that has finished."""
    folder = tmp_path / "days"
    stage = memory_stage()

    def day(events):
        job = Job("story")
        job.source(CollectionSource(events)).sink(FileSink(folder, if_exists="append"))
        return job

    with monkeypatch.context() as patch:
        patch.setattr(FileSink, "commit", lambda sink, transaction: 1 / 0)
        with pytest.raises(UserCodeError, match="ZeroDivisionError"):
            run_job(day([1, 2]), stage.config, clock=stage.clock)
    assert list(folder.glob("part-*")) == []
    run_job(day([3]), stage.config, clock=stage.clock)
    lines = [line for part in sorted(folder.glob("part-*")) for line in part.read_text().split()]
    assert lines == ["1", "2", "3"]
    for part in folder.glob("part-*"):
        part.unlink()  # taken away by whoever it was for: no reason not to run again
    assert run_job(day([4]), stage.config, clock=stage.clock).events == 1
