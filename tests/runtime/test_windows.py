"""Windows against plain Python that looks at all events: out of order, late, merging, over crashes, on every backend."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statestore import IncompatibleStateError, UsageError
from statestore_runtime import (
    CollectionSource,
    Job,
    ProcessWindowFunction,
    Session,
    Sliding,
    Tumbling,
    WatermarkStrategy,
    Window,
    WindowResult,
)
from statestore_runtime.watermarks import MAX_WATERMARK
from tests.conftest import BACKENDS
from tests.runtime.driving import Driver, opener, timed_job
from tests.runtime.stories import END, run, stories
from tests.store.stores import Stores

EXAMPLES = {"memory": 40, "rocksdb": 6, "filesystem": 6, "redis": 6}

on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def examples(backend):
    return settings(
        max_examples=EXAMPLES[backend], deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


@pytest.fixture
def memory(places):
    stores = Stores(places)
    yield opener(stores)
    stores.close()


# What windows there should be


def reference(steps, assign, lateness):
    """Emitted windows of each step, and late events, for windows that `assign` gives the starts and ends of for a time."""
    watermark, held, emitted, late = -1, {}, [], []
    for step in steps:
        now = []
        match step:
            case ("events", _, events):
                for event in events:
                    key, time, _ = event
                    open_windows = [w for w in assign(time) if w[1] - 1 + lateness > watermark]
                    if assign(time) and not open_windows:
                        late.append(event)
                    for window in open_windows:
                        held.setdefault((key, window), []).append(event)
                        if window[1] - 1 <= watermark:
                            now.append((key, *window, tuple(held[key, window])))
            case ("watermark", time):
                now, watermark = over(held, watermark, time), max(watermark, time)
            case (word,) if word == END:
                now, watermark = over(held, watermark, MAX_WATERMARK), MAX_WATERMARK
        emitted.append(sorted(now))
    return emitted, late


def over(held, before, now):
    return [(key, *window, tuple(events)) for (key, window), events in held.items() if before < window[1] - 1 <= now]


def aligned(size, slide, offset):
    def assign(time):
        return [(start, start + size) for start in range(time - size + 1, time + 1) if (start - offset) % slide == 0]

    return assign


def reference_sessions(steps, gap, lateness):
    """The same for sessions: each is kept as the list of its events."""
    watermark, sessions, emitted, late = -1, {key: [] for key in "abc"}, [], []

    def end(session):
        return max(time for _, time, _ in session) + gap

    def start(session):
        return min(time for _, time, _ in session)

    def shown(session):
        return (session[0][0], start(session), end(session), tuple(sorted(session)))

    for step in steps:
        now, before = [], watermark
        match step:
            case ("events", _, events):
                for event in events:
                    key, time, _ = event
                    live = [s for s in sessions[key] if end(s) - 1 + lateness > watermark]
                    touching = [s for s in live if start(s) - gap <= time <= end(s)]
                    if not touching and time + gap - 1 + lateness <= watermark:
                        late.append(event)
                        continue
                    merged = [event, *(one for session in touching for one in session)]
                    sessions[key] = [s for s in live if s not in touching] + [merged]
                    if end(merged) - 1 <= watermark:
                        now.append(shown(merged))
            case ("watermark", time):
                watermark = max(watermark, time)
            case (word,) if word == END:
                watermark = MAX_WATERMARK
        now += [shown(s) for of_key in sessions.values() for s in of_key if before < end(s) - 1 <= watermark]
        emitted.append(sorted(now))
    return emitted, late


# Jobs whose results can be compared with it


class All(ProcessWindowFunction):
    """All there is to know of a window."""

    def process(self, events, ctx):
        assert isinstance(ctx.window, Window)
        yield ctx.key, ctx.window.start, ctx.window.end, tuple(events)


class Join:
    """An aggregation that keeps everything, in a form that is no list of events."""

    def create_accumulator(self):
        return {}

    def add(self, event, accumulator):
        accumulator[str(event[2])] = event
        return accumulator

    def get_result(self, accumulator):
        return tuple(accumulator.values())

    def merge(self, one, other):
        return {**one, **other}


EVENT = tuple[str, int, int]


def window_job(windows, lateness, how):
    """A job that emits what the references do, and the lists its results and late events go to."""
    made, late = [], []
    job, events = timed_job()
    windowed = events.key_by(lambda event: event[0], str).window(
        windows, allowed_lateness=lateness / 1000, late_output="late"
    )
    if how == "process":
        results = windowed.process(All(), EVENT)
        results.sink(made.append)
    else:
        results = windowed.aggregate(Join(), dict[str, EVENT])
        results.map(lambda r: (r.key, r.start, r.end, r.value)).sink(made.append)
    results.side_output("late").sink(late.append)
    return job, (made, late)


def what_is_left(driver):
    """Number of keys with state, and the next timer."""
    driver.checkpoint()
    return driver.store.count_keys(), driver["window-1"].timers._event.next_time()


def milliseconds(number):
    return number / 1000


@on_every_backend
@pytest.mark.parametrize("how", ["aggregate", "process"])
def test_aligned_windows_are_those_of_the_reference(places, backend, how):
    stores = Stores(places)
    open_store = opener(stores, backend)

    @examples(backend)
    @given(stories(), st.integers(1, 20), st.integers(1, 20), st.integers(0, 25), st.sampled_from([0, 0, 3, 30]))
    def check(steps, size, slide, offset, lateness):
        windows = Sliding(milliseconds(size), milliseconds(slide), milliseconds(offset))
        if size == slide:
            windows = Tumbling(milliseconds(size), milliseconds(offset))
        job, taken = window_job(windows, lateness, how)
        results, driver = run(steps, job, taken, open_store)
        expected, late = reference(steps, aligned(size, slide, offset), lateness)
        assert [sorted(made) for made, _ in results] == expected
        assert [event for _, of_step in results for event in of_step] == late
        if steps[-1] == (END,):
            assert what_is_left(driver) == (0, None)

    check()
    stores.close()


@on_every_backend
@pytest.mark.parametrize("how", ["aggregate", "process"])
def test_sessions_are_those_of_the_reference(places, backend, how):
    stores = Stores(places)
    open_store = opener(stores, backend)

    @examples(backend)
    @given(stories(), st.integers(1, 15), st.sampled_from([0, 0, 3, 30]))
    def check(steps, gap, lateness):
        job, taken = window_job(Session(milliseconds(gap)), lateness, how)
        results, driver = run(steps, job, taken, open_store)
        expected, late = reference_sessions(steps, gap, lateness)
        assert [sorted((*r[:3], tuple(sorted(r[3]))) for r in made) for made, _ in results] == expected
        assert [event for _, of_step in results for event in of_step] == late
        if steps[-1] == (END,):
            assert what_is_left(driver) == (0, None)

    check()
    stores.close()


# Stories


def drive(open_store, windows, **options):
    """A driver of a job that counts events in windows, and what it emits, as start, end and count."""
    job, events = timed_job()
    made, late = [], []
    counts = events.key_by(lambda event: event, str).window(windows, **options).count()
    counts.map(lambda r: (r.key, r.start, r.end, r.value)).sink(made.append)
    counts.side_output("late").sink(late.append)
    return Driver(job, open_store()), made, late


def test_a_window_is_over_with_its_last_millisecond(memory):
    driver, made, _ = drive(memory, Tumbling("1s"))
    driver.push(["a", "a", "b", "a"], [0, 999, 500, 1000])
    driver.watermark(998)
    assert made == []
    driver.watermark(999)
    assert sorted(made) == [("a", 0, 1000, 2), ("b", 0, 1000, 1)]
    driver.end()
    assert made[2:] == [("a", 1000, 2000, 1)]


def test_results_have_the_last_millisecond_of_their_window_as_time(memory):
    job, events = timed_job()
    made = []
    keyed = events.key_by(lambda event: event, str)
    keyed.window(Tumbling("1s")).count().key_by(lambda r: r.key, str).window(Tumbling("3s")).sum(
        lambda r: r.value, int
    ).sink(made.append)
    driver = Driver(job, memory())
    driver.push(["a", "a", "a"], [0, 2000, 3000])
    driver.watermark(2999)
    assert made == [WindowResult("a", 0, 3000, 2)], "the inner windows come before the watermark that ends them"


def test_a_late_event_changes_the_result_as_long_as_that_is_allowed(memory):
    driver, made, late = drive(memory, Tumbling("1s"), allowed_lateness="2s", late_output="late")
    driver.push(["a"], [10])
    driver.watermark(999)
    driver.push(["a"], [20])
    driver.watermark(2998)
    driver.push(["a", "b"], [30, 40])
    assert made == [("a", 0, 1000, 1), ("a", 0, 1000, 2), ("a", 0, 1000, 3), ("b", 0, 1000, 1)]
    driver.watermark(2999)
    assert what_is_left(driver) == (0, None), "forgotten, though no other window of the keys has ended"
    driver.push(["a"], [50])
    assert (len(made), late) == (4, ["a"])


def test_late_events_without_a_side_output_are_counted(memory):
    driver, made, late = drive(memory, Session("1s"))
    driver.watermark(5000)
    driver.push(["a", "b", "a"], [0, 4000, 4002])
    driver.end()
    assert (made, late) == ([("a", 4002, 5002, 1)], [])
    assert driver["window-1"].late_dropped == 2


def test_sessions_merge_over_what_lay_between_them(memory):
    driver, made, _ = drive(memory, Session("10s"))
    driver.push(["a", "a", "b"], [0, 15_000, 16_000])
    driver.push(["a"], [8000])
    driver.end()
    assert sorted(made) == [("a", 0, 25_000, 3), ("b", 16_000, 26_000, 1)]


def test_a_long_session_moves_no_timer(memory):
    driver, made, _ = drive(memory, Session("1s"))
    timers = driver["window-1"].timers
    registered = []
    driver["window-1"]._set_timer = lambda time: (registered.append(time), timers.register_event_time_timer(time))
    for time in range(0, 100_000, 500):
        driver.push(["a"], [time])
    driver.watermark(50_000)
    assert registered == [999, 100_499]
    driver.end()
    assert made == [("a", 0, 100_500, 200)]


def test_a_window_of_more_events_than_a_chunk(memory):
    job, events = timed_job()
    made = []
    keyed = events.key_by(lambda event: event[0], str)
    keyed.window(Sliding(0.2, 0.1)).process(All(), EVENT).sink(made.append)
    driver = Driver(job, memory())
    all_events = [("a", time, time) for time in range(300)]
    driver.push(all_events, range(300))
    driver.checkpoint()
    driver = Driver(job, memory("latest"))
    driver.end()
    assert [(start, len(events)) for _, start, _, events in made] == [(-100, 100), (0, 200), (100, 200), (200, 100)]
    assert made[1][3] == tuple(all_events[:200])


def test_gaps_between_windows_hold_nothing(memory):
    driver, made, late = drive(memory, Sliding("1s", "3s"), late_output="late")
    driver.push(["a"] * 4, [0, 999, 1000, 2999])
    driver.end()
    assert (made, late) == ([("a", 0, 1000, 2)], [])


def test_days_of_a_place(memory):
    driver, made, _ = drive(memory, Tumbling("1d", offset="22h"))
    driver.push(["a", "a"], [22 * 3_600_000 - 1, 22 * 3_600_000])
    driver.end()
    assert [(start // 3_600_000, count) for _, start, _, count in made] == [(-2, 1), (22, 1)]


def test_windows_that_lie_differently_after_a_restore(memory):
    driver, *_ = drive(memory, Tumbling("1s"))
    driver.push(["a"], [0])
    driver.checkpoint()
    with pytest.raises(
        IncompatibleStateError, match="'window-1' had windows of 1000 ms every 1000 ms from 0 ms on, and has"
    ):
        drive(lambda: memory("latest"), Tumbling("2s"))


@pytest.mark.parametrize(("before", "after"), [("0s", "5s"), ("5s", "0s"), ("1s", "5s"), ("5s", "1s")])
@pytest.mark.parametrize("windows", [Tumbling("1s"), Session("1s")])
def test_another_lateness_after_a_restore(memory, windows, before, after):
    driver, *_ = drive(memory, windows, allowed_lateness=before)
    driver.push(["a", "a"], [0, 5000])
    driver.watermark(999)
    driver.checkpoint()
    driver, made, _ = drive(lambda: memory("latest"), windows, allowed_lateness=after)
    driver.watermark(20_000)
    assert made == [("a", 5000, 6000, 1)]
    assert what_is_left(driver) == (0, None)


def test_a_windows_type_may_change(memory):
    def job_of(type, upcast=None):
        job, events = timed_job()
        made = []
        for windows in (Tumbling("1s"), Session("1s")):
            keyed = events.key_by(lambda event: "a", str)
            keyed.window(windows).reduce(lambda a, b: a + b, type, upcast=upcast).map(lambda r: r.value).sink(
                made.append
            )
        keyed.window(windows).process(Numbers(), type, upcast=upcast).sink(made.append)
        return job, made

    class Numbers(ProcessWindowFunction):
        def process(self, events, ctx):
            return [list(events)]

    driver = Driver(job_of(int)[0], memory())
    driver.push([1, 2], [0, 1])
    driver.checkpoint()
    job, made = job_of(str, upcast=str)
    driver = Driver(job, memory("latest"))
    driver.push(["+"], [2])
    driver.end()
    assert made == ["3+", "3+", ["1", "2", "+"]]


def test_event_time_goes_on_after_a_restore(memory):
    driver, *_ = drive(memory, Tumbling("1s"))
    driver.watermark(5000)
    driver.end()
    driver.checkpoint()
    driver, made, late = drive(lambda: memory("latest"), Tumbling("1s"), late_output="late")
    driver.push(["a", "b"], [3000, 6000])
    assert late == ["a"], "the end of the input before is not the end of time, but what was late still is"
    driver.watermark(5999)
    driver.watermark(6999)
    assert made == [("b", 6000, 7000, 1)]


def test_a_function_of_windows_has_state_and_side_outputs_and_is_told(memory):
    told = []

    class Numbered(ProcessWindowFunction):
        def open(self, ctx):
            self.count = ctx.value_state("count", int, default=0)
            told.append(("open", ctx.operator, ctx.subtask, ctx.parallelism))

        def process(self, events, ctx):
            self.count.update(self.count.value() + 1)
            ctx.output("notes", f"{ctx.key} at {ctx.current_watermark}")
            return [(ctx.key, self.count.value(), len(events))]

        def on_restore(self, checkpoint_id):
            told.append(("restored", checkpoint_id))

        def on_checkpoint_complete(self, checkpoint_id):
            told.append(("complete", checkpoint_id))

        def close(self):
            told.append("close")

    job, events = timed_job()
    made, notes = [], []
    numbered = events.key_by(lambda event: event, str).window(Tumbling("1s")).process(Numbered(), str)
    numbered.sink(made.append)
    numbered.side_output("notes").sink(notes.append)
    driver = Driver(job, memory())
    driver.push(["a", "a"], [0, 1500])
    driver.watermark(1000)
    driver.checkpoint()
    driver.close()
    driver = Driver(job, memory("latest"))
    driver.end()
    assert made == [("a", 1, 1), ("a", 2, 1)]
    assert notes == ["a at 1000", f"a at {MAX_WATERMARK}"]
    opened = ("open", "window-1", 0, 1)
    assert told == [opened, ("complete", 1), "close", opened, ("restored", 1)]


# Arguments

IN_ORDER = WatermarkStrategy.monotonous(int)


def keyed(watermarks=IN_ORDER):
    return Job("job").source(CollectionSource([]), watermarks=watermarks).key_by(str, str)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Tumbling(0), "the size of a window is 0: it must be a millisecond at least"),
        (lambda: Tumbling("1 fortnight"), "the size of a window: '1 fortnight' has the unknown unit 'fortnight'"),
        (lambda: Tumbling(-1), "the size of a window is -1: it can't be negative"),
        (lambda: Tumbling([1]), r"the size of a window is \[1\]: write it like '500ms'"),
        (lambda: Sliding("1s", 0), "the slide of windows is 0"),
        (lambda: Session("0"), "the gap of sessions is '0'"),
        (lambda: keyed().window("1s"), r"window\(\) takes Tumbling\(...\), Sliding\(...\) or Session\(...\), not str"),
        (lambda: keyed().window(Tumbling), "not the class Tumbling: make an object of it"),
        (lambda: keyed().window(Tumbling(1), late_output=3), "late_output is the tag of a side output, a text, not 3"),
        (lambda: keyed().window(Tumbling(1), allowed_lateness="x"), "allowed_lateness: 'x' is no duration"),
        (lambda: keyed(None).window(Tumbling(1)), r"window\(\) goes by event time, and these events have none"),
        (lambda: keyed().window(Tumbling(1)).reduce(3, int), r"reduce\(\) takes a function, not int"),
        (lambda: keyed().window(Tumbling(1)).process(All, int), "a ProcessWindowFunction, not the class All"),
        (lambda: keyed().window(Tumbling(1)).aggregate(Join, int), "not the class Join"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(UsageError, match=message):
        build()


def test_events_without_times_are_refused(memory):
    driver, *_ = drive(memory, Tumbling("1s"))
    with pytest.raises(UsageError, match="'window-1' goes by event time, and an event has none") as caught:
        driver.push(["a"])
    assert caught.value.__notes__ == ["in operator 'window-1'"]
