"""Interval joins against plain Python, and functions of two streams."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statestore import StateMigrationError, UsageError
from statestore_runtime import (
    CollectionSource,
    Job,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    ProcessJoinFunction,
    UserCodeError,
    WatermarkStrategy,
)
from tests.conftest import BACKENDS
from tests.runtime.driving import Driver, opener, timed_job
from tests.runtime.stories import END, run, stories
from tests.store.stores import Stores

EXAMPLES = {"memory": 40, "rocksdb": 5, "filesystem": 5, "redis": 5}
EVENT = tuple[str, int, int]


@pytest.fixture
def memory(places):
    stores = Stores(places)
    yield opener(stores)
    stores.close()


# Interval joins


def by_first(stream):
    return stream.key_by(lambda event: event[0], str)


class Pairs(ProcessJoinFunction):
    def process(self, left, right, ctx):
        assert (ctx.key, ctx.left_timestamp, ctx.right_timestamp) == (left[0], left[1], right[1])
        ctx.output("times", ctx.timestamp)
        return [(left, right)]


def join_job(lower, upper):
    job, left, right = timed_job("left", "right")
    made, late, times = [], [], []
    pairs = (
        by_first(left)
        .interval_join(by_first(right), lower / 1000, upper / 1000, (EVENT, EVENT), late_output="late")
        .process(Pairs())
    )
    pairs.sink(made.append)
    pairs.side_output("late").sink(late.append)
    pairs.side_output("times").sink(times.append)
    return job, (made, late, times)


def reference(steps, lower, upper):
    """Pairs and late events of all steps, found by looking at each two events."""
    watermark, taken, late = -1, [], []
    for place, step in enumerate(steps):
        match step:
            case ("events", port, events):
                for event in events:
                    if event[1] <= watermark:
                        late.append(event)
                    else:
                        taken.append((place, port, event))
            case ("watermark", time):
                watermark = max(watermark, time)
    pairs = [
        (max(place, other_place), left, right)
        for place, port, left in taken
        for other_place, other_port, right in taken
        if (port, other_port) == (0, 1) and left[0] == right[0] and lower <= right[1] - left[1] <= upper
    ]
    return pairs, late


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_are_those_of_the_reference(places, backend):
    stores = Stores(places)
    open_store = opener(stores, backend)

    @settings(
        max_examples=EXAMPLES[backend], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(stories(inputs=2), st.integers(-20, 20), st.integers(0, 30))
    def check(steps, lower, span):
        upper = lower + span
        job, taken = join_job(lower, upper)
        results, driver = run(steps, job, taken, open_store)
        pairs, late = reference(steps, lower, upper)
        for place, (made, _, times) in enumerate(results):
            assert sorted(made) == sorted((left, right) for at, left, right in pairs if at == place)
            assert times == [max(left[1], right[1]) for left, right in made]
        assert [event for _, of_step, _ in results for event in of_step] == late
        if steps[-1] == (END,):
            driver.checkpoint()
            assert (driver.store.count_keys(), driver["join-1"].timers._event.next_time()) == (0, None)

    check()
    stores.close()


def test_what_can_find_no_partner_any_more_is_forgotten(memory):
    job, _ = join_job(-10, 100)
    driver = Driver(job, memory())
    driver.push([("a", 50, 1)], [50], "left")
    driver.push([("b", 50, 1)], [50], "right")
    driver.watermark(50 + 100 + 110 // 4)
    driver.checkpoint()
    assert driver.store.count_keys() == 0
    driver.push([("a", 160, 1)], [160], "left")
    assert driver["join-1"].late_dropped == 0, "they have a side output"


def test_joins_without_a_side_output_count_late_events(memory):
    job, left, right = timed_job("left", "right")
    made = []
    by_first(left).interval_join(by_first(right), "-1s", "1s", (EVENT, EVENT)).map(lambda a, b: a[2] + b[2]).sink(
        made.append
    )
    driver = Driver(job, memory())
    driver.watermark(1000)
    driver.push([("a", 1000, 1), ("a", 1001, 2)], [1000, 1001], "left")
    driver.push([("a", 2001, 10), ("a", 2002, 10)], [2001, 2002], "right")
    assert (made, driver["join-1"].late_dropped) == ([12], 1)


def test_other_bounds_after_a_restore(memory):
    job, _ = join_job(0, 10)
    driver = Driver(job, memory())
    driver.push([("a", 0, 1)], [0], "left")
    driver.checkpoint()
    job, (made, *_) = join_job(0, 1000)
    driver = Driver(job, memory("latest"))
    driver.watermark(500)
    driver.push([("a", 900, 2)], [900], "right")
    assert made == [(("a", 0, 1), ("a", 900, 2))]
    driver.watermark(1300)
    driver.checkpoint()
    assert driver.store.count_keys() == 0


def test_an_error_in_a_join_says_which_event_it_was(memory):
    def divide(left, right):
        return left[2] // right[2]

    job, left, right = timed_job("left", "right")
    by_first(left).interval_join(by_first(right), 0, 0, (EVENT, EVENT)).map(divide).sink(print)
    driver = Driver(job, memory())
    driver.push([("a", 5, 1)], [5], "left")
    with pytest.raises(UserCodeError) as caught:
        driver.push([("b", 5, 1), ("a", 5, 0)], [5, 5], "right")
    assert (caught.value.operator, caught.value.index) == ("join-1", 1)


# Two keyed streams


class Matched(KeyedCoProcessFunction):
    """Pairs the last number of each stream."""

    def open(self, ctx):
        self.last = ctx.map_state("last", str, int)

    def process1(self, event, ctx):
        self.last["one"] = event[2]
        yield ctx.key, ctx.timestamp, dict(self.last.items())
        ctx.timers.register_event_time_timer(ctx.timestamp + 10)

    def process2(self, event, ctx):
        self.last["two"] = event[2]

    def on_timer(self, timestamp, ctx):
        yield ctx.key, timestamp, dict(self.last.items())


def test_two_streams_share_the_state_of_their_keys(memory):
    job, one, two = timed_job("one", "two")
    made = []
    by_first(one).connect(by_first(two)).process(Matched(), "op").sink(made.append)
    driver = Driver(job, memory())
    driver.push([("a", 5, 1)], [5], "one")
    driver.push([("a", 6, 2), ("b", 6, 3)], [6, 6], "two")
    driver.push([("b", 7, 4)], [7], "one")
    driver.watermark(20, "one")
    driver.watermark(15, "two")
    assert made == [
        ("a", 5, {"one": 1}), ("b", 7, {"two": 3, "one": 4}), ("a", 15, {"one": 1, "two": 2}),
    ]  # fmt: skip
    assert driver["op"].watermark == 15


# Broadcast state


class Limit(msgspec.Struct, frozen=True):
    most: int


class Limited(KeyedBroadcastProcessFunction):
    """Lets events through up to a limit per key, which the broadcast stream sets."""

    def open(self, ctx):
        self.count = ctx.value_state("count", int, default=0)

    def process(self, event, ctx):
        limit = ctx.state.get(ctx.key)
        self.count.update(self.count.value() + 1)
        if limit is None or self.count.value() <= limit.most:
            yield event

    def process_broadcast(self, event, ctx):
        key, most = event
        ctx.state[key] = Limit(most)
        ctx.output("limits", (ctx.timestamp, ctx.current_watermark))


def limited_job(value_type=Limit, function=None):
    job, events, limits = timed_job("events", "limits")
    made, times = [], []
    limited = (
        events.key_by(lambda event: event, str)
        .connect(limits.broadcast("limits", str, value_type))
        .process(function or Limited(), "limited")
    )
    limited.sink(made.append)
    limited.side_output("limits").sink(times.append)
    return job, made, times


@pytest.mark.parametrize("backend", BACKENDS)
def test_broadcast_state_is_there_after_a_restore(places, backend):
    stores = Stores(places)
    open_store = opener(stores, backend)
    job, made, times = limited_job()
    driver = Driver(job, open_store())
    driver.push(["a", "b"], uid="events")
    driver.watermark(3)
    driver.push([("a", 2)], [7], "limits")
    driver.push(["a"], uid="events")
    driver.checkpoint()
    driver.push([("a", 100)], uid="limits")
    driver = Driver(job, open_store("latest"))
    driver.push(["a", "b", "b"], uid="events")
    assert made == ["a", "b", "a", "b", "b"]
    assert times == [(7, 3), (None, 3)]
    stores.close()


def test_broadcast_state_is_the_same_for_any_number_of_workers(memory):
    job, *_ = limited_job()
    driver = Driver(job, memory())
    driver.push([("a", 0)], uid="limits")
    snapshot = driver["limited"].snapshot()
    assert msgspec.json.decode(msgspec.json.encode(snapshot)) == snapshot
    job, made, _ = limited_job()
    driver = Driver(job, memory())
    driver["limited"].restore([snapshot, snapshot])
    driver.push(["a", "b"], uid="events")
    assert made == ["b"]


def test_a_function_may_gain_broadcast_state(memory):
    driver = Driver(limited_job()[0], memory())
    driver["limited"].restore([{"watermark": 5}])
    assert (driver["limited"].watermark, driver["limited"]._state) == (5, {})


def test_keyed_events_can_not_change_broadcast_state(memory):
    class Sneaky(Limited):
        def process(self, event, ctx):
            ctx.state["x"] = Limit(1)

    job, *_ = limited_job(function=Sneaky())
    with pytest.raises(UserCodeError, match="does not support item assignment"):
        Driver(job, memory()).push(["a"], uid="events")


def test_the_type_of_broadcast_state_may_change_as_that_of_any_state(memory):
    class Wider(msgspec.Struct, frozen=True):
        most: int
        least: int = 0

    class Other(msgspec.Struct, frozen=True):
        most: str

    job, *_ = limited_job()
    driver = Driver(job, memory())
    driver.push([("a", 3)], uid="limits")
    snapshot = driver["limited"].snapshot()
    driver = Driver(limited_job(Wider)[0], memory())
    driver["limited"].restore([snapshot])
    assert driver["limited"]._state == {"a": Wider(3)}
    driver = Driver(limited_job(Other)[0], memory())
    with pytest.raises(StateMigrationError, match="state 'limited/limits'"):
        driver["limited"].restore([snapshot])


def test_broadcast_values_of_another_type_end_the_checkpoint(memory):
    class Wrong(Limited):
        def process_broadcast(self, event, ctx):
            ctx.state["x"] = "no limit"

    job, *_ = limited_job(function=Wrong())
    driver = Driver(job, memory())
    driver.push([("a", 3)], uid="limits")
    with pytest.raises(UsageError, match="'limited/limits' can't be encoded"):
        driver.checkpoint()


# Arguments

IN_ORDER = WatermarkStrategy.monotonous(int)


def keyed(job=None, key_type=str, watermarks=IN_ORDER):
    return (job or Job("job")).source(CollectionSource([]), watermarks=watermarks).key_by(key_type, key_type)


def joined(lower=0, upper=0, types=(int, int), **options):
    job = Job("job")
    return keyed(job).interval_join(keyed(job), lower, upper, types, **options)


def other_keys():
    job = Job("job")
    return keyed(job).connect(keyed(job, int))


def untimed():
    job = Job("job")
    return keyed(job).interval_join(keyed(job, watermarks=None), 0, 0, (int, int))


def broadcast_of_another_job():
    return keyed().connect(Job("other").source(CollectionSource([])).broadcast("rules", str, int))


def not_broadcast():
    job = Job("job")
    return keyed(job).connect(job.source(CollectionSource([])))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: joined("1s", "-1s"), "lower bound '1s' is above its upper bound '-1s'"),
        (lambda: joined("now"), "the lower bound: 'now' is no duration"),
        (lambda: joined(upper=True), "the upper bound is True"),
        (lambda: joined(types=int), "types are a pair, of this stream's events and the other's, not <class 'int'>"),
        (lambda: joined(late_output=1), "late_output is the tag of a side output"),
        (lambda: joined().process(Pairs), "a ProcessJoinFunction, not the class Pairs"),
        (lambda: joined().map(3), r"map\(\) takes a function, not int"),
        (untimed, r"interval_join\(\) goes by event time, and these events have none"),
        (other_keys, "one has str, the other int"),
        (not_broadcast, r"connect\(\) takes a stream with keys, made by key_by\(...\), not Stream"),
        (broadcast_of_another_job, r"connect\(\) takes streams of the same job"),
        (lambda: keyed().connect(keyed()), r"connect\(\) takes streams of the same job"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(UsageError, match=message):
        build()
