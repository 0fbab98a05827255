"""Streams that come together, with several workers and crashes."""

from __future__ import annotations

from collections import Counter

import pytest

from statestore_runtime import (
    Job,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    ProcessJoinFunction,
    WatermarkStrategy,
)
from statestore_runtime.testing import CALL, CHECKPOINT, CRASH, RESCALE, RESTART
from tests.story import jobs
from tests.story.jobs import events_of

BY_TIME = WatermarkStrategy.bounded_out_of_orderness("2s", lambda event: event[1] * 1000)
LEFT = [("a", 1), ("b", 2), CHECKPOINT, ("a", 4), ("c", 5), CRASH, ("b", 8), RESCALE(3), ("a", 9), ("c", 12)]
RIGHT = [("b", 1), ("c", 3), ("a", 3), ("a", 5), RESTART, ("b", 7), ("c", 9), CRASH, ("a", 11)]


@pytest.fixture(params=range(3))
def uneven(request, monkeypatch):
    jobs.UnevenWorkers(monkeypatch, request.param)
    return request.param


def keyed(stream):
    return stream.key_by(lambda event: event[0], str)


@pytest.mark.parametrize("parallelism", [1, 2])
def test_union(uneven, parallelism):
    def build(left, right, sink):
        job = Job("story")
        both = job.source(left, watermarks=BY_TIME).union(job.source(right, watermarks=BY_TIME))
        keyed(both).reduce(lambda one, other: (one[0], one[1] + other[1]), tuple[str, int]).sink(sink)
        return job

    found = jobs.harness(build, parallelism=parallelism).run(LEFT, RIGHT)
    sums = Counter()
    for key, number in events_of([*LEFT, *RIGHT]):
        sums[key] += number
    assert len(found) == len(events_of([*LEFT, *RIGHT]))
    assert {key: max(total for other, total in found if other == key) for key in sums} == sums


class Times(KeyedProcessFunction):
    def process(self, event, ctx):
        yield event, ctx.timestamp


@pytest.mark.parametrize("parallelism", [1, 2])
def test_union_of_events_with_times_and_without(uneven, parallelism):
    def build(left, right, sink):
        job = Job("story")
        keyed(job.source(left, watermarks=BY_TIME).union(job.source(right))).process(Times()).sink(sink)
        return job

    found = jobs.harness(build, parallelism=parallelism, batch_size=2).run(LEFT, RIGHT)
    with_times = [(event, event[1] * 1000) for event in events_of(LEFT)]
    assert sorted(found, key=str) == sorted([*with_times, *((event, None) for event in events_of(RIGHT))], key=str)


class Both(KeyedCoProcessFunction):
    """Counts the events of either side; at the end of time says how many there were."""

    def open(self, ctx):
        self.counts = ctx.map_state("counts", str, int)

    def _count(self, side, ctx):
        self.counts.put(side, (self.counts.get(side) or 0) + 1)
        ctx.timers.register_event_time_timer(1_000_000)

    def process1(self, event, ctx):
        self._count("left", ctx)

    def process2(self, event, ctx):
        self._count("right", ctx)

    def on_timer(self, timestamp, ctx):
        yield ctx.key, self.counts.get("left"), self.counts.get("right")


@pytest.mark.parametrize("parallelism", [1, 2])
def test_connect(uneven, parallelism):
    def build(left, right, sink):
        job = Job("story")
        sides = [keyed(job.source(each, watermarks=BY_TIME)) for each in (left, right)]
        sides[0].connect(sides[1]).process(Both()).sink(sink)
        return job

    found = jobs.harness(build, parallelism=parallelism).run(LEFT, RIGHT)
    assert sorted(found) == [("a", 3, 3), ("b", 2, 2), ("c", 2, 2)]


class Pairs(ProcessJoinFunction):
    def process(self, left, right, ctx):
        yield left[0], left[1], right[1]


@pytest.mark.parametrize("parallelism", [1, 2])
def test_interval_join(uneven, parallelism):
    def build(left, right, sink):
        job = Job("story")
        sides = [keyed(job.source(each, watermarks=BY_TIME)) for each in (left, right)]
        types = (tuple[str, int], tuple[str, int])
        sides[0].interval_join(sides[1], "-2s", "3s", types).process(Pairs()).sink(sink)
        return job

    found = jobs.harness(build, parallelism=parallelism).run(LEFT, RIGHT)
    expected = [
        (left[0], left[1], right[1])
        for left in events_of(LEFT)
        for right in events_of(RIGHT)
        if left[0] == right[0] and -2 <= right[1] - left[1] <= 3
    ]
    assert sorted(found) == sorted(expected)


class Prices(KeyedBroadcastProcessFunction):
    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)

    def process(self, event, ctx):
        self.counts.update(self.counts.value() + 1)
        yield event[0], event[1], self.counts.value(), ctx.state.get(event[0])

    def process_broadcast(self, event, ctx):
        ctx.state[event[0]] = ctx.state.get(event[0], 0) + event[1]


@pytest.mark.parametrize("parallelism", [1, 2])
def test_broadcast(uneven, parallelism):
    """Prices add up; events come once all prices are there, and still know them after a crash and in other workers."""
    heard = []

    def build(events, prices, sink):
        job = Job("story")
        broadcast = job.source(prices).broadcast("prices", str, int)
        keyed(job.source(events)).connect(broadcast).process(Prices()).sink(sink)
        return job

    prices = [("a", 10), ("b", 20), CRASH, ("a", 5), CHECKPOINT, CALL(lambda: heard.append(True))]
    events = [CALL(lambda: bool(heard)), *LEFT, CRASH, ("b", 20)]
    found = jobs.harness(build, parallelism=parallelism).run(events, prices)
    known, counts, expected = {"a": 15, "b": 20}, Counter(), []
    for key, number in events_of(events):
        counts[key] += 1
        expected.append((key, number, counts[key], known.get(key)))
    assert sorted(found, key=str) == sorted(expected, key=str)
