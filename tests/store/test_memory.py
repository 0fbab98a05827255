"""The cache keeps to its bytes, whatever the values are like and however they come to be in it."""

from __future__ import annotations

import gc
import random

import pytest

from statestore.footprint import footprint
from tests.conftest import BACKENDS

CACHE = 1 << 20
SETTINGS = [f"state.cache-size={CACHE}b", "state.pending-size=256kb", "state.max-parallelism=8"]


def held(states):
    """Bytes of everything the handles have in their caches, counted object by object."""
    seen, size, todo = set(), 0, [cache for state in states for cache in (state._changed, state._young, state._old)]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        size += value.__sizeof__()
        todo += gc.get_referents(value)
    return size


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [10, 1000, 100_000], ids=lambda size: f"{size}-bytes")
def test_single_values(embedded, backend, size):
    count = 10 * CACHE // (size + 300)
    store = embedded.open(backend, "none", *SETTINGS)
    value = store.value_state("value", bytes)
    for n in range(count):
        store.set_current_key(f"key-{n}")
        value.update(b"%d" % n * (size // len(b"%d" % n)))
        if store.needs_checkpoint:
            store.commit()
            assert held([value]) < 2 * CACHE
    store.checkpoint()
    store.close()
    store = embedded.open(backend, None, *SETTINGS)
    value = store.value_state("value", bytes)
    most = 0
    for n in range(count):  # each for itself, the large ones never written again
        store.set_current_key(f"key-{n}")
        assert len(value.value()) > size - 10
        if n % (count // 20) == 0:
            most = max(most, held([value]))
    assert CACHE / 8 < most < 1.5 * CACHE
    for first in range(0, count, 100):
        assert None not in value.get_many([f"key-{n}" for n in range(first, min(count, first + 100))])
    assert held([value]) < 1.5 * CACHE + 200 * size


@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_and_maps_weigh_what_is_in_them(embedded, backend):
    rng = random.Random(1)
    store = embedded.open(backend, "none", *SETTINGS)
    states = [store.list_state("list", str), store.map_state("map", str, str)]
    for n in range(200):
        store.set_current_key(f"key-{n % 50}")
        for i in range(75):
            states[0].add(rng.randbytes(10).hex())
            states[1][f"{n}-{i}"] = rng.randbytes(10).hex()
        if n % 10 == 0:
            store.commit()
            assert held(states) < 2 * CACHE
    store.commit()
    for n in range(50):
        store.set_current_key(f"key-{n}")
        assert len(states[0].get()) == len(dict(states[1].items())) == 300
        assert held(states) < 2 * CACHE


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_large_collection_does_not_stay(embedded, backend):
    store = embedded.open(backend, "none", *SETTINGS)
    states = [store.list_state("list", int), store.map_state("map", int, int)]
    store.set_current_key("hot")
    for n in range(25_000):
        states[0].add(n)
        states[1][n] = n
        if store.needs_checkpoint:
            store.commit()
            assert held(states) < CACHE
    store.commit()
    assert states[0].get() == list(range(25_000))
    assert dict(states[1].items()) == {n: n for n in range(25_000)}
    assert held(states) < CACHE
    states[0].add(7)
    del states[1][77]
    store.commit()
    assert states[0].get()[-2:] == [24_999, 7]
    assert len(states[1]) == 24_999


def test_what_is_not_committed_asks_for_a_commit(embedded):
    store = embedded.open("memory", "none", *SETTINGS)
    value, elements = store.value_state("value", bytes), store.list_state("list", bytes)
    for n in range(1000):
        store.set_current_key(f"key-{n}")
        value.update(bytes(100_000))
        if store.needs_checkpoint:
            break
    assert 10 < len(value._changed) < 200
    store.commit()
    store.set_current_key("hot")
    for _ in range(3):
        for _ in range(200):
            elements.add(bytes(100_000))
        assert store.needs_checkpoint == (
            store._epoch > 1
        )  # from the first commit on it is known how large elements are
        store.commit()


@pytest.mark.parametrize(
    "value", [1, "x" * 1000, [1] * 5000, dict.fromkeys(range(500), "x" * 50), [[1, 2], [3]], (b"x",) * 3]
)
def test_the_footprint_is_about_right(value):
    seen, exact, todo = set(), 0, [value]
    while todo:
        part = todo.pop()
        exact += part.__sizeof__()
        todo += gc.get_referents(part) if not isinstance(part, type) else []
        seen.add(id(part))
    assert exact / 2 < footprint(value) < exact * 2
