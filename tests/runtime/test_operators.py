"""Operators by themselves: which event an error comes of, what happens to event times, watermarks of several inputs."""

from __future__ import annotations

import threading

import pytest

import statestore
from statestore import UsageError
from statestore.testing.clock import FakeClock
from statestore_runtime import CollectSink, KeyedProcessFunction, UserCodeError
from statestore_runtime.operators import Operator
from statestore_runtime.watermarks import MAX_WATERMARK, MIN_WATERMARK
from tests.runtime.driving import Driver, opener, timed_job
from tests.store.stores import Stores


@pytest.fixture
def store():
    with statestore.open("memory://") as store:
        yield store


class Seen(Operator):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__("seen")
        self.told = []

    def push(self, batch, times=None, port=0):
        self.told.append((port, batch, times))

    def on_watermark(self, watermark, port=0):
        self.told.append((port, watermark))

    def on_idle(self, port=0):
        self.told.append((port, "idle"))


def consumer_of(operator):
    seen = Seen()
    operator.connect(seen)
    return seen


# Watermarks


def joined(count):
    operator = Operator("union")
    for _ in range(count):
        operator.add_input()
    return operator, consumer_of(operator)


def test_the_watermark_is_the_least_of_all_inputs():
    operator, seen = joined(2)
    operator.on_watermark(10, 0)
    assert (seen.told, operator.watermark) == ([], None)
    operator.on_watermark(5, 1)
    operator.on_watermark(7, 1)
    operator.on_watermark(6, 1)
    operator.on_watermark(20, 1)
    assert seen.told == [(0, 5), (0, 7), (0, 10)]


def test_an_idle_input_is_left_out_until_its_next_watermark():
    operator, seen = joined(2)
    operator.on_watermark(10, 0)
    operator.on_idle(1)
    operator.on_watermark(20, 0)
    operator.on_watermark(15, 1)
    operator.on_watermark(30, 0)
    operator.on_watermark(MIN_WATERMARK, 1)
    operator.on_watermark(25, 1)
    assert seen.told == [(0, 10), (0, 20), (0, 25)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_when_all_are_idle_event_time_is_where_the_furthest_has_come(order):
    operator, seen = joined(2)
    operator.on_watermark(5, 0)
    operator.on_watermark(10, 1)
    for port in order:
        operator.on_idle(port)
    assert [told for told in seen.told if told != (0, 5)] == [(0, 10), (0, "idle")]
    operator.on_watermark(8, 0)
    assert seen.told[-1] == (0, 10), "not idle any more"
    operator.on_watermark(12, 0)
    assert seen.told[-1] == (0, 12)


def test_idle_from_the_beginning_and_then_not_any_more():
    operator, seen = joined(1)
    operator.on_idle()
    operator.on_watermark(MIN_WATERMARK)
    operator.on_watermark(3)
    assert seen.told == [(0, "idle"), (0, MIN_WATERMARK), (0, 3)]


def test_inputs_that_have_ended_hold_nobody_up_and_the_last_one_ends_all():
    operator, seen = joined(3)
    operator.on_watermark(5, 0)
    operator.on_watermark(MAX_WATERMARK, 0)
    operator.on_watermark(7, 1)
    operator.on_watermark(9, 2)
    operator.on_watermark(MAX_WATERMARK, 1)
    operator.on_idle(2)
    assert seen.told == [(0, 7), (0, 9), (0, "idle")], "an idle input may still go on"
    operator.on_watermark(MAX_WATERMARK, 2)
    assert seen.told[-1] == (0, MAX_WATERMARK)
    assert seen.told.count((0, MAX_WATERMARK)) == 1


def test_a_stream_that_is_united_with_itself_comes_by_two_ports(store):
    job, numbers = timed_job()
    numbers.union(numbers).sink(print, uid="out")
    driver = Driver(job, store)
    seen = consumer_of(driver["union-1"])
    driver.watermark(3)
    driver.end()
    assert seen.told == [(0, 3), (0, MAX_WATERMARK)]


# Event times


@pytest.mark.parametrize(
    ("build", "batch", "times"),
    [
        (lambda s: s.map(lambda n: -n, "op"), [-1, -2, -3, -4], [10, 20, 30, 40]),
        (lambda s: s.filter(lambda n: n % 2, "op"), [1, 3], [10, 30]),
        (lambda s: s.flat_map(lambda n: [n] * (n - 1), "op"), [2, 3, 3, 4, 4, 4], [20, 30, 30, 40, 40, 40]),
        (lambda s: s.key_by(str, str).reduce(max, int, "op"), [1, 2, 3, 4], [10, 20, 30, 40]),
    ],
)
def test_results_have_the_times_of_their_events(store, build, batch, times):
    job, numbers = timed_job()
    build(numbers).sink(lambda event: None)
    driver = Driver(job, store)
    seen = consumer_of(driver["op"])
    driver.push([1, 2, 3, 4], [10, 20, 30, 40])
    driver.push([1, 2, 3, 4])
    assert seen.told == [(0, batch, times), (0, batch, None)]


def test_what_a_function_returns_has_the_time_of_its_event(store):
    class Repeat(KeyedProcessFunction):
        def process(self, event, ctx):
            ctx.output("times", ctx.timestamp)
            return [event] * event if event != 1 else None

    job, numbers = timed_job()
    numbers.key_by(str, str).process(Repeat(), "op").side_output("times").sink(lambda event: None)
    driver = Driver(job, store)
    seen, aside = consumer_of(driver["op"]), Seen()
    driver["op"].connect(aside, "times")
    driver.push([2, 1, 3], [20, 10, 30])
    driver.push([2, 1])
    assert seen.told == [(0, [2, 2, 3, 3, 3], [20, 20, 30, 30, 30]), (0, [2, 2], None)]
    assert aside.told == [(0, [20, 10, 30], [20, 10, 30]), (0, [None, None], None)]
    driver.watermark(5)
    assert (seen.told[-1], aside.told[-1]) == ((0, 5), (0, 5))


# Which event it was


class Bad(Exception):
    pass


def no_seven(number):
    if number == 7:
        raise Bad
    return number


class NoSeven(KeyedProcessFunction):
    def process(self, event, ctx):
        yield no_seven(event)


def summed(one, two):
    return no_seven(two)


DIRECT = {
    "map": lambda s: s.map(no_seven),
    "filter": lambda s: s.filter(no_seven),
    "flat_map": lambda s: s.flat_map(lambda n: [no_seven(n)]),
    "key_by": lambda s: s.key_by(no_seven, int).process(NoSeven()),
    "process": lambda s: s.key_by(lambda n: n, int).process(NoSeven()),
    "reduce": lambda s: s.key_by(lambda n: 0, int).reduce(summed, int),
}


@pytest.mark.parametrize("with_times", [False, True])
@pytest.mark.parametrize("name", DIRECT)
def test_an_error_says_which_event_of_the_batch_it_was(store, name, with_times):
    job, numbers = timed_job()
    DIRECT[name](numbers).sink(lambda event: None)
    batch = [5, 8, 6, 7, 9]
    with pytest.raises(UserCodeError) as caught:
        Driver(job, store).push(batch, batch if with_times else None)
    assert (caught.value.index, caught.value.event) == (3, 7)
    assert isinstance(caught.value.__cause__, Bad)


BEHIND = {
    "map": (lambda s: s.map(lambda n: n + 1), 6, True),
    "filter": (lambda s: s.filter(lambda n: n > 5), 7, True),
    "flat_map": (lambda s: s.flat_map(lambda n: [0] * (n % 3) + [n]), 7, True),
    "key_by": (lambda s: s.key_by(str, str).reduce(lambda a, b: b, int), 7, True),
    "process": (lambda s: s.key_by(str, str).process(NoSeven()).map(lambda n: n + 2), 5, False),
}


@pytest.mark.parametrize("with_times", [False, True])
@pytest.mark.parametrize("name", BEHIND)
def test_an_error_further_on_is_said_to_come_of_the_event_that_led_to_it(store, name, with_times):
    build, bad, is_known_without_times = BEHIND[name]
    job, numbers = timed_job()
    build(numbers).map(no_seven).sink(lambda event: None)
    batch = [8, 3, 3, 8, 1, bad, 8]
    with pytest.raises(UserCodeError) as caught:
        Driver(job, store).push(batch, batch if with_times else None)
    assert caught.value.index == (5 if with_times or is_known_without_times else None)
    assert caught.value.event == 7


def test_equal_events_that_a_filter_lets_through_are_told_apart(store):
    job, numbers = timed_job()
    calls = []

    def third_seven(number):
        calls.append(number)
        if len(calls) == 3:
            raise Bad

    numbers.filter(lambda n: n == 7).map(third_seven).sink(print)
    with pytest.raises(UserCodeError) as caught:
        Driver(job, store).push([7, 1, 7, 2, 7, 7])
    assert caught.value.index == 4


def test_no_event_is_to_blame_for_a_timer_or_what_it_leads_to(store):
    class Timer(KeyedProcessFunction):
        def process(self, event, ctx):
            ctx.timers.register_event_time_timer(event)

        def on_timer(self, timestamp, ctx):
            return [7]

    job, numbers = timed_job()
    numbers.key_by(str, str).process(Timer()).map(no_seven).sink(print)
    driver = Driver(job, store)
    driver.push([1, 2], [1, 2])
    with pytest.raises(UserCodeError) as caught:
        driver.watermark(5)
    assert (caught.value.operator, caught.value.index) == ("map-1", None)


# A worker's own


class Remembering(KeyedProcessFunction):
    """Keeps what it was given outside of the state."""

    def __init__(self, **attributes):
        self.seen = []
        vars(self).update(attributes)

    def process(self, event, ctx):
        self.seen.append(event)
        return [list(self.seen)]


def test_each_worker_has_its_own_copy_of_a_function(store):
    job, numbers = timed_job()
    made, function = [], Remembering()
    numbers.key_by(str, str).process(function).sink(made.append)
    Driver(job, store).push([1])
    Driver(job, statestore.open("memory://")).push([2])
    assert (made, function.seen) == ([[1], [2]], [])


def test_a_function_that_can_not_be_copied_says_where_to_make_what_it_needs():
    job, numbers = timed_job()
    numbers.key_by(str, str).process(Remembering(lock=threading.Lock()), "mine").print()
    with pytest.raises(
        UsageError, match=r"Remembering of operator 'mine' can't be copied for a worker .*in its open\(\)"
    ):
        job.build()


def test_each_worker_has_its_own_sink_and_the_same_source():
    job, numbers = timed_job()
    sink = CollectSink()
    numbers.sink(sink)
    (source, one), (same_source, other) = job.build(), job.build()
    assert len({id(sink), id(one.sink), id(other.sink)}) == 3
    assert one.sink.results is sink.results, "what the caller looks at"
    assert source.source is same_source.source


def test_a_function_knows_which_worker_it_is_in(store):
    class Where(KeyedProcessFunction):
        def open(self, ctx):
            self.place = (ctx.job, ctx.operator, ctx.subtask, ctx.parallelism)

        def process(self, event, ctx):
            yield self.place

    job, numbers = timed_job()
    made = []
    numbers.key_by(str, str).process(Where(), "op").sink(made.append)
    Driver(job, store, subtask=2, parallelism=3).push([1])
    assert made == [("job", "op", 2, 3)]


# Edges between workers


def test_an_exchange_sends_through_what_it_is_given_and_delivers_what_arrives(store):
    job, numbers = timed_job()
    made = []
    numbers.key_by(lambda n: n % 2, int).reduce(lambda a, b: a + b, int, "sum").sink(made.append)
    driver = Driver(job, store)
    exchange, sent = driver["key-by-1"], []
    exchange.send = lambda *arguments: sent.append(arguments)
    exchange.send_watermark = lambda watermark: sent.append(watermark)
    exchange.send_idle = lambda: sent.append("idle")
    driver.push([1, 2, 3], [10, 20, 30])
    driver.watermark(5)
    driver.sources[0].on_idle()
    driver.watermark(7)
    assert sent == [([1, 0, 1], [1, 2, 3], [10, 20, 30]), 5, "idle", 7]
    assert made == []
    exchange.deliver([1, 1], [1, 3], [10, 30])
    exchange.deliver_watermark(6)
    exchange.deliver_idle()
    exchange.deliver([], [], [])
    assert (made, driver["sum"].watermark, driver["sum"].snapshot()) == ([1, 4], 6, {"watermark": 6})
    assert exchange.key_codec.encode(1) == b"\1"


# The state of reduce and aggregate


class Largest:
    def __init__(self, zero):
        self.zero = zero

    def create_accumulator(self):
        return self.zero

    def add(self, event, accumulator):
        return max(event, accumulator)

    def get_result(self, accumulator):
        return accumulator

    def merge(self, one, other):
        return max(one, other)


@pytest.mark.parametrize("how", ["reduce", "aggregate"])
def test_the_state_of_an_aggregation_takes_the_options_of_a_state(places, how):
    def job_of(type, **options):
        job, numbers = timed_job()
        made = []
        keyed = numbers.key_by(lambda n: "k", str)
        if how == "reduce":
            keyed.reduce(max, type, "new" if options else "old", **options).sink(made.append)
        else:
            uid = "new" if options else "old"
            keyed.aggregate(Largest(type()), type, uid, **options).map(lambda pair: pair[1]).sink(made.append)
        return job, made

    clock = FakeClock(1000.0)
    stores = Stores(places, clock=clock)
    open_store = opener(stores)
    driver = Driver(job_of(int)[0], open_store(), clock)
    driver.push([3, 5])
    driver.checkpoint()
    name = "old/value" if how == "reduce" else "old/accumulator"
    job, made = job_of(str, upcast=str, renamed_from=name, ttl="1min")
    driver = Driver(job, open_store("latest"), clock)
    driver.push(["4"])
    clock.advance(61)
    driver.push(["1"])
    assert made == ["5", "1"]
    stores.close()
