"""Sources of several splits: silent ones, late ones, and those of one worker only."""

from __future__ import annotations

import pytest

from statestore_runtime import Job, Source, Tumbling, WatermarkStrategy
from statestore_runtime.jobmanager.events import Stop
from statestore_runtime.sources import SplitReader
from statestore_runtime.testing import JobHarness, ScriptedCrashError


class Splits(Source):
    """Splits from lists; a function among the events holds a split back until it returns True. It may raise, once."""

    discovery_interval = None

    def __init__(self, splits, late=()):
        self.splits, self.late = splits, list(late)
        if late:
            self.discovery_interval = 1.0

    def discover(self, known):
        names = [name for name in self.splits if name not in self.late]
        names += [name for name in self.late if known]
        return [name for name in names if name not in known]

    def read(self, split, position, context):
        return Reader(self.splits[split], position or 0)


class Reader(SplitReader):
    def __init__(self, events, index):
        self.events, self.index = events, index

    def position(self):
        return self.index

    def next_batch(self):
        if self.index == len(self.events):
            return None
        event = self.events[self.index]
        if callable(event) and not event():
            return []
        self.index += 1
        return [] if callable(event) else [event]


def windows(splits, heard, *, idle_after=None, late=()):
    strategy = WatermarkStrategy.monotonous(lambda event: event[1] * 1000, idle_after=idle_after)

    def build(sink):
        job = Job("story")
        events = job.source(Splits(splits, late), watermarks=strategy)
        sums = events.key_by(lambda event: event[0], str).window(Tumbling("10s")).count()
        sums.map(lambda result: heard.append(result) or (result.key, result.end // 1000, result.value)).sink(sink)
        return job

    return build


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_silent_split_holds_nothing_back(parallelism):
    """It has an event of the beginning, and then nothing until a window of much later is over."""
    heard = []
    splits = {
        "busy": [("a", 1), ("a", 12), ("a", 23), lambda: len(heard) >= 3],
        "silent": [("b", 2), lambda: len(heard) >= 3, ("b", 25)],
    }
    harness = JobHarness(windows(splits, heard, idle_after="5s"), parallelism=parallelism)
    assert sorted(harness.run()) == [("a", 10, 1), ("a", 20, 1), ("a", 30, 1), ("b", 10, 1), ("b", 30, 1)]
    assert harness.clock.monotonic() >= 5


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_slow_split_does_hold_back(parallelism):
    """Without a time for idleness nothing is late, in whichever worker it is."""
    heard, rounds = [], []

    def after_a_while():
        rounds.append(1)
        return len(rounds) > 30

    splits = {"fast": [("a", second) for second in range(60)], "slow": [after_a_while, ("a", 1), ("b", 2)]}
    found = JobHarness(windows(splits, heard), parallelism=parallelism).run()
    assert sorted(found) == [("a", 10, 11), *[("a", end, 10) for end in range(20, 70, 10)], ("b", 10, 1)]


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_one_split_and_more_workers(parallelism):
    heard = []
    found = JobHarness(windows({"only": [("a", 1), ("b", 11)]}, heard), parallelism=parallelism).run()
    assert sorted(found) == [("a", 10, 1), ("b", 20, 1)]
    assert JobHarness(windows({}, heard), parallelism=parallelism).run() == []


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_splits_that_are_found_late(parallelism):
    """They are read as well, and go on after a crash; a source that looks for more ends only when it is drained."""
    heard, crashes = [], [True]

    def crash():
        if crashes:
            crashes.pop()
            raise ScriptedCrashError
        return True

    def drain():
        harness.request(Stop(lambda outcome: None, drain=True))
        return True

    splits = {
        "early": [("a", 1), ("a", 2)],
        "late": [("b", 1), crash, ("b", 2)],
        "later": [("c", 1), lambda: not crashes, drain, lambda: False],
    }
    harness = JobHarness(windows(splits, heard, late=["late", "later"]), parallelism=parallelism)
    found = harness.run()
    assert harness.restarts == 1
    assert {(key, end) for key, end, _ in found} == {("a", 10), ("b", 10), ("c", 10)}
    assert ("a", 10, 2) in found


def test_a_split_that_nobody_had_time_to_read_is_not_silent():
    """An event takes a minute, so the last split has not been read for longer than a silent one is waited for."""
    strategy = WatermarkStrategy.monotonous(lambda event: event[1] * 1000, idle_after="5s")

    def slow(event):
        if event[0] == "a":
            harness.clock.advance(60)
        return event

    def build(sink):
        job = Job("story")
        splits = {"one": [("a", 50)], "two": [("b", 50)], "three": [("c", 1)]}
        events = job.source(Splits(splits), watermarks=strategy).map(slow)
        counts = events.key_by(lambda event: event[0], str).window(Tumbling("10s")).count()
        counts.map(lambda result: result.key).sink(sink)
        return job

    harness = JobHarness(build)
    assert sorted(harness.run()) == ["a", "b", "c"]


@pytest.mark.parametrize("parallelism", [1, 2])
def test_between_two_splits_a_source_is_not_silent(parallelism):
    """One that reads its splits one after the other: what is ahead elsewhere makes nothing late."""
    read = []
    ahead = Splits({"ahead": [("a", 100), lambda: len(read) == 4]})
    behind = Splits({f"{number}": [("b", 1 + number)] for number in range(4)})
    behind.is_concurrent = False

    def build(sink):
        job = Job("story")
        strategy = WatermarkStrategy.monotonous(lambda event: event[1] * 1000)
        one, other = (job.source(each, watermarks=strategy) for each in (ahead, behind))
        both = one.union(other.map(lambda event: read.append(event) or event))
        counts = both.key_by(lambda event: event[0], str).window(Tumbling("1s")).count()
        counts.map(lambda result: result.start // 1000).sink(sink)
        return job

    assert sorted(JobHarness(build, parallelism=parallelism).run()) == [1, 2, 3, 4, 100]


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_worker_without_a_split_holds_no_assigned_times_back(parallelism):
    """More splits may come, so its input has not ended."""
    heard = []

    def drain():
        harness.request(Stop(lambda outcome: None, drain=True))
        return True

    splits = {"only": [("a", 1), ("a", 12), lambda: len(heard) >= 1, drain, lambda: False], "never": []}

    def build(sink):
        job = Job("story")
        source = Splits(splits, late=["never"])
        source.discover = lambda known: [] if known else ["only"]
        events = job.source(source).assign_timestamps(WatermarkStrategy.monotonous(lambda event: event[1] * 1000))
        counts = events.key_by(lambda event: event[0], str).window(Tumbling("10s")).count()
        counts.map(lambda result: heard.append(result) or result.end // 1000).sink(sink)
        return job

    harness = JobHarness(build, parallelism=parallelism)
    assert harness.run() == [10, 20]
