"""A diff is the difference of what two readers find, whatever the two checkpoints were made with."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import statestore
from statestore import IncompatibleStateError, StateStore, UsageError
from statestore.reading.diff import Counts
from statestore.reading.reader import StateReader
from tests.conftest import BACKENDS
from tests.reading.conftest import complete_base

STATES = ("value", "list", "map", "timers")


def handles(store: StateStore, order=STATES):
    """States registered in some order, so that their numbers differ."""
    make = {
        "value": lambda: store.value_state("value", int),
        "list": lambda: store.list_state("list", int),
        "map": lambda: store.map_state("map", str, int),
        "timers": lambda: store.timers("timers"),
    }
    made = {name: make[name]() for name in order}
    return [made[name] for name in STATES]


def difference(before, after, name):
    """The changes of a state by comparing two dicts."""
    if name == "timers":
        before, after = (
            {(key, time): time for key, times in side.items() for time in times} for side in (before, after)
        )
        plain = difference(before, after, "")
        return {(key[0], change, old, new) for key, change, old, new in plain}
    changes = [(key, "removed", repr(value), "None") for key, value in before.items() if key not in after]
    changes += [(key, "added", "None", repr(value)) for key, value in after.items() if key not in before]
    changes += [
        (key, "changed", repr(before[key]), repr(after[key]))
        for key in before.keys() & after.keys()
        if before[key] != after[key]
    ]
    return set(changes)


def found(diff, name):
    return {
        (change.key, change.change, repr(change.before), repr(change.after)) for change in diff if change.state == name
    }


KINDS = ["update", "add", "put", "remove", "clear", "timer", "commit"]
OPERATIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("abcdefghij"), st.integers(0, 5)), max_size=60)


def play(store, order, operations):
    """What a store holds after some operations: by the handles, and by a reader of a checkpoint."""
    value, items, entries, timers = handles(store, order)
    model = {name: {} for name in STATES}
    for operation, letter, number in operations:
        key = letter * (1 + number % 2)
        store.set_current_key(key)
        match operation:
            case "update":
                value.update(number)
            case "add":
                items.add_all([number] * number * 30)
            case "put":
                entries[str(number)] = number
            case "remove":
                entries.remove(str(number))
            case "clear":
                value.clear()
                items.clear()
                timers.delete(float(number))
                model["timers"].get(key, set()).discard(float(number))
            case "timer":
                timers.register(float(number))
                model["timers"].setdefault(key, set()).add(float(number))
            case "commit" if number < 3:
                store.commit()
            case "commit":
                store.checkpoint()
                complete_base(store)
        model["value"][key], model["list"][key], model["map"][key] = (
            value.value(),
            items.get(),
            dict(sorted(entries.items())),
        )
    info = store.checkpoint()
    model["timers"] = {key: sorted(times) for key, times in model["timers"].items()}
    model["value"] = {key: one for key, one in model["value"].items() if one is not None}
    model = {name: {key: one for key, one in keys.items() if one or name == "value"} for name, keys in model.items()}
    return model, StateReader(store.checkpoints, info.manifest)


@settings(deadline=None, max_examples=40)
@given(OPERATIONS, OPERATIONS, st.permutations(STATES), st.sampled_from([(8, 8), (8, 12), (4, 16), (5, 7), (1, 9)]))
def test_any_two_histories(first, second, order, groups):
    sides = []
    for operations, states, count in ((first, STATES, groups[0]), (first[:20] + second, order, groups[1])):
        with statestore.open("memory://", max_parallelism=count) as store:
            model, reader = play(store, states, operations)
        for name in STATES:
            assert reader.state(name).to_dict() == model[name], name
        sides.append((model, reader))
    (before, one), (after, other) = sides
    diff = statestore.diff(one, other)
    for name in STATES:
        expected = difference(before[name], after[name], name)
        assert found(diff, name) == expected
        counts = [sum(change[1] == kind for change in expected) for kind in Counts._fields]
        assert diff.summary()[name] == Counts(*counts)
    assert list(statestore.diff(one, one)) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoints_of_two_backends(stores, tmp_path, backend):
    store = stores.open(backend, "none")
    value, *_ = handles(store)
    value.update_many(["a", "b", "c"], [1, 2, 3])
    before = store.checkpoint().path
    complete_base(store)
    value.update_many(["b", "d"], [20, 4])
    store.set_current_key("c")
    value.clear()
    after = store.checkpoint().path
    assert sorted(statestore.diff(before, after)) == [
        ("value", "b", "changed", 2, 20),
        ("value", "c", "removed", 3, None),
        ("value", "d", "added", None, 4),
    ]
    with statestore.open("memory://", dir=tmp_path / "other", max_parallelism=6) as other:
        same, *_ = handles(other, STATES[::-1])
        same.update_many(["a", "b", "d"], [1, 20, 4])
        elsewhere = other.checkpoint().path
    assert list(statestore.diff(after, elsewhere)) == []
    assert statestore.diff(before, elsewhere).summary()["value"] == Counts(1, 1, 1)


def test_times_of_touch_make_no_difference_and_the_expired_is_not_there(stores, clock):
    store = stores.open("memory", "none")
    state = store.value_state("state", int, ttl="10s")
    state.update_many(["touched", "left"], [1, 2])
    before = store.checkpoint().path
    clock.advance(9)
    state.update_many(["touched"], [1])
    clock.advance(2)
    after = store.checkpoint().path
    assert list(statestore.diff(before, after)) == [("state", "left", "removed", 2, None)]


def test_states_that_only_one_side_has_or_that_can_not_be_compared(stores, tmp_path):
    store = stores.open("memory", "none")
    one, gone, clash = store.value_state("one", int), store.value_state("gone", int), store.value_state("clash", int)
    for state in (one, gone, clash):
        state.update_many(["a"], [1])
    before = store.checkpoint().path
    with statestore.open("memory://", dir=tmp_path / "other") as other:
        for name in ("one", "new"):
            other.value_state(name, int).update_many(["a"], [1])
        other.list_state("clash", int)
        after = other.checkpoint().path
    with pytest.raises(IncompatibleStateError, match=r"'clash' can't be compared: it is value state .* list state"):
        statestore.diff(before, after)
    assert list(statestore.diff(before, after, states=["new", "one", "gone"])) == [
        ("new", "a", "added", None, 1),
        ("gone", "a", "removed", 1, None),
    ]
    with pytest.raises(UsageError, match="did you mean 'gone'"):
        statestore.diff(before, after, states=["gon"])


def test_a_diff_needs_little_memory(stores):
    store, rng = stores.open("memory", "none", "checkpointing.base-ratio=0.01"), random.Random(1)
    state = store.value_state("state", bytes)
    keys = [f"key-{n:05}" for n in range(30_000)]
    paths = []
    for some in (keys, keys[::2]):
        state.update_many(some, [rng.randbytes(500) for _ in some])
        store.checkpoint()
        complete_base(store)
        state.update_many(["key-00001"], [b""])
        info = store.checkpoint()
        assert sum(delta.size for delta in info.manifest.parts[0].deltas) < 10_000 < 12_000_000 < info.total_bytes
        paths.append(info.path)
    sides = [statestore.read(path) for path in paths]
    tracemalloc.start()
    try:
        counts = statestore.diff(*sides).summary()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts == {"state": Counts(0, 0, 15_000)}
    assert peak < 4_000_000
