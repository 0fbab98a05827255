"""Events on which a function fails: they leave no trace, and everything else counts exactly once."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from statestore_runtime import (
    Job,
    KeyedBroadcastProcessFunction,
    KeyedProcessFunction,
    Session,
    Tumbling,
    UserCodeError,
    WatermarkStrategy,
)
from statestore_runtime.testing import ADVANCE, CALL, CHECKPOINT, CRASH, RESTART
from tests.story import jobs
from tests.story.jobs import events_of

POISON = 13
PLACES = ["map", "first", "second", "after"]
"""Before any key; in the first stage with state; in the second one; in what follows it."""


class Failing(KeyedProcessFunction):
    """Counts events by key, and fails on 13 after it has changed its state."""

    def __init__(self, fails):
        self.fails = fails

    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)
        self.seen = ctx.list_state("seen", int)

    def process(self, event, ctx):
        self.counts.update(self.counts.value() + 1)
        self.seen.add(event)
        ctx.output("seen", event)
        if event == POISON and self.fails():
            raise ValueError("unlucky")
        assert len(self.seen.get()) == self.counts.value()
        yield event


class Job13:
    """A job in which event 13 fails at a place, as long as it is armed."""

    def __init__(self, place):
        self.place, self.is_armed = place, True

    def fails(self, place):
        return lambda: self.is_armed and place == self.place

    def at(self, place):
        fails = self.fails(place)

        def function(event):
            if event == POISON and fails():
                raise ValueError("unlucky")
            return event

        return function

    def __call__(self, source, sink):
        # lambdas, so that a copy of a function still asks this object
        job = Job("story")
        first = job.source(source).map(self.at("map")).key_by(lambda event: event % 5, int)
        rows = first.process(Failing(self.fails("first")))
        second = rows.key_by(lambda event: event % 3, int).process(Failing(self.fails("second")))
        second.map(self.at("after")).union(rows.side_output("seen").map(lambda event: -event)).sink(sink)
        return job


def check(found, events, poisoned=()):
    """`poisoned` went through the first stage in one worker, before it failed in the second one in another."""
    assert Counter(found) == Counter([*events, *(-event for event in (*events, *poisoned))])


def poisoned(place, parallelism, count):
    return [POISON] * count if parallelism > 1 and place in ("second", "after") else []


SCRIPT = [*range(1, 9), CHECKPOINT, *range(9, 25)]
OTHERS = [event for event in events_of(SCRIPT) if event != POISON]


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_passed_over(tmp_path, policy, parallelism, place, batch_size):
    """Also when the job crashes soon after, and reads the event again."""
    script = [*SCRIPT[:-10], CRASH, *SCRIPT[-10:], CHECKPOINT, CRASH]
    settings = {"job.on-error": policy}
    harness = jobs.harness(
        Job13(place), parallelism=parallelism, batch_size=batch_size, settings=settings, dir=tmp_path
    )
    check(harness.run(script), OTHERS, poisoned(place, parallelism, 1))
    assert (harness.finished.events, harness.finished.skipped_events) == (24, 1)
    letters = [
        json.loads(line)
        for part in (tmp_path / "story" / "dead-letter" / "events").glob("part-*")
        for line in part.read_text().splitlines()
    ]
    assert [(letter["text"], "unlucky" in letter["error"]) for letter in letters] == [("13", True)] * (policy != "skip")


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_passed_over_on_uneven_workers(monkeypatch, redis_url, policy):
    for seed in range(4):
        with monkeypatch.context() as patch:
            jobs.UnevenWorkers(patch, seed)
            script = [*SCRIPT[:-10], RESTART, *SCRIPT[-10:], 13, 13, CHECKPOINT, 13, 1, CRASH, 2]
            harness = jobs.harness(
                Job13(PLACES[seed]),
                redis_url,
                ("memory", "rocksdb", "filesystem", "redis")[seed],
                3,
                splits=2,
                batch_size=3,
                settings={"job.on-error": policy},
            )
            check(harness.run(script), [*OTHERS, 1, 2], poisoned(PLACES[seed], 3, 4))
            assert harness.finished.skipped_events == 4


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("parallelism", [1, 2])
def test_the_job_fails(tmp_path, parallelism, place, batch_size):
    """It is tried once more; then it ends, and goes on once its code is mended."""
    build = Job13(place)
    harness = jobs.harness(build, parallelism=parallelism, batch_size=batch_size, dir=tmp_path)
    with pytest.raises(UserCodeError, match="unlucky"):
        harness.run(SCRIPT)
    assert harness.restarts == 1
    before = list(harness.sink.results)
    if parallelism == 1:
        check(before, range(1, POISON))
    build.is_armed = False
    check([*before, *harness.run(SCRIPT, restore="latest")], events_of(SCRIPT))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("parallelism", [1, 2])
def test_an_event_that_fails_once(parallelism, place):
    build = Job13(place)

    def disarm():
        build.is_armed = False

    harness = jobs.harness(build, parallelism=parallelism, batch_size=4)
    original = build.fails

    def once(at):
        fails = original(at)

        def ask():
            failing, build.is_armed = fails(), build.is_armed and at != build.place
            return failing

        return ask

    build.fails = once
    check(harness.run(SCRIPT), events_of(SCRIPT))
    assert harness.restarts == 1


def test_what_came_before_is_kept_without_on_failure_only_up_to_the_checkpoint(tmp_path):
    harness = jobs.harness(Job13("second"), settings={"checkpointing.on-failure": False}, dir=tmp_path)
    with pytest.raises(UserCodeError, match="unlucky"):
        harness.run(SCRIPT)
    check(harness.sink.results, range(1, 9))


def test_each_event_fails():
    """All are skipped, and the job comes to its end."""
    build = Job13("map")
    harness = jobs.harness(build, parallelism=2, batch_size=2, settings={"job.on-error": "skip"})
    assert harness.run([13] * 5) == []
    assert harness.finished.skipped_events == 5


# What is kept outside the store


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_sink_that_fails(tmp_path, policy, is_first):
    """What another sink has taken can't be taken back; but nothing of it is there twice."""

    def fail(event):
        if event == POISON and build.is_armed:
            raise ValueError("unlucky")

    def build(source, sink):
        job = Job("story")
        events = job.source(source)
        for each in (fail, sink) if is_first else (sink, fail):
            events.sink(each)
        return job

    build.is_armed = True
    harness = jobs.harness(build, batch_size=5, settings={"job.on-error": policy}, dir=tmp_path)
    if policy == "skip":
        assert harness.run(SCRIPT) == (OTHERS if is_first else events_of(SCRIPT))
        assert (harness.finished.skipped_events, harness.restarts) == (1, 0)
        return
    with pytest.raises(UserCodeError, match="unlucky"):
        harness.run(SCRIPT)
    before = list(harness.sink.results)
    assert before == list(range(1, POISON if is_first else 9))
    build.is_armed = False
    assert [*before, *harness.run(SCRIPT, restore="latest")] == events_of(SCRIPT)


class Versions(KeyedBroadcastProcessFunction):
    """Counts broadcast events; 13 fails after it was counted."""

    def open(self, ctx):
        pass

    def process(self, event, ctx):
        yield event, ctx.state.get("count", 0)

    def process_broadcast(self, event, ctx):
        ctx.state["count"] = ctx.state.get("count", 0) + 1
        if event == POISON:
            raise ValueError("unlucky")


@pytest.mark.parametrize("parallelism", [1, 2])
def test_broadcast_state(parallelism):
    def build(events, rules, sink):
        job = Job("story")
        broadcast = job.source(rules).broadcast("rules", str, int)
        job.source(events).key_by(lambda event: event, int).connect(broadcast).process(Versions()).sink(sink)
        return job

    is_there = []
    rules = [1, 2, POISON, 3, CHECKPOINT, CALL(lambda: is_there.append(True)), POISON, CRASH, 4]
    events = [CALL(lambda: bool(is_there)), 7, 8]
    harness = jobs.harness(build, parallelism=parallelism, batch_size=4, settings={"job.on-error": "skip"})
    assert sorted(harness.run(events, rules)) == [(7, 3), (8, 3)]


def times(place):
    """Sums of ten seconds; an event 13 is far ahead of the others, and fails."""

    def build(source, sink):
        strategy = WatermarkStrategy.monotonous(lambda event: event[0] * 1000)
        job = Job("story")
        events = job.source(source, watermarks=strategy if place == "source" else None)
        events = events.assign_timestamps(strategy) if place == "operator" else events

        def fail(event):
            if event[1] == POISON and build.is_armed:
                raise ValueError("unlucky")
            return event

        keyed = events.map(fail).key_by(lambda event: 0, int)
        keyed.window(Tumbling("10s")).sum(lambda event: event[1], int).map(lambda sum: sum.value).sink(sink)
        return job

    build.is_armed = True
    return build


TIMED = [(1, 1), (2, 2), (1_000, POISON), (3, 3), (4, 4), CHECKPOINT, (5, 5), (11, 6), (12, 7)]


@pytest.mark.parametrize("place", ["source", "operator"])
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_time_of_an_event_that_fails_does_not_count(parallelism, place, batch_size):
    harness = jobs.harness(
        times(place), parallelism=parallelism, batch_size=batch_size, settings={"job.on-error": "skip"}
    )
    assert harness.run(TIMED) == [15, 13]


@pytest.mark.parametrize("place", ["source", "operator"])
@pytest.mark.parametrize("parallelism", [1, 2])
def test_nor_does_it_after_the_job_has_failed(tmp_path, parallelism, place):
    """What follows it in its batch, and has not been processed, is not late when it is read again."""
    script = [(1, 1), (2, 2), (3, POISON), (4, 4), (8, 8), (15, 15), (25, 25)]
    build = times(place)
    harness = jobs.harness(build, parallelism=parallelism, batch_size=9, dir=tmp_path)
    with pytest.raises(UserCodeError, match="unlucky"):
        harness.run(script)
    build.is_armed = False
    assert harness.run(script, restore="latest") == [1 + 2 + POISON + 4 + 8, 15, 25]


# Timers


class Reminder(KeyedProcessFunction):
    """Tells of each event when a timer comes; that of 13 fails after it has changed its state and set another timer."""

    def __init__(self, fails, domain):
        self.fails, self.domain = fails, domain

    def open(self, ctx):
        self.kept = ctx.map_state("kept", int, int)
        self.told = ctx.value_state("told", int, default=0)

    def process(self, event, ctx):
        if self.domain == "event-time":
            time = ctx.timestamp + 5_000
            ctx.timers.register_event_time_timer(time)
        else:
            time = ctx.timers.current_processing_time + event * 10
            ctx.timers.register_processing_time_timer(time)
        self.kept.put(time, event)

    def on_timer(self, timestamp, ctx):
        if timestamp not in self.kept:
            yield "again"
            return
        event = self.kept[timestamp]
        self.kept.remove(timestamp)
        self.told.update(self.told.value() + 1)
        ctx.output("told", (ctx.key, self.told.value()))
        if event == POISON:
            ctx.timers.register_event_time_timer(timestamp + 1)
            if self.fails():
                raise ValueError("unlucky")
        yield event


def reminders(domain, place, fails):
    def after(event):
        if event == POISON and place == "after" and fails():
            raise ValueError("unlucky")
        return event

    def build(source, sink):
        job = Job("story")
        strategy = WatermarkStrategy.monotonous(lambda event: event * 1000)
        keyed = job.source(source, watermarks=strategy).key_by(lambda event: event % 3, int)
        rows = keyed.process(Reminder(lambda: place == "timer" and fails(), domain))
        rows.map(after).union(rows.side_output("told")).sink(sink)
        return job

    return build


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
@pytest.mark.parametrize("place", ["timer", "after"])
@pytest.mark.parametrize("domain", ["event-time", "processing-time"])
@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_timer_that_fails_is_passed_over(tmp_path, policy, place, domain, parallelism):
    """With all that it has done; those before and after it, of its key too, come as they would have."""
    script = [
        *range(1, 9),
        CHECKPOINT,
        *range(9, 19),
        ADVANCE("100ms"),
        CRASH,
        19,
        20,
        30,
        ADVANCE("100ms"),
        CHECKPOINT,
        40,
    ]
    script += [CRASH, ADVANCE("1s")]
    harness = jobs.harness(
        reminders(domain, place, lambda: True),
        parallelism=parallelism,
        batch_size=4,
        settings={"job.on-error": policy},
        dir=tmp_path,
    )
    found = harness.run(script)
    events = [event for event in events_of(script) if event != POISON]
    counts = Counter(event % 3 for event in events)
    told = [(key, number + 1) for key in counts for number in range(counts[key])]
    assert Counter(found) == Counter([*events, *told])
    assert (harness.finished.skipped_events, harness.restarts) == (1, 2)
    letters = [
        json.loads(line)
        for part in (tmp_path / "story" / "dead-letter" / "events").glob("part-*")
        for line in part.read_text().splitlines()
    ]
    assert [letter["text"].startswith("timer(key=1, time=") for letter in letters] == [True] * (policy != "skip")


@pytest.mark.parametrize("parallelism", [1, 2])
def test_without_a_policy_a_timer_that_fails_ends_the_job(tmp_path, parallelism):
    is_armed = [True]
    build = reminders("event-time", "timer", lambda: bool(is_armed))
    harness = jobs.harness(build, parallelism=parallelism, dir=tmp_path)
    script = [*range(1, 9), CHECKPOINT, *range(9, 25)]
    with pytest.raises(UserCodeError, match="unlucky"):
        harness.run(script)
    assert harness.restarts == 1
    before = list(harness.sink.results)
    is_armed.clear()
    found = [*before, *harness.run(script, restore="latest")]
    assert sorted(event for event in found if isinstance(event, int)) == events_of(script)


class Mean13:
    """Fails on windows whose sum is 13."""

    def create_accumulator(self):
        return 0

    def add(self, event, accumulator):
        return accumulator + event[1]

    def merge(self, one, other):
        return one + other

    def get_result(self, accumulator):
        if accumulator == POISON:
            raise ValueError("unlucky")
        return accumulator


@pytest.mark.parametrize("windows", [Tumbling("10s"), Session("5s")])
@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_window_whose_result_fails_is_passed_over_and_forgotten(windows, parallelism):
    def build(source, sink):
        job = Job("story")
        strategy = WatermarkStrategy.monotonous(lambda event: event[0] * 1000)
        keyed = job.source(source, watermarks=strategy).key_by(lambda event: event[1] % 2, int)
        keyed.window(windows).aggregate(Mean13(), int).map(lambda result: result.value).sink(sink)
        return job

    script = [(1, 13), (2, 4), (3, 10), CHECKPOINT, (15, 1), CRASH, (16, 8), (27, 9), (40, 6)]
    harness = jobs.harness(build, parallelism=parallelism, settings={"job.on-error": "skip"})
    assert sorted(harness.run(script)) == [1, 6, 8, 9, 14]
    assert (harness.finished.skipped_events, harness.finished.keys) == (1, 0)


def test_a_sink_that_fails_on_what_a_timer_has_made(tmp_path):
    """What another sink has taken can't be taken back; but nothing of it is there twice."""
    taken = []

    def fail(event):
        if event == POISON:
            raise ValueError("unlucky")

    def build(source, sink):
        job = Job("story")
        strategy = WatermarkStrategy.monotonous(lambda event: event * 1000)
        keyed = job.source(source, watermarks=strategy).key_by(lambda event: event % 3, int)
        rows = keyed.process(Reminder(lambda: False, "event-time")).filter(lambda row: row != "again")
        for each in (taken.append, sink, fail):
            rows.sink(each)
        return job

    script = [*range(1, 9), 40, *range(9, 25)]
    harness = jobs.harness(build, batch_size=8, settings={"job.on-error": "skip"}, dir=tmp_path)
    assert sorted(harness.run(script)) == sorted(events_of(script))
    assert sorted(taken) == sorted(events_of(script))
    assert harness.finished.skipped_events == 1
