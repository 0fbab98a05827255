"""Runs as stories, on every backend: `[1, 2, CHECKPOINT, 3, CRASH, 4]`, and every event counts exactly once."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from typing import ClassVar

import msgspec
import pytest

from statestore.checkpoint.storage import CheckpointStorage
from statestore.config import load_config
from statestore.errors import CheckpointNotFoundError, FencedError, IncompatibleStateError, UnavailableError, UsageError
from statestore.io import LocalStorage, open_storage
from statestore_runtime import (
    CheckpointFailedError,
    CollectionSource,
    CollectSink,
    FileSink,
    FileSource,
    Finished,
    Job,
    KeyedProcessFunction,
    UserCodeError,
    run_job,
)
from statestore_runtime.messages import CheckpointCompleted, CheckpointFailed, Progress, Started
from statestore_runtime.sources import FixedSplitsSource, SplitReader
from tests.conftest import BACKENDS

INTERVAL = 100_000.0
TIMEOUT = 50_000.0
"""Seconds of the clock: so many that no wait for another thread, each of which moves the clock, comes near them."""
OVERDUE = TIMEOUT + 1
"""A sum of times is rounded."""


class Clock:
    """Goes on only when a story does, or when the run waits for something to come."""

    def __init__(self):
        self.now = 0.0

    def time(self):
        return 1_700_000_000 + self.now

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        time.sleep(0.0002)  # lets the other threads run; nothing depends on it
        self.now += seconds


class Crash:
    """A place where the source raises an exception, once."""

    def __init__(self):
        self.is_armed = True


class Call:
    """A place where something happens, each time it is read; the story stays here as long as the function returns False."""

    def __init__(self, function):
        self.function = function


CHECKPOINT = "CHECKPOINT"
"""A place where a checkpoint comes to be due; the events behind it wait for its end."""


class Story(FixedSplitsSource, SplitReader):
    """One event a batch, with places between them; the position is an index, as in a CollectionSource."""

    def __init__(self, clock, elements):
        super().__init__()
        self.clock, self.elements, self.messages = clock, elements, []
        self.index = 0
        self.awaited = None

    def tell(self, message):
        self.messages.append(message)

    def ended(self):
        return sum(isinstance(message, CheckpointCompleted | CheckpointFailed) for message in self.messages)

    def read_part(self, part, position, context):
        self.index, self.awaited = position or 0, None
        return self

    def position(self):
        return self.index

    def next_batch(self):
        if self.awaited is not None:
            if self.ended() < self.awaited:
                return []
            self.awaited = None
        if self.index == len(self.elements):
            return None
        element = self.elements[self.index]
        if isinstance(element, Crash) and element.is_armed:
            element.is_armed = False
            raise RuntimeError("crash")
        if isinstance(element, Call) and element.function() is False:
            return []
        self.index += 1
        if element is CHECKPOINT:
            self.clock.now += INTERVAL
            self.awaited = self.ended() + 1
        return [element] if isinstance(element, int) else []


def events_of(elements):
    return [element for element in elements if isinstance(element, int)]


class Count(KeyedProcessFunction):
    """Emits (event, how many events its key has had)."""

    completed: ClassVar = []  # shared by the copies that workers get

    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)
        self.seen = ctx.map_state("seen", int, int)

    def process(self, event, ctx):
        count = self.counts.value() + 1
        self.counts.update(count)
        self.seen.put(event, count)
        yield [event, count, len(list(self.seen.keys()))]

    def on_checkpoint_complete(self, checkpoint_id):
        Count.completed.append(checkpoint_id)


def key_of(event):
    return f"key {event % 3}"


def expected(events):
    """What comes out, computed with a Counter."""
    counts, rows = Counter(), []
    for event in events:
        counts[key_of(event)] += 1
        rows.append([event, counts[key_of(event)], counts[key_of(event)]])
    return rows


class Stage:
    """A job that counts the events of a story, its output in memory and in files, and what is told of its runs."""

    def __init__(self, places, backend, *settings):
        self.places, self.backend = places, backend
        self.clock, self.sink = Clock(), CollectSink()
        self.out = places.folder / "out"
        self.config = self.configured(*settings)
        self.story = Story(self.clock, [])
        self.started = []

    def configured(self, *settings):
        overrides = [f"checkpointing.interval={INTERVAL:g}s", f"checkpointing.timeout={TIMEOUT:g}s"]
        return load_config(overrides=[*self.places.overrides(self.backend), *overrides, *settings])

    def play(self, elements, *, restore=None, run="", if_exists="replace"):
        """A run of a new job object, as a program that is started again makes it."""
        self.story = Story(self.clock, elements)
        job = Job("story")
        counted = job.source(self.story).key_by(key_of, str).process(Count())
        counted.sink(self.sink)
        counted.sink(FileSink(self.out, if_exists=if_exists))
        return run_job(job, self.config, restore=restore, run=run, emit=self.story.tell, clock=self.clock)

    def told(self, kind):
        return [message for message in self.story.messages if isinstance(message, kind)]

    def crash(self, elements, **options):
        with pytest.raises(UserCodeError, match="RuntimeError: crash"):
            self.play(elements, **options)

    def written(self):
        """Events of the visible parts, in the order of their numbers."""
        parts = sorted(self.out.glob("part-*"), key=lambda path: path.name.split("-")[3])
        return [json.loads(line) for part in parts for line in part.read_text().splitlines()]

    def hidden(self):
        return [
            path.name for path in self.out.iterdir() if path.name.startswith(".") and not path.name.startswith(".owner")
        ]

    @property
    def checkpoints(self):
        return self.places.folder / "local" / "checkpoints" / "story"

    def check(self, events):
        self.check_visible(events)
        assert self.hidden() == []

    def check_visible(self, events):
        """When the run ended between a barrier and the end of its checkpoint, hidden parts are left to the next one."""
        assert self.sink.results == expected(events)
        assert self.written() == expected(events)


@pytest.fixture(params=BACKENDS)
def stage(request, places):
    return Stage(places, request.param)


@pytest.fixture
def memory_stage(places):
    """For what has nothing to do with the backend."""

    def make(*settings):
        return Stage(places, "memory", *settings)

    return make


# Exactly once


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


# What restore means


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


# Checkpoints that fail


class Failing:
    """Makes a method fail at some of its calls, then work again."""

    def __init__(self, monkeypatch, owner, name, calls, error=None):
        self.calls, self.count = set(calls), 0
        self.error = error or UnavailableError("storage", "here", "no answer")
        original = getattr(owner, name)

        def method(*arguments):
            self.count += 1
            if self.count in self.calls:
                raise self.error
            return original(*arguments)

        monkeypatch.setattr(owner, name, method)


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


@pytest.mark.parametrize("number", [2, 3])
def test_a_stuck_upload_is_given_up(stage, monkeypatch, number):
    """Its time comes to an end on the clock; it wakes up when the next one is complete, and changes nothing."""
    stage.config = stage.configured("checkpointing.tolerable-failed=1", "checkpointing.inline-threshold=0")
    original, released, stuck, uploads = LocalStorage.write, threading.Event(), threading.Event(), []

    def write(storage, name, data):
        if "/delta-" in name:
            uploads.append(name)
            if len(uploads) == number:
                stuck.set()
                assert released.wait(60)
        original(storage, name, data)

    monkeypatch.setattr(LocalStorage, "write", write)

    def wait_until_it_is_overdue():
        if not stuck.is_set():
            return False
        stage.clock.now += OVERDUE
        return True

    story = [1, CHECKPOINT, 2, CHECKPOINT, 3, CHECKPOINT, 4]
    at = 2 * number - 2
    story[at - 1 : at] = [Call(lambda: setattr(stage.clock, "now", stage.clock.now + INTERVAL))]
    story.insert(at, Call(wait_until_it_is_overdue))
    story.append(Call(released.set))
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
    original, released, stuck, calls = CheckpointStorage.complete, threading.Event(), threading.Event(), []

    def complete(checkpoints, manifest):
        calls.append(manifest)
        if len(calls) == 2:
            stuck.set()
            assert released.wait(60)
        original(checkpoints, manifest)

    monkeypatch.setattr(CheckpointStorage, "complete", complete)

    def pass_time(seconds):
        stage.clock.now += seconds

    def wait_until_it_is_overdue():
        if not stuck.is_set():
            return False
        pass_time(OVERDUE)
        return True

    def go_on():
        released.set()
        join_checkpoints()

    story = [1, Call(lambda: pass_time(INTERVAL)), Call(wait_until_it_is_overdue), 2, Call(go_on), CHECKPOINT, 3]
    finished = stage.play(story)
    assert stage.told(CheckpointFailed) == []
    assert finished.checkpoints == len(calls) == len(stage.told(CheckpointCompleted))
    stage.check([1, 2, 3])


def test_a_manifest_that_is_written_for_ever_ends_the_run(stage, monkeypatch):
    """Only a new start can tell whether it is complete."""
    original, released, stuck, calls = CheckpointStorage.complete, threading.Event(), threading.Event(), []

    def complete(checkpoints, manifest):
        calls.append(manifest)
        if len(calls) == 2:
            stuck.set()
            assert released.wait(60)
        original(checkpoints, manifest)

    monkeypatch.setattr(CheckpointStorage, "complete", complete)
    monkeypatch.setattr("statestore_runtime.task.barriers.CLOSING_SECONDS", 0.01)

    def pass_time(seconds):
        stage.clock.now += seconds

    def wait_until_it_is_stuck():
        if not stuck.is_set():
            return False
        pass_time(2 * OVERDUE)
        return True

    story = [1, Call(lambda: pass_time(INTERVAL)), Call(wait_until_it_is_stuck), 2, 3]
    with pytest.raises(UnavailableError, match="only a new start can tell"):
        stage.play(story)
    released.set()
    join_checkpoints()
    stage.play(story, restore="latest")
    stage.check([1, 2, 3])


def join_checkpoints():
    for thread in threading.enumerate():
        if thread.name == "statestore-checkpoint":
            thread.join(60)


# Counts, listeners, messages


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


# Bad records


LINES = "1\nbad 1\n2\nbad 2\n3\nbad 3\n4\n"


def bad_records_job(folder, sink, *others):
    (folder / "in.jsonl").write_text(LINES)
    job = Job("story")
    job.source(FileSource(folder / "in.jsonl", batch_size=1), "in").union(*map(job.source, others)).sink(sink)
    return job


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_bad_records_survive_a_restore(memory_stage, tmp_path, policy):
    """The sources take turns: the checkpoint comes when two of the bad records have been met."""
    stage = memory_stage(f"source.on-error={policy}")
    story = Story(stage.clock, [10, 20, 30, 40, CHECKPOINT, Crash()])
    job = bad_records_job(tmp_path, stage.sink, story)
    with pytest.raises(UserCodeError, match="crash"):
        run_job(job, stage.config, emit=story.tell, clock=stage.clock)
    assert stage.sink.results == [1, 10, 20, 2, 30, 40, 3]
    finished = run_job(job, stage.config, restore="latest", emit=story.tell, clock=stage.clock)
    assert (finished.bad_records, stage.sink.results) == (3, [1, 10, 20, 2, 30, 40, 3, 4])
    folder = tmp_path / "local" / "story" / "dead-letter" / "in"
    assert folder.is_dir() == (policy == "dead-letter")
    letters = [json.loads(line) for part in sorted(folder.glob("part-*")) for line in part.read_text().splitlines()]
    expected_letters = [(2, "bad 1"), (4, "bad 2"), (6, "bad 3")] if policy == "dead-letter" else []
    assert [(letter["line"], letter["text"]) for letter in letters] == expected_letters


def test_dead_letters_are_kept_when_the_policy_changes(memory_stage, tmp_path, monkeypatch):
    """The run dies between a checkpoint and the commit of its dead letters, and goes on with another policy."""
    stage = memory_stage("source.on-error=dead-letter")
    job = bad_records_job(tmp_path, stage.sink)
    with monkeypatch.context() as patch:
        patch.setattr(FileSink, "commit", lambda sink, transaction: 1 / 0)
        with pytest.raises(UserCodeError, match="ZeroDivisionError"):
            run_job(job, stage.config, clock=stage.clock)
    skipping = msgspec.structs.replace(
        stage.config, source=msgspec.structs.replace(stage.config.source, on_error="skip")
    )
    assert run_job(job, skipping, restore="latest", clock=stage.clock).bad_records == 3
    (part,) = (tmp_path / "local" / "story" / "dead-letter" / "in").glob("part-*")
    assert part.read_text().count('"bad ') == 3


def test_dead_letters_go_where_the_configuration_says(memory_stage, tmp_path):
    stage = memory_stage("source.on-error=dead-letter", f"source.dead-letter-dir={tmp_path / 'letters'}")
    finished = run_job(bad_records_job(tmp_path, stage.sink), stage.config, clock=stage.clock)
    assert finished.outputs == [str(tmp_path / "letters" / "in")]
    assert len(list((tmp_path / "letters" / "in").glob("part-*.jsonl"))) == 1


def test_a_sources_own_policy_goes_before_the_configuration(memory_stage, tmp_path):
    stage = memory_stage("source.on-error=dead-letter")
    (tmp_path / "in.jsonl").write_text(LINES)
    job = Job("story")
    job.source(FileSource(tmp_path / "in.jsonl", on_error="skip")).sink(stage.sink)
    finished = run_job(job, stage.config, clock=stage.clock)
    assert (finished.bad_records, finished.outputs) == (3, [])


# Signals


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
