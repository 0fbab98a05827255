"""Time-outs: what has expired is never seen again, and leaves."""

from __future__ import annotations

import random

import pytest

from statestore import TimeToLive, UsageError
from statestore.keyed import KeyedState
from statestore.stamp import is_stamp
from statestore.testing.clock import FakeClock
from tests.conftest import BACKENDS, seeds
from tests.store.stores import Stores

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
HOUR = 3600.0


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def embedded(places, clock):
    stores = Stores(places, "state.max-parallelism=4", auto_complete=True, clock=clock)
    yield stores
    stores.close()


def states(scope: KeyedState, ttl):
    return {
        "value": scope.value_state("value", int, ttl=ttl),
        "list": scope.list_state("list", int, ttl=ttl),
        "map": scope.map_state("map", str, int, ttl=ttl),
        "sum": scope.reducing_state("sum", int, lambda a, b: a + b, ttl=ttl),
    }


def fill(store, handles, key, number=1):
    store.set_current_key(key)
    handles["value"].update(number)
    handles["list"].add(number)
    handles["map"]["x"] = number
    handles["sum"].add(number)


def seen(store, handles, key):
    store.set_current_key(key)
    assert handles["map"].get("x") == dict(handles["map"].items()).get("x")
    assert handles["map"].contains("x") == ("x" in handles["map"])
    assert len(handles["list"]) == len(handles["list"].get())
    return [handles["value"].value(), handles["list"].get(), dict(handles["map"].items()), handles["sum"].get()]


FULL, EMPTY = [1, [1], {"x": 1}, 1], [None, [], {}, None]


def settle(store):
    """Commit and let the background work end, until nothing is left to sweep."""
    for _ in range(40):
        store.commit()
        store._applier.settle()
        store._clock.advance(11)


def stored(store):
    store._applier.finish()
    return [key for key, _ in store._backend.scan(b"", None) if not is_stamp(key)]


@pytest.mark.parametrize("life", ["in the cache", "committed", "reopened", "restored"])
def test_values_of_every_kind_expire(embedded, clock, backend, life):
    store = embedded.open(backend, "none")
    handles = states(store, "1h")
    fill(store, handles, "a")
    if life != "in the cache":
        store.commit()
    if life == "restored":
        store.checkpoint()
        store.close()
        embedded.forget_local()
    if life in ("reopened", "restored"):
        if life == "reopened":
            store.checkpoint()  # the memory backend goes on from there
        store.close()
        store = embedded.open(backend)
        handles = states(store, "1h")
    clock.advance(HOUR - 1)
    assert seen(store, handles, "a") == FULL
    clock.advance(1)
    assert seen(store, handles, "a") == EMPTY
    fill(store, handles, "a")
    assert seen(store, handles, "a") == FULL


def test_writing_keeps_alive_and_reading_does_not(embedded, clock, backend):
    store = embedded.open(backend, "none")
    handles = states(store, "1h")
    fill(store, handles, "a")
    fill(store, handles, "b")
    for _ in range(3):
        clock.advance(HOUR / 2)
        store.set_current_key("a")
        handles["value"].update(1)
        seen(store, handles, "b")
        store.commit()
    assert seen(store, handles, "a")[0] == 1
    assert seen(store, handles, "b") == EMPTY


def test_reading_keeps_alive_if_asked_to(embedded, clock, backend):
    store = embedded.open(backend, "none")
    handles = states(store, TimeToLive("1h", update="on-read-and-write"))
    fill(store, handles, "a")
    fill(store, handles, "b")
    store.commit()
    for _ in range(3):
        clock.advance(HOUR / 2)
        assert seen(store, handles, "a") == FULL
        assert handles["value"].get_many(["a"]) == [1]
        store.commit()
        store.close()
        store = embedded.open(backend, None)
        handles = states(store, TimeToLive("1h", update="on-read-and-write"))
    assert seen(store, handles, "b") == EMPTY


def test_event_time_is_what_the_program_tells(embedded, clock, backend):
    ttl = TimeToLive("1h", time="event-time")
    store = embedded.open(backend, "none")
    handles = states(store, ttl)
    fill(store, handles, "early")  # when no event time is known: it counts from the first one on
    clock.advance(100 * HOUR)
    store.commit()
    store.advance_event_time(0.0)
    fill(store, handles, "a")
    store.commit()
    store.advance_event_time(HOUR - 0.001)
    assert seen(store, handles, "a") == seen(store, handles, "early") == FULL
    store.advance_event_time(100.0)  # earlier: changes nothing
    store.commit()
    store.close()
    store = embedded.open(backend, None)
    handles = states(store, ttl)
    assert seen(store, handles, "a") == FULL
    store.advance_event_time(HOUR)
    assert seen(store, handles, "a") == seen(store, handles, "early") == EMPTY


def test_elements_and_entries_expire_one_by_one(embedded, clock, backend):
    store = embedded.open(backend, "none")
    handles = states(store, "100s")
    store.set_current_key("a")
    for n in range(300):
        handles["list"].add(n)
        handles["map"][str(n)] = n
        clock.advance(1)
        if n % 50 == 7:
            store.commit()
            store.close()
            store = embedded.open(backend, None)
            handles = states(store, "100s")
            store.set_current_key("a")
    assert handles["list"].get() == list(range(201, 300))
    assert len(handles["list"]) == 99
    assert dict(handles["map"].items()) == {str(n): n for n in range(201, 300)}
    settle(store)
    assert len(stored(store)) == 0


def test_what_is_never_asked_for_leaves_too(embedded, clock, backend):
    store = embedded.open(backend, "none", "checkpointing.base-min-size=1gb")
    handles = states(store, "1h")
    for n in range(200):
        fill(store, handles, f"key-{n}")
    kept = store.value_state("kept", int)
    kept.update(7)
    store.commit()
    clock.advance(HOUR / 2)
    for n in range(50):
        fill(store, handles, f"key-{n}")
    store.commit()
    clock.advance(HOUR / 2)
    settle(store)
    # Every state of 50 keys: value, sum, one map entry, a list's head and chunk; and the one that lives for ever.
    assert len(stored(store)) == 50 * 5 + 1
    assert store.metrics.expired_entries == 150 * 5
    assert store.metrics.expired_bytes > 150 * 5 * 10
    assert seen(store, handles, "key-7") == [1, [1, 1][:1] * len(handles["list"].get()), {"x": 1}, 2]
    clock.advance(HOUR)
    settle(store)
    assert len(stored(store)) == 1
    store.checkpoint()
    store.close()
    embedded.forget_local()
    store = embedded.open(backend)
    assert len(stored(store)) == 1


def test_each_commit_removes_a_bounded_number(embedded, clock, backend):
    store = embedded.open(backend, "none")
    value = store.value_state("value", int, ttl="1h")
    value.update_many([f"key-{n}" for n in range(5000)], [1] * 5000)
    settle(store)
    clock.advance(HOUR)
    before = store.metrics.expired_entries
    most = 0
    for _ in range(40):
        store.commit()
        store._applier.settle()
        clock.advance(11)
        most = max(most, store.metrics.expired_entries - before)
        before = store.metrics.expired_entries
    assert store.metrics.expired_entries == 5000
    assert most <= 1000


def test_a_portable_base_leaves_out_what_has_expired(embedded, clock, backend):
    settings = ["base-min-size=1kb", "num-retained=1", "base-format=portable"]
    store = embedded.open(backend, "none", *[f"checkpointing.{setting}" for setting in settings])
    value = store.value_state("value", bytes, ttl="1h")
    randomness = random.Random(1)
    value.update_many([f"key-{n}" for n in range(500)], [randomness.randbytes(100) for _ in range(500)])
    full = store.checkpoint().total_bytes
    clock.advance(HOUR)
    for _ in range(5):
        value.update_many(["other"], [randomness.randbytes(full // 2)])
        info = store.checkpoint()
        store._chain.wait()
    base = info.manifest.parts[0].base
    assert sum(segment.entries for segment in base.segments) == 1


def test_a_time_out_can_be_switched_on_and_off_and_changed(embedded, clock, backend):
    def reopened(ttl):
        nonlocal store
        store.commit()
        store.close()
        store = embedded.open(backend, None)
        return states(store, ttl)

    store = embedded.open(backend, "none")
    fill(store, states(store, None), "a")
    clock.advance(10 * HOUR)
    handles = reopened("1h")  # on: counts from now
    clock.advance(HOUR - 1)
    fill(store, handles, "b")
    assert seen(store, handles, "a") == FULL
    handles = reopened("30min")  # shorter: what was written before the change is older than that
    assert seen(store, handles, "a") == EMPTY
    assert seen(store, handles, "b") == FULL
    handles = reopened(0)  # off
    clock.advance(10 * HOUR)
    assert seen(store, handles, "b") == FULL
    handles = reopened(TimeToLive("1h", time="event-time"))  # on, by another clock
    clock.advance(10 * HOUR)
    store.advance_event_time(5.0)
    assert seen(store, handles, "b") == FULL
    fill(store, handles, "c")
    handles = reopened("1h")  # on, by the first one again: counts from now
    assert seen(store, handles, "b") == FULL
    clock.advance(HOUR)
    assert seen(store, handles, "b") == seen(store, handles, "c") == EMPTY


def test_a_list_is_read_without_a_time_out_after_its_first_chunks_have_gone(embedded, clock, backend):
    store = embedded.open(backend, "none")
    elements = store.list_state("list", int, ttl="100s")
    store.set_current_key("a")
    for n in range(300):
        elements.add(n)
        clock.advance(1)
        store.commit()
    settle(store)
    elements.add(1000)
    store.commit()
    store.close()
    store = embedded.open(backend, None)
    elements = store.list_state("list", int, ttl=0)
    store.set_current_key("a")
    assert elements.get()[-1] == 1000
    assert len(elements) == len(elements.get())
    elements.add(1001)
    assert elements.get()[-2:] == [1000, 1001]


def test_the_default_of_the_configuration_and_exceptions_from_it(embedded, clock, backend):
    store = embedded.open(backend, "none", "state.ttl=1h", "state.ttl-update=on-read-and-write")
    default, own, forever = (
        store.value_state("default", int),
        store.value_state("own", int, ttl=7200),
        store.value_state("forever", int, ttl="0"),
    )
    store.set_current_key("a")
    for state in (default, own, forever):
        state.update(1)
    clock.advance(HOUR / 2)
    assert default.value() == 1
    clock.advance(HOUR / 2)
    assert default.value() == 1
    clock.advance(HOUR)
    assert [state.value() for state in (default, own, forever)] == [None, None, 1]


def test_a_clock_set_back_expires_nothing_early_and_brings_nothing_back(embedded, clock, backend):
    store = embedded.open(backend, "none")
    handles = states(store, "1h")
    fill(store, handles, "gone")
    clock.advance(HOUR)
    fill(store, handles, "a")
    assert handles["value"].get_many(["gone"]) == [None]
    store.commit()
    clock.set_time(1000.0)  # back by days
    assert seen(store, handles, "gone") == EMPTY
    assert seen(store, handles, "a") == FULL
    store.close()
    store = embedded.open(backend, None)
    handles = states(store, "1h")
    assert seen(store, handles, "gone") == EMPTY
    fill(store, handles, "b")
    assert seen(store, handles, "a") == seen(store, handles, "b") == FULL
    clock.set_time(1_000_000.0 + 2 * HOUR)  # it has caught up
    assert seen(store, handles, "a") == seen(store, handles, "b") == EMPTY


def test_after_a_long_downtime_what_is_over_is_gone(embedded, clock, backend):
    store = embedded.open(backend, "none")
    fill(store, states(store, "1h"), "a")
    store.checkpoint()
    store.close()
    clock.advance(30 * 24 * HOUR)
    store = embedded.open(backend, None)
    assert seen(store, states(store, "1h"), "a") == EMPTY


@pytest.mark.parametrize("bad", ["-1s", -1, "soon", TimeToLive])
def test_bad_time_outs_are_refused(embedded, backend, bad):
    store = embedded.open(backend, "none")
    with pytest.raises((UsageError, TypeError)):
        store.value_state("value", int, ttl=bad)
    with pytest.raises(UsageError, match="on-create-and-write"):
        TimeToLive("1h", update="sometimes")


class Oracle:
    """Plain dictionaries with the time of the last touch."""

    def __init__(self, life, on_read):
        self.life, self.on_read, self.now = life, on_read, 0.0
        self.single, self.lists, self.maps = {}, {}, {}

    def _live(self, pairs):
        return [(value, touched) for value, touched in pairs if touched + self.life > self.now]

    def read_single(self, name, key):
        live = self._live([self.single[name, key]]) if (name, key) in self.single else []
        if live and self.on_read:
            self.single[name, key] = (live[0][0], self.now)
        return live[0][0] if live else None

    def read_list(self, key):
        live = self._live(self.lists.get(key, []))
        if self.on_read:
            live = [(value, self.now) for value, _ in live]
        self.lists[key] = live
        return [value for value, _ in live]

    def read_map(self, key):
        live = {name: pair for name, pair in self.maps.get(key, {}).items() if self._live([pair])}
        if self.on_read:
            live = {name: (value, self.now) for name, (value, _) in live.items()}
        self.maps[key] = live
        return {name: value for name, (value, _) in live.items()}


@pytest.mark.parametrize("seed", seeds(4))
def test_any_history(embedded, clock, backend, seed):
    rng = random.Random(seed)
    on_read = seed % 2 == 1
    ttl = TimeToLive("100s", update="on-read-and-write" if on_read else "on-create-and-write")
    sizes = ["state.cache-size=500b", "state.pending-size=300b", "checkpointing.base-min-size=2kb"]
    store = embedded.open(backend, "none", *sizes)
    handles, oracle, numbers = states(store, ttl), Oracle(100.0, on_read), iter(range(10**9))
    keys = ["a", "b", "c"]
    for _ in range(250):
        key = rng.choice(keys)
        store.set_current_key(key)
        number = next(numbers)
        match rng.choice(
            ["value", "list", "list", "map", "sum", "replace", "remove", "read", "wait", "wait", "commit", "reopen"]
        ):
            case "value":
                handles["value"].update(number)
                oracle.single["value", key] = (number, oracle.now)
            case "list":
                some = [number + n for n in range(rng.randrange(40))]
                handles["list"].add_all(some)
                oracle.lists[key] = oracle._live(oracle.lists.get(key, [])) + [(n, oracle.now) for n in some]
            case "replace":
                handles["list"].update([number])
                oracle.lists[key] = [(number, oracle.now)]
            case "map":
                handles["map"][str(number % 5)] = number
                oracle.maps.setdefault(key, {})[str(number % 5)] = (number, oracle.now)
            case "remove":
                handles["map"].remove(str(number % 5))
                oracle.maps.get(key, {}).pop(str(number % 5), None)
            case "sum":
                handles["sum"].add(number)
                oracle.single["sum", key] = (number + (oracle.read_single("sum", key) or 0), oracle.now)
            case "read":
                assert handles["value"].value() == oracle.read_single("value", key)
                assert handles["list"].get() == oracle.read_list(key)
                assert dict(handles["map"].items()) == oracle.read_map(key)
                assert handles["sum"].get() == oracle.read_single("sum", key)
            case "wait":
                seconds = rng.choice([1, 10, 30, 60])
                clock.advance(seconds)
                oracle.now += seconds
            case "commit":
                store.commit()
            case "reopen":
                store.checkpoint()
                if rng.random() < 0.5:
                    embedded.crash(store)
                    embedded.forget_local() if rng.random() < 0.5 else None
                else:
                    store.close()
                store = embedded.open(backend, "latest", *sizes)
                handles = states(store, ttl)
    for key in keys:
        store.set_current_key(key)
        assert handles["list"].get() == oracle.read_list(key)
        assert dict(handles["map"].items()) == oracle.read_map(key)
    clock.advance(200)
    settle(store)
    assert stored(store) == []
