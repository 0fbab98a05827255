"""The harnesses that are shipped for tests of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from statestore.errors import UsageError
from statestore_runtime import (
    CollectSink,
    Job,
    KeyedProcessFunction,
    Tumbling,
    UserCodeError,
    WatermarkStrategy,
)
from statestore_runtime.messages import CheckpointCompleted, Started
from statestore_runtime.testing import (
    ADVANCE,
    CALL,
    CHECKPOINT,
    CRASH,
    EOF,
    RESCALE,
    RESTART,
    JobHarness,
    KeyedFunctionHarness,
)
from tests.conftest import BACKENDS


class Count(KeyedProcessFunction):
    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)

    def process(self, event, ctx):
        self.counts.update(self.counts.value() + 1)
        yield event, self.counts.value()


def counting(source, sink):
    job = Job("story")
    job.source(source).key_by(lambda event: event % 2, int).process(Count()).sink(sink)
    return job


COUNTED = [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)]

SCRIPTS = [
    [1, 2, 3, 4, 5],
    [CRASH, 1, 2, 3, 4, 5],
    [1, 2, 3, CRASH, 4, 5],
    [1, 2, CHECKPOINT, 3, CRASH, 4, CRASH, 5],
    [1, CHECKPOINT, 2, RESTART, 3, RESTART, 4, 5],
    [1, 2, EOF, 3, CRASH, 4, EOF, 5],
    [1, RESCALE(3), 2, CRASH, 3, RESCALE(1), 4, RESTART, 5],
    [1, 2, 3, 4, 5, CHECKPOINT, CRASH],
    [1, 2, 3, 4, 5, EOF],
]


@pytest.fixture
def settings(redis_url):
    return {"state.redis.url": redis_url}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_scripts(backend, number, settings):
    """Backends and parallelism take turns with what the scripts hold."""
    parallelism = (1, 2, 4)[(number + BACKENDS.index(backend)) % 3]
    harness = JobHarness(counting, backend=backend, parallelism=parallelism, settings=settings)
    assert sorted(harness.run(SCRIPTS[number])) == COUNTED
    assert harness.restarts == SCRIPTS[number].count(CRASH)
    assert harness.finished.events == 5


def test_parts_are_read_in_the_order_of_the_script():
    heard = []

    def build(source, sink):
        job = Job("story")
        job.source(source).map(lambda event: heard.append(event) or event).sink(sink)
        return job

    script = [1, 2, 3, CALL(lambda: heard.append("here")), 4, 5, CRASH, 6]
    harness = JobHarness(build, parallelism=2, splits=3)
    assert sorted(harness.run(script)) == [1, 2, 3, 4, 5, 6]
    assert heard == [1, 2, 3, "here", 4, 5, 1, 2, 3, 4, 5, 6]


def test_batches_end_at_markers():
    batches = []

    class Batches(CollectSink):
        def write(self, batch):
            batches.append(list(batch))
            super().write(batch)

    def build(source, sink):
        job = Job("story")
        job.source(source).sink(Batches())
        return job

    JobHarness(build, batch_size=3).run([1, 2, 3, 4, CHECKPOINT, 5, 6, ADVANCE(1), 7])
    assert batches == [[1, 2, 3], [4], [5, 6], [7]]


def test_checkpoints_are_those_of_the_script():
    harness = JobHarness(counting, parallelism=2)
    harness.run([1, CHECKPOINT, 2, CHECKPOINT, 3])
    assert [each.checkpoint for each in harness.messages if isinstance(each, CheckpointCompleted)] == [1, 2, 3, 4]


def test_a_rescaled_job_has_so_many_workers():
    harness = JobHarness(counting)
    harness.run([1, RESCALE(3), 2, RESTART, 3, RESCALE(2), 4])
    assert [each.parallelism for each in harness.messages if isinstance(each, Started)] == [1, 3, 3, 2]


def test_a_parallelism_that_cannot_be():
    with pytest.raises(UsageError, match="RESCALE: parallelism is 1000, it must be from 1 to 128"):
        JobHarness(counting).run([1, RESCALE(1000), 2])


def test_time_passes_only_as_the_script_says():
    harness, times = JobHarness(counting, parallelism=2), []
    note = CALL(lambda: times.append(harness.clock.monotonic()))
    harness.run([note, 1, CHECKPOINT, note, ADVANCE("10s"), note, CRASH, 2, ADVANCE(0.5), note])
    assert times == [0.0, 0.0, 10.0, 10.5]


class Remind(KeyedProcessFunction):
    """Ten seconds after an event says when it came, by the machine's clock."""

    def open(self, ctx):
        pass

    def process(self, event, ctx):
        now = ctx.timers.current_processing_time
        ctx.timers.register_processing_time_timer(now + 10_000)
        yield event, "came"

    def on_timer(self, timestamp, ctx):
        yield ctx.key, "timer"


@pytest.mark.parametrize("parallelism", [1, 2])
def test_timers_fire_before_what_follows(parallelism):
    def build(source, sink):
        job = Job("story")
        job.source(source).key_by(lambda event: event, int).process(Remind()).sink(sink)
        return job

    harness = JobHarness(build, parallelism=parallelism)
    found = harness.run([1, ADVANCE("9s"), 2, CHECKPOINT, CRASH, ADVANCE("1s"), CHECKPOINT, 3, CRASH, ADVANCE("20s")])
    together = [found[:2], found[2:3], found[3:]]
    assert [sorted(part) for part in together] == [
        [(1, "came"), (2, "came")],
        [(1, "timer")],
        [(2, "timer"), (3, "came"), (3, "timer")],
    ]


def test_several_scripts():
    def build(first, second, sink):
        job = Job("story")
        job.source(first).union(job.source(second)).sink(sink)
        return job

    found = JobHarness(build, parallelism=2).run([1, 2, CRASH, 3, EOF, 4], [10, CHECKPOINT, 20, EOF, 30])
    assert sorted(found) == [1, 2, 3, 4, 10, 20, 30]


def test_what_a_job_fails_with_is_raised():
    def build(source, sink):
        job = Job("story")
        job.source(source).map(lambda event: 1 // event).sink(sink)
        return job

    harness = JobHarness(build)
    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        harness.run([1, 0, 1])
    assert (harness.restarts, harness.sink.results, harness.finished) == (1, [1], None)


def test_a_folder_of_ones_own_is_gone_on_from(tmp_path):
    assert JobHarness(counting, dir=tmp_path).run([1, 2]) == [(1, 1), (2, 1)]
    again = JobHarness(counting, dir=tmp_path, parallelism=2).run([1, 2, 3, 4], restore="latest")
    assert sorted(again) == [(3, 2), (4, 2)]
    assert JobHarness(counting, dir=tmp_path).run([1, 3]) == [(1, 1), (3, 2)]


# Functions


class Sums(KeyedProcessFunction):
    """Sum of each key in a minute of event time; negative events go aside."""

    def open(self, ctx):
        self.sums = ctx.value_state("sum", int, default=0)

    def process(self, event, ctx):
        if event < 0:
            ctx.output("negative", event)
            return
        self.sums.update(self.sums.value() + event)
        if ctx.timestamp is not None:
            ctx.timers.register_event_time_timer(ctx.timestamp // 60_000 * 60_000 + 59_999)
        yield event

    def on_timer(self, timestamp, ctx):
        yield ctx.key, self.sums.value()
        self.sums.clear()


def key_of(event):
    return abs(event) % 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_by_hand(backend, settings):
    with KeyedFunctionHarness(Sums(), key_of, int, backend=backend, parallelism=2, settings=settings) as harness:
        harness.process_element(1, 1000)
        harness.process_element(11, 2000)
        harness.process_element(3, 61_000)
        harness.process_element(-5)
        assert harness.records == [(1, 1000), (11, 2000), (3, 61_000)]
        assert harness.side_output("negative") == [-5]
        harness.clear_output()
        harness.process_watermark(59_998)
        assert harness.output == []
        harness.process_watermark(59_999)
        assert (harness.records, harness.side_output("negative")) == ([((1, 12), 59_999)], [])
        harness.end_input()
        assert harness.output == [(1, 12), (3, 3)]


@pytest.mark.parametrize(("backend", "parallelism"), list(zip(BACKENDS, (3, 1, 2, 4), strict=True)))
def test_a_function_goes_on_elsewhere(backend, parallelism, settings):
    with KeyedFunctionHarness(Sums(), key_of, int, parallelism=2) as harness:
        for event in range(1, 30):
            harness.process_element(event, 1000 * event)
        harness.process_watermark(20_000)
        harness.advance_processing_time("5s")
        snapshot = harness.snapshot()
        harness.process_element(1, 1000)
        time = harness.processing_time
    options = {"backend": backend, "parallelism": parallelism, "settings": settings}
    with KeyedFunctionHarness(Sums(), key_of, int, snapshot=snapshot, **options) as harness:
        assert harness.processing_time == time
        harness.end_input()
        expected = {key: sum(range(key or 10, 30, 10)) for key in range(10)}
        assert sorted(harness.output) == sorted(expected.items())


def test_a_function_with_processing_time_timers():
    with KeyedFunctionHarness(Remind(), lambda event: event, int) as harness:
        harness.process_element(7)
        harness.advance_processing_time("9s")
        assert harness.output == [(7, "came")]
        harness.advance_processing_time(1)
        assert harness.records == [((7, "came"), None), ((7, "timer"), None)]


def test_listeners_of_a_function():
    heard = []

    class Listening(Count):
        def on_checkpoint_complete(self, checkpoint_id):
            heard.append(("complete", checkpoint_id))

        def on_restore(self, checkpoint_id):
            heard.append("restored")

        def close(self):
            heard.append("closed")

    with KeyedFunctionHarness(Listening(), key_of, int) as harness:
        snapshot = harness.snapshot()
    with KeyedFunctionHarness(Listening(), key_of, int, snapshot=snapshot):
        pass
    assert heard == [("complete", 1), "closed", "restored", "closed"]


def test_what_a_function_fails_with():
    class Inverse(Count):
        def process(self, event, ctx):
            yield 1 // event

    with KeyedFunctionHarness(Inverse(), key_of, int) as harness:
        with pytest.raises(UserCodeError, match="ZeroDivisionError"):
            harness.process_element(0)
        with pytest.raises(UsageError, match=r"key 1\.5 is float"):
            harness.process_element(1.5)
        folder = Path(harness._folder)
    assert not folder.exists()
    with pytest.raises(UsageError, match="parallelism is 200"):
        KeyedFunctionHarness(Sums(), key_of, int, parallelism=200)


def test_windows_are_tested_with_a_job():
    def build(source, sink):
        job = Job("windows")
        events = job.source(source, watermarks=WatermarkStrategy.monotonous(lambda event: event[1]))
        keyed = events.key_by(lambda event: event[0], str)
        keyed.window(Tumbling("1min")).reduce(lambda one, other: (one[0], one[1] + other[1]), tuple[str, int]).sink(
            sink
        )
        return job

    found = JobHarness(build, parallelism=2).run(
        [("a", 1000), ("b", 2000), CRASH, ("a", 59_000), CHECKPOINT, ("a", 60_000)]
    )
    assert len(found) == 3
