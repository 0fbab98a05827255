"""Jobs of stories, and what must come out of them, computed from the list of events alone."""

from __future__ import annotations

import random
import weakref
from collections import Counter, defaultdict
from itertools import groupby

import pytest

from statestore_runtime import Job, KeyedProcessFunction, Tumbling, WatermarkStrategy
from statestore_runtime.task.network import LocalConnections
from statestore_runtime.task.task import Task
from statestore_runtime.testing import JobHarness, Marker
from tests.conftest import BACKENDS

PARALLELISM = (1, 2, 4)


def pairs(cases):
    """Each case with backends and parallelism that take turns, so that each comes with each sooner or later."""
    cases = list(cases)
    made = []
    for number, case in enumerate(cases):
        backend, parallelism = BACKENDS[number % 4], PARALLELISM[(number + number // 4) % 3]
        made.append(pytest.param(backend, parallelism, case, id=f"{backend}-{parallelism}-{number}"))
    return made


def events_of(script):
    return [element for element in script if not isinstance(element, Marker)]


def harness(build, redis_url=None, backend="memory", parallelism=1, **options):
    settings = {**options.pop("settings", {}), **({"state.redis.url": redis_url} if backend == "redis" else {})}
    return JobHarness(build, backend=backend, parallelism=parallelism, settings=settings, **options)


# Two stages: counts per event's user, and totals of these counts per group of users


def user_of(event):
    return f"user {event % 7}"


def group_of(row):
    return int(row[0][-1]) % 3


class Count(KeyedProcessFunction):
    """(user, event, how many events the user has had)"""

    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)

    def process(self, event, ctx):
        count = self.counts.value() + 1
        self.counts.update(count)
        yield ctx.key, event, count


class Total(KeyedProcessFunction):
    """(group, how many rows it has had, sum of their events)"""

    def open(self, ctx):
        self.rows = ctx.list_state("rows", int)
        self.total = ctx.value_state("total", int, default=0)

    def process(self, row, ctx):
        self.rows.add(row[1])
        self.total.update(self.total.value() + row[1])
        yield ctx.key, len(self.rows.get()), self.total.value()


def two_stages(source, sink):
    job = Job("story")
    counted = job.source(source).key_by(user_of, str).process(Count())
    counted.key_by(group_of, int).process(Total()).union(counted).sink(sink)
    return job


def counted(events):
    counts, rows = Counter(), []
    for event in events:
        counts[user_of(event)] += 1
        rows.append((user_of(event), event, counts[user_of(event)]))
    return rows


def check_two_stages(found, events, *, in_order=True):
    """Of each user the order is known; that of a group's rows is not, as they may come from several workers."""
    rows = [row for row in found if isinstance(row[0], str)]
    if in_order:
        assert sorted(rows) == sorted(counted(events))
    else:
        assert sorted(row[1] for row in rows) == sorted(events)
        assert sorted((row[0], row[2]) for row in rows) == sorted((row[0], row[2]) for row in counted(events))
    totals = sorted(row for row in found if isinstance(row[0], int))
    groups = Counter(group_of(row) for row in counted(events))
    assert [row[:2] for row in totals] == [
        (group, number + 1) for group in sorted(groups) for number in range(groups[group])
    ]
    sums = defaultdict(int)
    for event in events:
        sums[group_of((user_of(event),))] += event
    assert {group: list(rows)[-1][2] for group, rows in groupby(totals, key=lambda row: row[0])} == sums


# Windows, and timers behind them: events are (user, time in seconds, number)


class Alarm(KeyedProcessFunction):
    """Ten seconds of event time after a sum of a user that was more than 20, tells which one it was."""

    def open(self, ctx):
        self.sums = ctx.map_state("sums", int, int)

    def process(self, row, ctx):
        if row[1] > 20:
            self.sums.put(ctx.timestamp + 10_000, row[1])
            ctx.timers.register_event_time_timer(ctx.timestamp + 10_000)
        yield "sum", *row, ctx.timestamp // 1000

    def on_timer(self, timestamp, ctx):
        yield "alarm", ctx.key, self.sums.get(timestamp), timestamp // 1000
        self.sums.remove(timestamp)


def windows(source, sink):
    job = Job("windows")
    strategy = WatermarkStrategy.bounded_out_of_orderness("3s", lambda event: event[1] * 1000)
    keyed = job.source(source, watermarks=strategy).key_by(lambda event: event[0], str)
    sums = keyed.window(Tumbling("5s")).aggregate(Sum(), int)
    sums.map(lambda result: (result.key, result.value)).key_by(lambda row: row[0], str).process(Alarm()).sink(sink)
    return job


class Sum:
    def create_accumulator(self):
        return 0

    def add(self, event, accumulator):
        return accumulator + event[2]

    def get_result(self, accumulator):
        return accumulator

    def merge(self, one, other):
        return one + other


def alarms(events):
    """What `windows` makes of events that are not later than three seconds."""
    sums = Counter()
    for user, second, number in events:
        sums[user, second // 5 * 5 + 4] += number
    rows = [("sum", user, total, end) for (user, end), total in sums.items()]
    rows += [("alarm", user, total, end + 10) for (user, end), total in sums.items() if total > 20]
    return rows


class UnevenWorkers:
    """Lets some workers do nothing for a while, and what was sent arrive late, in the order of each sender."""

    def __init__(self, monkeypatch, seed):
        self._random = random.Random(seed)
        self._original, self._step = LocalConnections.receive, Task.step
        self._late = weakref.WeakKeyDictionary()
        monkeypatch.setattr(LocalConnections, "receive", lambda network: self._receive(network))
        monkeypatch.setattr(Task, "step", lambda task: self._random.random() < 0.4 or self._step(task))

    def _receive(self, network):
        late = self._late.setdefault(network, [[] for _ in range(network.parallelism)])
        for sender, frame in self._original(network):
            late[sender].append(frame)
        received = []
        for sender, frames in enumerate(late):
            count = self._random.randrange(len(frames) + 1) if self._random.random() < 0.7 else 0
            received += [(sender, frame) for frame in frames[:count]]
            del frames[:count]
        if not received and any(late):
            return self._receive(network)  # or the worker would look as if it had nothing to do
        return received
