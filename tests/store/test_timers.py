"""Timers: each comes once, in order, and neither a crash nor a restore loses or repeats one."""

from __future__ import annotations

import random

import pytest

from statestore import IncompatibleStateError, UsageError
from statestore.testing.clock import FakeClock
from statestore.timers import BUFFER_TIMERS
from tests.conftest import BACKENDS, seeds
from tests.store.stores import Stores

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
GROUPS = "state.max-parallelism=4"


@pytest.fixture
def clock():
    return FakeClock(1000.0)


@pytest.fixture
def embedded(places, clock):
    stores = Stores(places, GROUPS, auto_complete=True, clock=clock)
    yield stores
    stores.close()


def register(store, timers, *timers_of_keys):
    for key, *times in timers_of_keys:
        store.set_current_key(key)
        for time in times:
            timers.register(time)


def test_timers_come_in_order_and_once(embedded, clock, backend):
    store = embedded.open(backend, "none")
    timers = store.timers("timers")
    assert timers.next_time() is None
    assert list(timers.due()) == []
    register(store, timers, ("a", 1005.0, 1001.5, 1001.5), ("b", 1003.0, 900.0), ("", 1003.0))
    assert timers.next_time() == 900.0
    assert list(timers.due()) == [(900.0, "b")]
    clock.advance(3)
    assert sorted(timers.due()) == [(1001.5, "a"), (1003.0, ""), (1003.0, "b")]
    assert list(timers.due()) == []
    clock.advance(3600)
    assert list(timers.due()) == [(1005.0, "a")]
    assert timers.next_time() is None


def test_timers_of_one_time_are_taken_together(embedded, clock, backend):
    """More than are kept in memory of a key group, some committed, some set anew, some deleted; and none comes twice."""
    store = embedded.open(backend, "none")
    timers = store.timers("timers")
    many = [f"key-{n:05}" for n in range(4 * 3 * BUFFER_TIMERS)]
    timers.register_many(2000, many[::2])
    timers.register_many(1000, ["early"])
    store.commit()
    timers.register_many(2000, many[1::2])
    timers.register_many(3000, ["late"])
    store.set_current_key(many[7])
    timers.delete(2.0)
    assert timers.take_together(999, 100) is None
    assert timers.take_together(2000, 100) == (1000, ["early"])
    taken, times = [], set()
    while (together := timers.take_together(2999, 100)) is not None:
        times.add(together[0])
        assert 0 < len(together[1]) < 100 + 2 * BUFFER_TIMERS
        taken += together[1]
    assert (times, sorted(taken)) == ({2000}, [key for key in many if key != many[7]])
    assert timers.next_time() == 3.0
    store.commit()
    store.close()
    assert embedded.open(backend, "latest").timers("timers").next_time() == 3.0


@pytest.mark.parametrize("time_ms", [-(1 << 63), -1, 0, (1 << 63) - 1])
def test_the_first_and_the_last_moment(embedded, clock, backend, time_ms):
    timers = embedded.open(backend, "none").timers("timers")
    timers.register_many(time_ms, ["a", "\U0010ffff"])
    assert timers.take_together(time_ms, 10) in [(time_ms, ["a", "\U0010ffff"]), (time_ms, ["\U0010ffff", "a"])]
    assert timers.take_together((1 << 63) - 1, 10) is None


def test_the_key_of_a_timer_becomes_the_current_one(embedded, clock, backend):
    store = embedded.open(backend, "none")
    timers, value = store.timers("timers"), store.value_state("value", int, default=0)
    register(store, timers, ("a", 1.0), ("b", 2.0))
    for time, _ in timers.due():
        value.update(int(time))
        if time < 10:
            timers.register(time + 10)  # due already: it comes in the same round
    assert value.get_many(["a", "b"]) == [11, 12]


def test_a_deleted_timer_does_not_come(embedded, clock, backend):
    store = embedded.open(backend, "none")
    timers = store.timers("timers")
    register(store, timers, ("a", 1.0, 2.0, 3.0), ("b", 2.0))
    store.commit()
    store.set_current_key("a")
    timers.delete(2.0)
    timers.delete(77.0)
    store.commit()
    assert list(timers.due()) == [(1.0, "a"), (2.0, "b"), (3.0, "a")]


def test_event_time_timers_wait_for_event_time(embedded, clock, backend):
    store = embedded.open(backend, "none")
    timers = store.timers("timers", time="event-time")
    register(store, timers, ("a", -5.0, 10.0), ("b", 20.0))
    assert list(timers.due()) == []
    store.advance_event_time(10.0)
    assert list(timers.due()) == [(-5.0, "a"), (10.0, "a")]
    assert list(timers.due(until=30.0)) == [(20.0, "b")]


def test_what_was_not_committed_comes_again(embedded, clock, backend):
    store = embedded.open(backend, "none")
    timers = store.timers("timers")
    register(store, timers, ("a", 1.0), ("b", 2.0))
    store.checkpoint()
    assert next(iter(timers.due())) == (1.0, "a")
    store.commit()
    store.checkpoint()
    register(store, timers, ("c", 3.0))
    assert list(timers.due()) == [(2.0, "b"), (3.0, "c")]
    embedded.crash(store)
    store = embedded.open(backend, "latest")
    assert list(store.timers("timers").due()) == [(2.0, "b")]


def test_many_more_timers_than_are_kept_in_memory(embedded, clock, backend):
    store = embedded.open(backend, "none", "state.pending-size=20kb")
    timers, rng = store.timers("timers"), random.Random(1)
    times = [round(rng.uniform(0, 900), 3) for _ in range(20 * BUFFER_TIMERS)]
    for n, time in enumerate(times):
        register(store, timers, (f"key-{n}", time))
        if n % 1000 == 0:
            store.commit()
    store.checkpoint()
    store.close()
    store = embedded.open(backend, None, "state.pending-size=20kb")
    timers = store.timers("timers")
    found = []
    for n, (time, key) in enumerate(timers.due()):
        found.append((time, key))
        if n % 700 == 0:
            store.commit()
        assert sum(len(group.buffer) for group in timers._groups.values()) <= 4 * 2 * BUFFER_TIMERS
    assert [time for time, _ in found] == sorted(times)
    assert {key for _, key in found} == {f"key-{n}" for n in range(len(times))}
    store.commit()
    assert store.count_keys() == 0


@pytest.mark.parametrize("seed", seeds(2))
def test_any_history(embedded, clock, backend, seed, monkeypatch):
    monkeypatch.setattr("statestore.timers.BUFFER_TIMERS", 3)
    rng = random.Random(seed)
    store = embedded.open(backend, "none", "state.pending-size=500b")
    timers, model = store.timers("timers"), set()
    saved = set()
    for _ in range(400):
        key, time = rng.choice("abcdefgh"), float(rng.randrange(1000, 1200))
        store.set_current_key(key)
        match rng.choice(["register"] * 5 + ["delete", "delete", "fire", "wait", "commit", "checkpoint", "reopen"]):
            case "register":
                timers.register(time)
                model.add((time, key))
            case "delete":
                chosen = rng.choice(sorted(model)) if model else (time, key)
                store.set_current_key(chosen[1])
                timers.delete(chosen[0])
                model.discard(chosen)
            case "wait":
                clock.advance(rng.randrange(20))
            case "fire":
                limit = rng.randrange(5)
                fired = []
                for _, timer in zip(range(limit), timers.due(), strict=False):
                    fired.append(timer)
                due = sorted(timer for timer in model if timer[0] <= clock.time())
                assert [time for time, _ in fired] == [time for time, _ in due[: len(fired)]]
                assert len(fired) == min(limit, len(due))
                assert set(fired) <= model
                model -= set(fired)
            case "commit":
                store.commit()
                saved = set(model)
            case "checkpoint":
                store.checkpoint()
                saved = set(model)
            case "reopen":
                store.checkpoint()
                saved = set(model)
                timers.register(5.0)
                embedded.crash(store)
                if rng.random() < 0.5:
                    embedded.forget_local()
                store = embedded.open(backend, "latest", "state.pending-size=500b")
                timers, model = store.timers("timers"), set(saved)
        times = sorted(time for time, _ in model)
        assert timers.next_time() == (times[0] if times else None)
    clock.advance(1000)
    assert sorted(timers.due()) == sorted(model)


def test_mistakes(embedded, clock, backend):
    store = embedded.open(backend, "none")
    timers = store.timers("timers")
    with pytest.raises(UsageError, match="current key"):
        timers.register(1.0)
    store.set_current_key("a")
    with pytest.raises(UsageError, match="64 bits"):
        timers.register(1e300)
    with pytest.raises(UsageError, match="registered already"):
        store.value_state("timers", int)
    timers.register(1.0)
    store.checkpoint()
    store.close()
    store = embedded.open(backend)
    with pytest.raises(IncompatibleStateError, match="event-time"):
        store.timers("timers", time="event-time")


def test_those_set_together_are_exact_to_the_millisecond(embedded, backend):
    """Also where seconds as a float are not."""
    store = embedded.open(backend, "none")
    timers, time_ms = store.timers("timers"), (1 << 60) + 1
    timers.register_many(time_ms, ["a", "b", "a"])
    assert timers.next_time_ms() == time_ms
    assert list(timers.take(time_ms - 1)) == []
    assert sorted(timers.take(time_ms)) == [(time_ms, "a"), (time_ms, "b")]
    assert timers.next_time_ms() is None
