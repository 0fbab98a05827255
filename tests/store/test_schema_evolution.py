"""State that was stored with another type than it is declared with now: read lazily, converted, or refused before anything is touched."""

from __future__ import annotations

import os
import pickle

import msgspec
import pytest

from statestore import StateMigrationError, check_checkpoint
from statestore.errors import ConfigError, CorruptionError, IncompatibleStateError, UsageError
from statestore.testing.clock import FakeClock
from tests.conftest import BACKENDS
from tests.store.stores import Stores


class First(msgspec.Struct):
    n: int
    gone: str = ""


class Second(msgspec.Struct):
    n: float
    added: list[int] = []


class Text(msgspec.Struct):
    n: str


def to_text(old):
    return Text(str(old["n"]))


class Summing:
    def create_accumulator(self):
        return First(0)

    def add(self, value, accumulator):
        return type(accumulator)(accumulator.n + value)

    def get_result(self, accumulator):
        return accumulator.n

    def merge(self, one, other):
        return self.add(other.n, one)


def registered(store, type_, **options):
    """A state of each kind, with values of a type."""
    return {
        "value": store.value_state("value", type_, **options),
        "list": store.list_state("list", type_, **options),
        "map": store.map_state("map", str, type_, **options),
        "sum": store.reducing_state("sum", type_, lambda a, b: type_(a.n + b.n), **options),
        "mean": store.aggregating_state("mean", Summing(), type_, **options),
    }


def fill(states, make, count=100):
    states["value"].update(make(1))
    states["list"].add_all(make(n) for n in range(count))
    states["map"].put_all({str(n): make(n) for n in range(3)})
    states["sum"].add(make(5))
    states["mean"]._put(make(7))


def numbers(states):
    """Of the current key's state."""
    return {
        "value": states["value"].value().n,
        "list": [one.n for one in states["list"].get()],
        "map": {key: one.n for key, one in states["map"].items()},
        "sum": states["sum"].get().n,
        "mean": states["mean"].get(),
    }


def classes(states):
    whole = [states["value"].value(), *states["list"].get(), *states["map"].values(), states["sum"].get()]
    return {type(one) for one in whole}


@pytest.fixture(params=[None, "1h"], ids=["for ever", "with a time-out"])
def ttl(request):
    return request.param


@pytest.mark.parametrize("backend", BACKENDS)
def test_old_values_are_read_as_the_new_type(embedded, backend, ttl):
    store = embedded.open(backend, None)
    store.set_current_key("k")
    fill(registered(store, First, ttl=ttl), First)
    store.commit()
    store.close()

    store = embedded.open(backend, "latest" if backend == "memory" else None)
    states = registered(store, Second, ttl=ttl)
    store.set_current_key("k")
    assert classes(states) == {Second}
    expected = numbers(states)
    assert expected["list"] == list(range(100))
    states["list"].add(Second(100.5, [1]))  # rewrites the last chunk, the first stays as it was
    states["map"]["1"] = Second(1.5)
    store.commit()
    versions = {state.name: state.version for state in store.registry._states.values()}
    assert set(versions.values()) == {1}
    assert store.registry.versions_in_use(store.registry._states["list"].id) == {0, 1}
    store.close()

    store = embedded.open(backend, "latest" if backend == "memory" else None)
    states = registered(store, Second, ttl=ttl)
    store.set_current_key("k")
    expected["list"].append(100.5)
    expected["map"]["1"] = 1.5
    assert numbers(states) == expected
    assert states["list"].get()[-1].added == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_by_itself_goes_through_upcast(stores, backend, ttl):
    store = stores.open(backend, "none")
    store.set_current_key("k")
    fill(registered(store, First, ttl=ttl), First)
    store.checkpoint()
    stores.crash(store)

    store = stores.open(backend)
    with pytest.raises(StateMigrationError, match=r"state 'value' was stored as First.*field 'n' was int and is str"):
        registered(store, Text, ttl=ttl)
    stores.crash(store)

    store = stores.open(backend)
    states = registered(store, Text, ttl=ttl, upcast=to_text)
    store.set_current_key("k")
    assert classes(states) == {Text}
    assert states["list"].get()[99].n == "99"
    states["list"].add(Text("last"))
    store.checkpoint()
    stores.crash(store)
    store = stores.open(backend)
    states = registered(store, Text, ttl=ttl, upcast=to_text)
    store.set_current_key("k")
    assert [one.n for one in states["list"].get()] == [*map(str, range(100)), "last"]


def test_an_error_names_state_field_old_and_new_and_touches_nothing(stores):
    store = stores.open("rocksdb", "none")
    state = store.value_state("profile", First)
    store.set_current_key("k")
    state.update(First(1))
    store.checkpoint()
    stores.crash(store)
    store = stores.open("rocksdb")
    with pytest.raises(StateMigrationError) as caught:
        store.value_state("profile", Text)
    error = caught.value
    assert (error.state, error.field, error.old, error.new) == ("profile", "n", "First", "Text")
    assert "upcast=" in str(error)
    with pytest.raises(IncompatibleStateError, match="value state keyed by str, and is declared as list state"):
        store.list_state("profile", First)
    assert store.value_state("profile", First).name == "profile"  # as if nothing had been tried
    assert store.registry.has_changed is False


def test_an_upcast_that_fails_says_on_what(stores):
    store = stores.open("memory", "none")
    state = store.value_state("s", First)
    for key in ("a", "b"):
        store.set_current_key(key)
        state.update(First(1))
    store.checkpoint()
    stores.crash(store)
    for upcast, problem in ((lambda old: old["m"], "KeyError: 'm'"), (lambda old: old, "holds Text, not dict")):
        store = stores.open("memory")
        state = store.value_state("s", Text, upcast=upcast)
        store.set_current_key("a")
        with pytest.raises(StateMigrationError, match=r"upcast failed on .*'n': 1") as caught:
            state.value()
        assert problem in str(caught.value)
        stores.crash(store)


def test_declaring_an_earlier_type_again_takes_its_version_again(embedded):
    for type_, version in ((First, 0), (Second, 1), (Second, 1)):
        store = embedded.open("rocksdb", None)
        states = registered(store, type_)
        store.set_current_key(str(version))
        fill(states, type_, 1)
        store.commit()
        assert store.registry._states["value"].version == version
        store.close()
    store = embedded.open("rocksdb", None)
    with pytest.raises(StateMigrationError, match="field 'n' was float and is int"):
        store.value_state("value", First)
    state = store.value_state("value", First, upcast=lambda old: First(int(old["n"])))
    assert store.registry._states["value"].version == 0
    store.set_current_key("1")
    assert state.value() == First(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_type_that_no_value_is_stored_with_is_in_nobodys_way(embedded, backend):
    store = embedded.open(backend, None)
    state = store.value_state("s", int)
    store.set_current_key("k")
    state.update(3)
    store.commit()
    state.clear()
    store.commit()
    store.close()
    store = embedded.open(backend, "latest" if backend == "memory" else None)
    state = store.value_state("s", str)
    store.set_current_key("k")
    state.update("x")
    store.commit()
    assert [schema and schema.name for schema in store.registry._states["s"].schemas] == ["str"]


def test_versions_are_given_out_anew_when_they_are_used_up(embedded):
    def widened(count):
        return msgspec.defstruct("Wide", [(f"f{n}", int, 0) for n in range(count)])

    for count in range(70):
        store = embedded.open("rocksdb", None)
        state = store.value_state("s", widened(count))
        with store.key("first"):
            assert state.value() is None or state.value().__struct_fields__ == state._codec.declared.__struct_fields__
            if not count:
                state.update(state._codec.declared())
        with store.key("again"):
            state.update(state._codec.declared())
        store.commit()
        store.close()
        assert len(store.registry._states["s"].schemas) <= 64
    assert store.registry._states["s"].schemas[0].name == "Wide"
    store = embedded.open("rocksdb", None)
    assert store.value_state("s", widened(69)).name == "s"
    assert store.registry.versions_in_use(1) == {0, store.registry._states["s"].version}


def test_more_versions_than_there_is_room_for_are_refused(embedded):
    def widened(count):
        return msgspec.defstruct("Wide", [(f"f{n}", int, 0) for n in range(count)])

    for count in range(65):
        store = embedded.open("rocksdb", None)
        if count == 64:
            with pytest.raises(IncompatibleStateError, match=r"values of 64 schemas.*read and update"):
                store.value_state("s", widened(count))
            break
        state = store.value_state("s", widened(count))
        store.set_current_key(f"key-{count}")
        state.update(state._codec.declared())
        store.commit()
        store.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_renamed_state_is_found(embedded, backend):
    store = embedded.open(backend, None)
    state = store.keyed("op", str).list_state("old", int)
    state._scope.set_current_key("k")
    state.add(1)
    store.commit()
    store.close()
    for name, before in (("new", "old"), ("newest", ["older", "old", "new"]), ("newest", "new")):
        store = embedded.open(backend, "latest" if backend == "memory" else None)
        state = store.keyed("op", str).list_state(name, float, renamed_from=before)
        state._scope.set_current_key("k")
        assert state.get()[:1] == [1.0]
        state.add(2)
        store.commit()
        assert list(store.registry._states) == [f"op/{name}"]
        store.close()
    store = embedded.open(backend, "latest" if backend == "memory" else None)
    state = store.keyed("other", str).list_state("moved", float, renamed_from="op/newest")
    state._scope.set_current_key("k")
    assert state.get() == [1.0, 2.0, 2.0, 2.0]


def test_renaming_is_refused_where_it_is_ambiguous(embedded):
    store = embedded.open("memory", None)
    store.value_state("a", int)
    with pytest.raises(UsageError, match="'b' can't be renamed from 'a', which is registered"):
        store.value_state("b", int, renamed_from="a")
    with pytest.raises(UsageError, match="takes the names"):
        store.value_state("c", int, renamed_from=[3])
    with pytest.raises(UsageError, match="no option 'rename_from'; did you mean 'renamed_from'"):
        store.value_state("d", int, rename_from="a")


def test_the_report_of_a_dry_run(stores):
    store = stores.open("memory", "none")
    store.set_current_key("k")
    for name in ("same", "wider", "bad", "helped", "unread", "old", "kind", "empty"):
        state = store.value_state(name, First)
        if name != "empty":
            state.update(First(1))
    store.timers("alarms").register(5)
    path = store.checkpoint().path

    def declare(store):
        store.value_state("same", First)
        store.value_state("wider", Second)
        store.value_state("bad", Text)
        store.value_state("helped", Text, upcast=to_text)
        store.value_state("renamed", First, renamed_from="old")
        store.list_state("kind", First)
        store.value_state("empty", Text)
        store.timers("alarms")
        store.value_state("fresh", int)

    reports = {report.name: report for report in check_checkpoint(str(path), declare)}
    assert {name: report.status for name, report in reports.items()} == {
        "same": "same", "wider": "compatible", "bad": "incompatible", "helped": "upcast", "renamed": "compatible", "kind": "incompatible",
        "empty": "compatible", "alarms": "same", "fresh": "new", "unread": "unread",
    }  # fmt: skip
    assert reports["wider"].notes == [
        "field 'gone' was removed",
        "field 'n' was int and is float",
        "field 'added' was added, with a default",
    ]
    assert reports["bad"].notes == ["field 'n' was int and is str"]
    assert reports["renamed"].notes == ["it was named 'old'"]
    assert (reports["bad"].stored, reports["bad"].declared) == ("value of First by str", "value of Text by str")


# Pickle


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


class Odd:
    def __init__(self, value):
        self.value = value


@pytest.fixture
def trusting(places):
    stores = Stores(places, "state.allow-pickle=true")
    yield stores
    stores.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pickled_state_takes_both_switches(stores, trusting, backend):
    store = trusting.open(backend, "none")
    store.set_current_key("k")
    store.value_state("odd", Odd, codec="pickle").update(Odd(3))
    store.list_state("odds", Odd, codec="pickle").add_all([Odd(n) for n in range(70)])
    store.checkpoint()
    trusting.crash(store)
    store = trusting.open(backend)
    store.set_current_key("k")
    assert store.value_state("odd", Odd, codec="pickle").value().value == 3
    assert store.list_state("odds", Odd, codec="pickle").get()[69].value == 69
    trusting.crash(store)
    store = stores.open(backend)
    with pytest.raises(ConfigError, match=r"codec=\"pickle\".*state.allow-pickle"):
        store.value_state("odd", Odd, codec="pickle")


def test_a_malicious_pickle_is_not_executed(stores, trusting, tmp_path):
    file = tmp_path / "executed"
    store = trusting.open("memory", "none")
    store.set_current_key("k")
    state = store.value_state("s", Canary, codec="pickle")
    state._codec.checked = lambda value, state: pickle.dumps(value)  # without reading it back
    state.update(Canary(file))
    store.checkpoint()
    trusting.crash(store)

    for opened in (stores, trusting):  # one of the switches is not enough
        store = opened.open("memory")
        for declared in (int, dict, First):
            with pytest.raises(
                StateMigrationError, match=r"codec=\"pickle\" and the configuration says state.allow-pickle"
            ):
                store.value_state("s", declared, upcast=lambda old: old)
        opened.crash(store)
    store = stores.open("memory")
    with pytest.raises(ConfigError, match=r"codec=\"pickle\".*state.allow-pickle"):
        store.value_state("s", Canary, codec="pickle")
    assert not file.exists()


def test_a_pickle_that_passes_for_something_else_is_not_executed(stores, tmp_path):
    file = tmp_path / "executed"
    store = stores.open("memory", "none")
    store.set_current_key("k")
    state = store.value_state("s", int)
    state._codec.encode = lambda value: pickle.dumps(Canary(file))
    state.update(3)
    store.checkpoint()
    stores.crash(store)
    for declared in (int, float):
        store = stores.open("memory")
        store.set_current_key("k")
        with pytest.raises(CorruptionError, match="state 's'"):
            store.value_state("s", declared).value()
        stores.crash(store)
    assert not file.exists()


def test_old_values_expire_as_they_would_have(places):
    clock = FakeClock()
    stores = Stores(places, auto_complete=True, clock=clock)
    try:
        store = stores.open("rocksdb", None)
        store.set_current_key("k")
        fill(registered(store, First, ttl="1h"), First, 10)
        store.commit()
        store.close()
        clock.advance(3599)
        store = stores.open("rocksdb", None)
        states = registered(store, Second, ttl="1h")
        store.set_current_key("k")
        states["list"].add(Second(1.5))
        store.commit()
        clock.advance(1)
        assert [one.n for one in states["list"].get()] == [1.5]
        assert states["value"].value() is None
    finally:
        stores.close()
