"""Watermark strategies: what time an event has, how far event time has come, what becomes of it after a restore."""

from __future__ import annotations

import datetime

import pytest

from statestore import TimeToLive, UsageError
from statestore.testing.clock import FakeClock
from statestore_runtime import CollectionSource, Job, KeyedProcessFunction, UserCodeError, WatermarkStrategy
from statestore_runtime.watermarks import MAX_WATERMARK, MIN_WATERMARK
from tests.runtime.driving import NOTHING, Driver, opener, timed_job
from tests.store.stores import Stores


@pytest.fixture
def clock():
    return FakeClock(1000.0)


@pytest.fixture
def memory(places, clock):
    stores = Stores(places, clock=clock)
    yield opener(stores)
    stores.close()


def test_the_watermark_lags_behind_the_newest_event():
    strategy = WatermarkStrategy.bounded_out_of_orderness("5s", lambda event: event * 1000)
    generator = strategy.generator("in", 0.0)
    assert generator.current(0.0) == MIN_WATERMARK
    assert generator.stamp([7, 3, 9, 8]) == [7000, 3000, 9000, 8000]
    assert generator.current(0.0) == 3999
    assert generator.stamp([]) == []
    assert generator.stamp([4]) == [4000]
    assert generator.current(0.0) == 3999, "it never goes back"


def test_event_times_that_never_go_back():
    generator = WatermarkStrategy.monotonous(int).generator("in", 0.0)
    assert generator.stamp([10, 10, 11]) == [10, 10, 11]
    assert generator.current(0.0) == 10, "another event at 11 would not be late"


def test_a_silent_split_is_idle_until_its_next_event():
    generator = WatermarkStrategy.monotonous(int, idle_after="10s").generator("in", 100.0)
    assert generator.current(109.9) == MIN_WATERMARK
    assert generator.current(110.0) is None, "also one that never had an event"
    generator.stamp([5])
    assert generator.current(200.0) == 4
    assert generator.current(209.9) == 4
    assert generator.current(210.0) is None
    generator.stamp([3])
    assert generator.current(211.0) == 4


def test_a_generator_goes_on_from_where_another_was():
    strategy = WatermarkStrategy.bounded_out_of_orderness(1, int)
    before = strategy.generator("in", 0.0)
    assert before.snapshot() is None
    before.stamp([5000])
    after = strategy.generator("in", 0.0, before.snapshot())
    assert after.current(0.0) == 3999


UTC_2 = datetime.timezone(datetime.timedelta(hours=2))


@pytest.mark.parametrize(
    ("time", "milliseconds"),
    [
        (datetime.datetime(1970, 1, 1, 0, 0, 1, 1999, tzinfo=datetime.UTC), 1001),
        (datetime.datetime(1970, 1, 1, 2, 0, 1, tzinfo=UTC_2), 1000),
        (datetime.datetime(1970, 1, 1, 0, 0, 1), 1000),  # without a zone it is in UTC
        (datetime.datetime(1969, 12, 31, 23, 59, 59, tzinfo=datetime.UTC), -1000),
        (1.7e12 + 0.5, 1_700_000_000_000),
        (-5, -5),
    ],
)
def test_what_may_be_a_time(time, milliseconds):
    assert WatermarkStrategy.monotonous(lambda event: event).generator("in", 0.0).stamp([0, time]) == [0, milliseconds]


@pytest.mark.parametrize("time", [None, "1970", True, float("nan"), float("inf"), MAX_WATERMARK, MIN_WATERMARK])
def test_what_is_no_time(time):
    generator = WatermarkStrategy.monotonous(lambda event: event).generator("in", 0.0)
    with pytest.raises(UsageError, match="is no event time: a timestamp is in milliseconds since 1970, or a datetime"):
        generator.stamp([1, time])


def test_a_function_that_fails_names_operator_and_event():
    generator = WatermarkStrategy.monotonous(lambda event: event["time"]).generator("in", 0.0)
    with pytest.raises(UserCodeError, match="operator 'in' failed on an event: KeyError: 'time'") as caught:
        generator.stamp([{"time": 1}, {}, {"time": 2}])
    assert (caught.value.index, caught.value.event) == (1, {})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WatermarkStrategy.monotonous("time"), "timestamp is a function, not str"),
        (lambda: WatermarkStrategy.monotonous(int, idle_after="x"), "idle_after: 'x' is no duration"),
        (lambda: WatermarkStrategy.bounded_out_of_orderness(-1, int), "bound of out-of-orderness is -1: it can't be"),
        (lambda: WatermarkStrategy.bounded_out_of_orderness(float("nan"), int), "is nan: it can't be"),
        (lambda: Job("job").source(NOTHING, watermarks=int), "takes a WatermarkStrategy such as .*, not the class int"),
        (lambda: Job("job").source(NOTHING, rate_limit=0), "rate_limit is 0: it must be more than 0 events per second"),
        (lambda: Job("job").source(NOTHING, rate_limit="1"), "rate_limit is '1': it must be more than 0"),
        (lambda: Job("job").source(NOTHING).assign_timestamps(int), "takes a WatermarkStrategy, not the class int"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(UsageError, match=message):
        build()


def test_a_source_keeps_its_strategy_and_limit():
    job, strategy = Job("job"), WatermarkStrategy.monotonous(int)
    job.source(CollectionSource([]), watermarks=strategy, rate_limit=2.5).print()
    source = job.build()[0]
    assert (source.watermarks, source.rate_limit) == (strategy, 2.5)


# In the middle of a stream


class Watch(KeyedProcessFunction):
    """What it sees of event time."""

    def process(self, event, ctx):
        yield ctx.timestamp, ctx.current_watermark


def stamped_job(idle_after=None):
    job, numbers, other = timed_job("in", "other")
    made = []
    strategy = WatermarkStrategy.bounded_out_of_orderness(0.01, lambda n: n, idle_after=idle_after)
    stamped = numbers.map(lambda n: n * 10).assign_timestamps(strategy, "stamp")
    stamped.union(other).key_by(str, str).process(Watch(), "watch").sink(made.append)
    return job, made


def test_times_that_are_assigned_in_the_middle_replace_those_before(memory):
    job, made = stamped_job()
    driver = Driver(job, memory())
    driver.end("other")
    driver.push([5, 3], [77, 78], "in")
    driver.watermark(70, "in")
    driver.push([4], uid="in")
    assert made == [(50, None), (30, None), (40, 39)]
    assert driver["watch"].watermark == 39
    driver.end("in")
    assert driver["watch"].watermark == MAX_WATERMARK


def test_assigned_event_time_goes_on_after_a_restore(memory):
    job, made = stamped_job()
    driver = Driver(job, memory())
    driver.end("other")
    driver.push([5], uid="in")
    driver.checkpoint()
    made.clear()
    driver = Driver(job, memory("latest"))
    driver.push([2], uid="in")
    assert (made, driver["stamp"].watermark) == ([(20, 39)], 39)
    driver["stamp"].restore([{"newest": 900}, {"newest": 300}])
    assert driver["stamp"].snapshot() == {"newest": 300}, "of several workers the last one counts"


def test_an_idle_stream_in_the_middle_holds_nobody_up(memory, clock):
    job, _ = stamped_job(idle_after="5s")
    driver = Driver(job, memory(), clock)
    driver.push([1], uid="in")
    driver.watermark(500, "other")
    assert driver["watch"].watermark == -1
    driver.advance(4.9)
    assert driver["watch"].watermark == -1
    driver.advance(0.1)
    assert driver["watch"].watermark == 500
    driver.push([100], uid="in")
    driver.watermark(2000, "other")
    assert driver["watch"].watermark == 989


# Event time of the state


class Remember(KeyedProcessFunction):
    def open(self, ctx):
        self.seen = ctx.value_state("seen", bool, default=False, ttl=TimeToLive("1s", time="event-time"))

    def process(self, event, ctx):
        yield self.seen.value()
        self.seen.update(True)


def remembering_job():
    job, fast, slow = timed_job("fast", "slow")
    made = {"fast": [], "slow": []}
    for name, stream in (("fast", fast), ("slow", slow)):
        stream.key_by(str, str).process(Remember(), name + "-op").sink(made[name].append)
    return job, made


def test_state_times_out_by_the_watermark_of_the_operator_that_is_furthest_behind(memory):
    job, made = remembering_job()
    driver = Driver(job, memory())
    driver.watermark(10_000)
    driver.push([1], uid="fast")
    driver.push([1], uid="slow")
    driver.watermark(10_999, "fast")
    driver.watermark(11_500, "fast")
    driver.push([1], uid="slow")
    assert made["slow"] == [False, True]
    driver.watermark(11_500, "slow")
    driver.push([1], uid="slow")
    driver.push([1], uid="fast")
    assert made == {"slow": [False, True, False], "fast": [False, False]}
    driver.push([1], uid="slow")
    driver.end("slow")
    driver.watermark(13_000, "fast")
    driver.push([1], uid="fast")
    assert made == {"slow": [False, True, False, True], "fast": [False, False, False]}


def test_the_end_of_the_input_lets_nothing_time_out(memory):
    job, made = remembering_job()
    driver = Driver(job, memory())
    driver.watermark(10_000)
    driver.push([1], uid="slow")
    driver.end()
    driver.checkpoint()
    driver = Driver(job, memory("latest"))
    assert driver["slow-op"].watermark == 10_000
    driver.push([1], uid="slow")
    assert made["slow"] == [False, True]
