"""A change costs the change, not the state or the collection it is in: shown on the bytes that a commit logs."""

from __future__ import annotations

import random

import pytest

from statestore.keys import split_entry
from tests.conftest import BACKENDS

SIZE = 100
MANY = 2_000


@pytest.fixture
def values():
    """Bytes that can't be compressed."""
    randomness = random.Random(3)
    return lambda count: [randomness.randbytes(SIZE) for _ in range(count)]


class Longest:
    def create_accumulator(self):
        return b""

    def add(self, value, accumulator):
        return max(accumulator, value)

    def get_result(self, accumulator):
        return accumulator

    def merge(self, one, other):
        return max(one, other)


KINDS = {
    "value": lambda store, ttl: store.value_state("s", bytes, ttl=ttl),
    "reducing": lambda store, ttl: store.reducing_state("s", bytes, max, ttl=ttl),
    "aggregating": lambda store, ttl: store.aggregating_state("s", Longest(), bytes, ttl=ttl),
    "list": lambda store, ttl: store.list_state("s", bytes, ttl=ttl),
    "map": lambda store, ttl: store.map_state("s", str, bytes, ttl=ttl),
}


@pytest.fixture(params=[None, "1h"], ids=["for ever", "with a time-out"])
def ttl(request):
    return request.param


def logged(store, change):
    """Bytes that a change adds to the log, and the entries it writes."""
    before, append, entries = store.metrics.wal_bytes, store._log.append, []

    def watched(batch, epoch, commit, meanwhile):
        entries.extend(batch.keys)
        return append(batch, epoch, commit, meanwhile)

    change()
    store._log.append = watched
    store.commit()
    store._log.append = append
    return store.metrics.wal_bytes - before, entries


def write(state, value):
    (state.update if hasattr(state, "update") else state.add)(value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["value", "reducing", "aggregating"])
def test_one_of_many_keys(embedded, backend, kind, ttl, values):
    store = embedded.open(backend, None)
    state = KINDS[kind](store, ttl)
    for n, value in enumerate(values(MANY)):
        store.set_current_key(f"key-{n}")
        write(state, value)
    store.commit()
    store.set_current_key("key-77")
    size, entries = logged(store, lambda: write(state, b"\xff" + values(1)[0]))
    assert [split_entry(entry)[2] for entry in entries] == [b"key-77"]
    assert size < SIZE + 250


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fresh", [False, True], ids=["cached", "read anew"])
def test_an_append_to_a_long_list(embedded, backend, ttl, values, fresh):
    store = embedded.open(backend, None)
    state = KINDS["list"](store, ttl)
    store.set_current_key("k")
    state.add_all(values(MANY))
    store.commit()
    if fresh:
        store.rollback()
    for _ in range(3):  # the tail is at most the list's last 64 elements; in front of it nothing is written
        size, entries = logged(store, lambda: state.add(values(1)[0]))
        assert sorted(split_entry(entry)[3] for entry in entries) == [b"", (MANY // 64).to_bytes(4, "big")]
        assert size < (MANY % 64 + 4) * (SIZE + 8) + 300
    assert len(state.get()) == MANY + 3
    size, entries = logged(store, lambda: state.add_all(values(200)))
    assert size < (200 + 64) * (SIZE + 8) + 500


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fresh", [False, True], ids=["cached", "read anew"])
def test_an_entry_of_a_large_map(embedded, backend, ttl, values, fresh):
    store = embedded.open(backend, None)
    state = KINDS["map"](store, ttl)
    store.set_current_key("k")
    state.put_all({f"entry-{n}": value for n, value in enumerate(values(MANY))})
    store.commit()
    if fresh:
        store.rollback()
    for change in (
        lambda: state.put("entry-77", values(1)[0]),
        lambda: state.put("a new one", values(1)[0]),
        lambda: state.remove("entry-5"),
    ):
        size, entries = logged(store, change)
        assert len(entries) == 1
        assert size < SIZE + 250
    assert len(state) == MANY


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_logs_nothing(embedded, kind, ttl, values):
    store = embedded.open("rocksdb", None)
    state = KINDS[kind](store, ttl)
    store.set_current_key("k")
    if kind == "map":
        state.put_all(dict(zip("abc", values(3), strict=True)))
    else:
        (state.update if kind == "value" else state.add)(values(1)[0])
    store.commit()
    read = {"value": lambda: state.value(), "map": lambda: state.get("a")}.get(kind, lambda: state.get())
    size, entries = logged(store, read)
    assert not entries
    assert size < 250
