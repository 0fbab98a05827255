"""Barriers between workers that get on at different speeds: what a checkpoint holds is what its barrier has passed, everywhere."""

from __future__ import annotations

import time
from collections import deque

import pytest

from statestore.checkpoint.parts import complete_parts
from statestore.config import load_config
from statestore.keys import DEFAULT_MAX_PARALLELISM, KeyCodec, key_group_of, split_key_groups
from statestore.opening import open_checkpoints
from statestore.testing.clock import FakeClock
from statestore_runtime import Job, KeyedProcessFunction, Source, Tumbling, WatermarkStrategy
from statestore_runtime.protocol import Abort, Acknowledged, Assign, Begin, Complete, Deploy, Trigger
from statestore_runtime.sources import SplitReader
from statestore_runtime.task.meta import merged_meta
from statestore_runtime.task.network import LocalConnections
from statestore_runtime.task.task import Task

MODES = ["exactly-once", "at-least-once"]


class Numbers(Source, SplitReader):
    """One split, whose events come as a test lets them."""

    def __init__(self):
        self.events, self.index = [], 0

    def discover(self, known):
        return ["all"]

    def read(self, split, position, context):
        self.index = position or 0
        return self

    def next_batch(self):
        batch = self.events[self.index :][:1]
        self.index += len(batch)
        return batch

    def position(self):
        return self.index


class Late(LocalConnections):
    """Connections on which what another worker has sent may wait."""

    is_held = False

    def __init__(self, subtask, arrived):
        super().__init__(subtask, arrived)
        self.waiting = []

    def receive(self):
        received, self.waiting = [*self.waiting, *super().receive()], []
        if self.is_held:
            self.waiting = [frame for frame in received if frame[0] != self.subtask]
            received = [frame for frame in received if frame[0] == self.subtask]
        return received


class Workers:
    """Two workers of a job, each of which does something only when it is told to; the first one reads the source."""

    def __init__(self, folder, mode, build):
        settings = {"checkpointing.mode": mode, "state.backend": "memory", "state.dir": folder}
        self.config = load_config(overrides=[f"{key}={value}" for key, value in settings.items()])
        self.build, self.clock, self.checkpoint, self.run = build, FakeClock(1000.0), 0, 0
        self.source, self.written = Numbers(), []
        self.start("none")

    def start(self, restore):
        """New workers, which have restored what was complete; the old ones are gone."""
        job = self.build(self.source, self.written)
        self.checkpoints = open_checkpoints(self.config, job.name)
        self.run += 1
        deploy = Deploy(attempt=self.checkpoints.claim_attempt(), parallelism=2, restore=restore, run=str(self.run))
        arrived = [deque(), deque()]
        self.networks = [Late(index, arrived) for index in range(2)]
        self.reports = [[], []]
        self.tasks = []
        for index in range(2):
            task = Task(
                job.name,
                job.build(),
                self.config,
                deploy,
                network=self.networks[index],
                tell=self.reports[index].append,
                clock=self.clock,
            )
            task.open()
            task.handle(Begin())
            task.handle(Assign(source="source-1", splits=["all"] if restore == "none" and index == 0 else []))
            self.tasks.append(task)

    def crash(self):
        for task in self.tasks:
            task.close()
        self.written.clear()
        self.start("latest")

    def step(self, worker, times=1):
        for _ in range(times):
            self.tasks[worker].step()

    def settle(self):
        """Let both do all there is to do."""
        while self.tasks[0].step() | self.tasks[1].step():
            pass

    def trigger(self, worker):
        """Let a worker hear of the checkpoint that is to be made."""
        self.tasks[worker].handle(Trigger(checkpoint=self.checkpoint + 1))

    def part(self, worker):
        """Its part of the checkpoint, None while it has none."""
        return next(
            (
                report
                for report in self.reports[worker]
                if isinstance(report, Acknowledged) and report.checkpoint == self.checkpoint + 1
            ),
            None,
        )

    def wait_for_part(self, worker):
        """It is uploaded in a thread of its own."""
        while self.part(worker) is None:
            self.tasks[worker].step()
            time.sleep(0)

    def complete(self):
        parts = [self.part(worker) for worker in range(2)]
        meta = merged_meta([part.meta for part in parts])
        info = complete_parts(self.checkpoints, [part.manifest for part in parts], meta)
        self.checkpoint += 1
        for task in self.tasks:
            task.handle(Complete(checkpoint=self.checkpoint, manifest=info.manifest, path=info.path, seconds=0.0))


@pytest.fixture
def workers(tmp_path):
    made = []

    def make(mode, build):
        made.append(Workers(tmp_path, mode, build))
        return made[0]

    yield make
    for each in made:
        for task in each.tasks:
            task.close()


class Seen(KeyedProcessFunction):
    """All events of the key so far."""

    def open(self, ctx):
        self.seen = ctx.list_state("seen", int)

    def process(self, event, ctx):
        self.seen.add(event)
        yield tuple(self.seen.get())


def of(worker):
    """A key whose group the worker has."""
    codec, groups = KeyCodec(int), split_key_groups(2, DEFAULT_MAX_PARALLELISM)[worker]
    return next(key for key in range(100) if key_group_of(codec.encode(key), DEFAULT_MAX_PARALLELISM) in groups)


def one_stage(source, written):
    job = Job("job")
    job.source(source).key_by(lambda event: of(1), int).process(Seen()).sink(written.append)
    return job


@pytest.mark.parametrize("mode", MODES)
def test_what_is_read_behind_a_barrier_is_read_again(workers, mode):
    """The second worker takes its part before it has got what the first one has read behind its barrier."""
    both = workers(mode, one_stage)
    both.source.events = [1, 2]
    both.settle()
    both.trigger(0)
    both.source.events += [3]
    both.step(0, 5)
    both.trigger(1)
    both.wait_for_part(1)
    both.wait_for_part(0)
    both.complete()
    both.crash()
    both.source.events += [4]
    both.settle()
    assert set(both.written[-1]) == {1, 2, 3, 4}


@pytest.mark.parametrize("trigger_is_late", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_that_is_given_up_while_a_worker_waits_for_its_barrier(workers, mode, trigger_is_late):
    """The barrier, and what the JobManager had said before, come when it is over; the next checkpoint is whole."""
    both = workers(mode, one_stage)
    both.source.events = [1, 2]
    both.settle()
    both.networks[1].is_held = True
    both.source.events += [3]
    both.trigger(0)
    if not trigger_is_late:
        both.trigger(1)
    both.step(0, 5)
    both.step(1, 5)
    if not trigger_is_late:
        both.wait_for_part(0)
    assert both.part(1) is None
    for task in both.tasks:
        task.handle(Abort(checkpoint=1, reason="no answer"))
    if trigger_is_late:
        both.trigger(1)
    both.source.events += [4]
    both.step(0, 5)
    both.networks[1].is_held = False
    both.settle()
    assert sorted(both.written[-1]) == [1, 2, 3, 4]
    assert both.part(1) is None
    both.checkpoint += 1
    for worker in (0, 1):
        both.trigger(worker)
    both.settle()
    for worker in (0, 1):
        both.wait_for_part(worker)
    both.complete()
    both.source.events += [5]
    both.settle()
    assert sorted(both.written[-1]) == [1, 2, 3, 4, 5]
    both.crash()
    both.settle()
    assert sorted(both.written[-1]) == [1, 2, 3, 4, 5]


class Once(KeyedProcessFunction):
    """The first event of each key."""

    def open(self, ctx):
        self.has_come = ctx.value_state("has-come", bool, default=False)

    def process(self, event, ctx):
        if not self.has_come.value():
            self.has_come.update(True)
            yield event


def two_stages(function):
    """The first stage is the first worker's, the second the other's."""

    def build(source, written):
        job = Job("job")
        first = job.source(source).map(lambda event: event).key_by(lambda event: of(0), int).process(function())
        first.key_by(lambda event: of(1), int).process(Seen()).sink(written.append)
        return job

    return build


def checkpoint(both, meanwhile):
    """Make one. The second worker has taken its part, and the barrier has left the first one's first stage, when `meanwhile` happens."""
    for worker in (0, 1):
        both.trigger(worker)
    while both.tasks[0].step():
        pass
    both.networks[0].is_held = True  # what the second worker sends is on its way
    both.wait_for_part(1)
    meanwhile()
    both.networks[0].is_held = False
    both.wait_for_part(0)
    both.complete()


@pytest.mark.parametrize("mode", MODES)
def test_what_a_stage_does_behind_a_barrier_is_not_in_the_checkpoint(workers, mode):
    """Or it would be done, as far as the first stage knows, and what came of it lost."""
    both = workers(mode, two_stages(Once))

    def meanwhile():
        both.source.events += [1]
        both.step(0, 5)

    checkpoint(both, meanwhile)
    both.crash()
    both.settle()
    assert both.written[-1] == (1,)


class Echo(KeyedProcessFunction):
    """Each event, ten seconds later."""

    def open(self, ctx):
        self.kept = ctx.list_state("kept", int)

    def process(self, event, ctx):
        self.kept.add(event)
        ctx.timers.register_processing_time_timer(ctx.timers.current_processing_time + 10_000)

    def on_timer(self, timestamp, ctx):
        yield from self.kept.get()
        self.kept.clear()


@pytest.mark.parametrize("mode", MODES)
def test_no_timer_fires_between_a_barrier_and_the_workers_part(workers, mode):
    both = workers(mode, two_stages(Echo))
    both.source.events = [1]
    both.settle()

    def meanwhile():
        both.clock.advance(20)
        both.step(0, 2)

    checkpoint(both, meanwhile)
    both.crash()
    both.clock.advance(20)
    both.settle()
    assert both.written == [(1,)]


def counts(source, written):
    strategy = WatermarkStrategy.monotonous(lambda event: event)
    job = Job("job")
    keyed = job.source(source).assign_timestamps(strategy).key_by(lambda event: of(1), int)
    keyed.window(Tumbling("1s"), late_output="late").count().side_output("late").sink(written.append)
    return job


@pytest.mark.parametrize("mode", MODES)
def test_event_time_behind_a_barrier_is_not_in_the_checkpoint(workers, mode):
    """Or what is read again would be late."""
    both = workers(mode, counts)
    both.source.events = [1_000]
    both.settle()
    both.trigger(0)
    both.source.events += [2_000, 500_000]
    both.step(0, 5)
    both.trigger(1)
    both.wait_for_part(1)
    both.wait_for_part(0)
    both.complete()
    both.crash()
    for _ in range(5):
        both.clock.advance(1)
        both.settle()
    assert both.written == []
