"""Timers and side outputs of functions: each timer comes once, in order, whatever crashes, on every backend."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from statestore import UsageError
from statestore.testing.clock import FakeClock
from statestore_runtime import KeyedProcessFunction, UserCodeError
from statestore_runtime.operators.timed import RESULTS_TOGETHER
from statestore_runtime.watermarks import MAX_WATERMARK
from tests.conftest import BACKENDS
from tests.runtime.driving import Driver, opener, timed_job
from tests.runtime.stories import END, run, stories
from tests.store.stores import Stores

EXAMPLES = {"memory": 40, "rocksdb": 5, "filesystem": 5, "redis": 5}


@pytest.fixture
def clock():
    return FakeClock(1000.0)


@pytest.fixture
def memory(places, clock):
    stores = Stores(places, clock=clock)
    yield opener(stores)
    stores.close()


def process_job(function):
    job, events = timed_job()
    made, notes = [], []
    processed = events.key_by(lambda event: event[0], str).process(function, "op")
    processed.sink(made.append)
    processed.side_output("notes").sink(notes.append)
    return job, made, notes


class Silence(KeyedProcessFunction):
    """Tells when a key has been silent for ten milliseconds: each event moves the timer."""

    def open(self, ctx):
        self.until = ctx.value_state("until", int)

    def process(self, event, ctx):
        until = self.until.value()
        if until is None or ctx.timestamp + 10 > until:
            if until is not None:
                ctx.timers.delete_event_time_timer(until)
            self.until.update(ctx.timestamp + 10)
            ctx.timers.register_event_time_timer(ctx.timestamp + 10)

    def on_timer(self, timestamp, ctx):
        assert (timestamp, ctx.time_domain) == (ctx.timestamp, "event-time")
        assert self.until.value() == timestamp
        self.until.clear()
        yield ctx.key, timestamp


def reference(steps):
    watermark, until, told = -1, {}, []
    for step in steps:
        match step:
            case ("events", _, events):
                for key, time, _ in events:
                    until[key] = max(until.get(key, time + 10), time + 10)
            case ("watermark", time):
                watermark = max(watermark, time)
            case (word,) if word == END:
                watermark = MAX_WATERMARK
        # What is past already comes with the next watermark.
        is_time = step[0] in ("watermark", END)
        due = {key: time for key, time in until.items() if is_time and time <= watermark}
        told.append(sorted(due.items()))
        until = {key: time for key, time in until.items() if key not in due}
    return told


def last_watermarks_only(steps):
    """Without watermarks that change nothing: operators do not hear of them."""
    kept, watermark = [], -1
    for step in steps:
        if step[0] != "watermark" or step[1] > watermark:
            kept.append(step)
            watermark = step[1] if step[0] == "watermark" else watermark
    return kept


@pytest.mark.parametrize("backend", BACKENDS)
def test_event_time_timers_are_those_of_the_reference(places, backend):
    stores = Stores(places)
    open_store = opener(stores, backend)

    @settings(
        max_examples=EXAMPLES[backend], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(stories())
    def check(steps):
        steps = last_watermarks_only(steps)
        job, made, _ = process_job(Silence())
        results, _ = run(steps, job, made, open_store)
        assert [sorted(of_step) for of_step in results] == reference(steps)
        assert all([time for _, time in made] == sorted(time for _, time in made) for made in results)

    check()
    stores.close()


class Reminder(KeyedProcessFunction):
    """Comes back after as many seconds as an event says."""

    def process(self, event, ctx):
        ctx.timers.register_processing_time_timer(ctx.timers.current_processing_time + 1000 * event[1])
        ctx.output("notes", ctx.timers.current_watermark)

    def on_timer(self, timestamp, ctx):
        ctx.output("notes", ctx.timestamp)
        yield ctx.key, timestamp, ctx.time_domain


@pytest.mark.parametrize("backend", BACKENDS)
def test_processing_time_timers_wait_for_the_clock_also_over_a_crash(places, backend, clock):
    stores = Stores(places, clock=clock)
    open_store = opener(stores, backend)
    job, made, notes = process_job(Reminder())
    driver = Driver(job, open_store(), clock)
    driver.push([("a", 5), ("b", 1), ("c", 60)])
    driver.advance(0.999)
    assert made == []
    driver.advance(0.001)
    assert made == [("b", 1_001_000, "processing-time")]
    driver.checkpoint()
    driver.advance(10)
    driver = Driver(job, open_store("latest"), clock)
    driver.look_at_clock()
    assert made[1:] == [("a", 1_005_000, "processing-time")] * 2, "once before the crash, and once again after it"
    driver.end()
    driver.advance(1)
    assert len(made) == 3, "the end of the input is not the end of the clock's time"
    assert notes == [None] * 6
    stores.close()


def test_results_of_timers_have_their_times(memory):
    class Both(KeyedProcessFunction):
        def process(self, event, ctx):
            ctx.timers.register_event_time_timer(event[1])
            ctx.timers.register_processing_time_timer(event[1])

        def on_timer(self, timestamp, ctx):
            return [ctx.time_domain] * 2

    job, _, _ = process_job(Both())
    driver = Driver(job, memory())
    told = []
    driver["sink-1"].push = lambda batch, times, port: told.append((batch, times))
    driver.push([("a", 5), ("b", 7)], [1, 2])
    driver.watermark(10)
    driver.look_at_clock()
    assert told == [(["event-time"] * 4, [5, 5, 7, 7]), (["processing-time"] * 4, None)]


class Every(KeyedProcessFunction):
    """Sets the next timer with each."""

    def process(self, event, ctx):
        ctx.timers.register_event_time_timer(event[1])
        ctx.timers.register_event_time_timer(event[1])

    def on_timer(self, timestamp, ctx):
        yield ctx.key, timestamp
        ctx.timers.register_event_time_timer(timestamp + 100)
        ctx.timers.register_event_time_timer(timestamp + 150)
        ctx.timers.delete_event_time_timer(timestamp + 150)


def test_a_timer_that_sets_the_next_one_comes_to_an_end_with_the_input_and_goes_on_after_it(memory):
    job, made, _ = process_job(Every())
    driver = Driver(job, memory())
    driver.push([("a", 50), ("b", 70)], [1, 1])
    driver.watermark(199)
    assert made == [("a", 50), ("b", 70), ("a", 150), ("b", 170)]
    driver.end()
    assert made[4:] == [("a", 250), ("b", 270)]
    driver.checkpoint()
    made.clear()
    driver = Driver(job, memory("latest"))
    driver.watermark(399)
    assert made == [("a", 350), ("b", 370)]


def test_very_many_timers_at_once_go_on_in_parts(memory):
    job, _, _ = process_job(Every())
    driver = Driver(job, memory())
    sizes = []
    driver["sink-1"].push = lambda batch, times, port: sizes.append(len(batch))
    count = 2 * RESULTS_TOGETHER + 10
    driver.push([(str(n), 100) for n in range(count)], [1] * count)
    driver.watermark(100)
    assert (sum(sizes), max(sizes)) == (count, RESULTS_TOGETHER)


def test_timers_need_a_method_that_they_call(memory):
    class Forgetful(KeyedProcessFunction):
        def process(self, event, ctx):
            ctx.timers.register_event_time_timer(5)

    job, *_ = process_job(Forgetful())
    with pytest.raises(UsageError, match=r"needs a method on_timer\(timestamp, ctx\)") as caught:
        Driver(job, memory()).push([("a", 1)])
    assert caught.value.__notes__ == ["in operator 'op'"]


def test_a_function_without_timers_has_no_state_for_them(memory):
    class Plain(KeyedProcessFunction):
        def process(self, event, ctx):
            return [event]

    driver = Driver(process_job(Plain())[0], memory())
    assert driver.store.registry.declarations == {}
    driver = Driver(process_job(Silence())[0], memory())
    assert set(driver.store.registry.declarations) == {"op/until", "op/event-time-timers", "op/processing-time-timers"}


def test_a_side_output_that_nobody_takes_goes_nowhere_and_its_tag_is_text(memory):
    class Tagged(KeyedProcessFunction):
        def process(self, event, ctx):
            ctx.output(event[1], event)

    job, made, notes = process_job(Tagged())
    driver = Driver(job, memory())
    driver.push([("a", "notes"), ("a", "none")])
    assert (made, notes) == ([], [("a", "notes")])
    with pytest.raises(UsageError, match="the tag of a side output is text, not 3"):
        driver.push([("a", 3)])


class Told(KeyedProcessFunction):
    """Raises when it is told of what it is named after."""

    def __init__(self, bad=None):
        self.bad = bad

    def process(self, event, ctx):
        return None

    def _told(self, what):
        if what == self.bad:
            raise ValueError(what)

    def on_restore(self, checkpoint_id):
        self._told(f"restore {checkpoint_id}")

    def on_checkpoint_complete(self, checkpoint_id):
        self._told(f"complete {checkpoint_id}")

    def on_checkpoint_failed(self, checkpoint_id, reason):
        self._told(f"failed {checkpoint_id} {reason}")


@pytest.mark.parametrize("bad", ["restore 3", "complete 3", "failed 3 disk full"])
def test_functions_are_told_of_checkpoints_and_may_fail_then(memory, bad):
    operator = Driver(process_job(Told(bad))[0], memory())["op"]
    calls = [
        lambda: operator.on_restore(3),
        lambda: operator.on_checkpoint_complete(3),
        lambda: operator.on_checkpoint_failed(3, "disk full"),
    ]
    failed = []
    for call in calls:
        try:
            call()
        except UserCodeError as error:
            failed.append((error.operator, error.problem))
    assert failed == [("op", f"ValueError: {bad}")]
