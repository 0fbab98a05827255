"""Operations on keyed state, hot and cold. A commit, with the log synced, comes every 10,000 operations and at the end.

Hot: all of the state is in the cache. Cold: the store was closed and opened again, the state is ten times the cache, and each operation
goes to another random sample of the keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import statestore
from benchmarks.ours.settings import config_for
from benchmarks.timing import COLD_OPERATIONS, COLLECTION_SIZE, Keys, Timed, batches, timed, value
from statestore import StateStore
from statestore.config import StateConfig

COMMIT_EVERY = 10_000
CACHE_BYTES_PER_VALUE = 400
"""About what a key with such a value takes as a cached object."""
Operations = dict[str, Callable[[], object]]

consume = deque[Any](maxlen=0).extend


def each(store: StateStore, keys: Sequence[str], operation: Callable[[], object]) -> Timed:
    """One operation for each key, with commits."""

    def work() -> None:
        for part in batches(keys, COMMIT_EVERY):
            for key in part:
                store.set_current_key(key)
                operation()
            store.commit()

    store._applier.settle()  # what operations before have left to the backend is no part of this one
    return timed(len(keys), work)


def value_operations(state: Any) -> Operations:
    return {
        "valueAdd": partial(state.update, value(1)),
        "valueUpdate": partial(state.update, value(2)),
        "valueGet": state.value,
    }


def list_operations(state: Any) -> Operations:
    ten = [value(number) for number in range(COLLECTION_SIZE)]
    return {
        "listAdd": partial(state.update, ten),
        "listUpdate": partial(state.update, ten[::-1]),
        "listAppend": partial(state.add, value(3)),
        "listAddAll": partial(state.add_all, ten),
        "listGet": state.get,
        "listGetAndIterate": lambda: consume(state.get()),
    }


def map_operations(state: Any) -> Operations:
    ten = {f"entry-{number}": value(number) for number in range(COLLECTION_SIZE)}
    return {
        "mapPutAll": partial(state.put_all, ten),
        "mapAdd": partial(state.put, "entry-new", value(4)),
        "mapUpdate": partial(state.put, "entry-3", value(5)),
        "mapGet": partial(state.get, "entry-4"),
        "mapContains": partial(state.contains, "entry-5"),
        "mapIsEmpty": state.is_empty,
        "mapKeys": lambda: consume(state.keys()),
        "mapValues": lambda: consume(state.values()),
        "mapEntries": lambda: consume(state.items()),
        "mapIterator": lambda: consume(state),
        "mapRemove": partial(state.remove, "entry-new"),
    }


def opened(store: StateStore, kind: str) -> tuple[Any, Operations]:
    if kind == "value":
        values = store.value_state("state", bytes)
        return values, value_operations(values)
    if kind == "list":
        lists = store.list_state("state", bytes)
        return lists, list_operations(lists)
    maps = store.map_state("state", str, bytes)
    return maps, map_operations(maps)


FIRST = ("valueAdd", "listAdd", "mapPutAll")
"""Those that make the state; cold ones find it made."""


WHOLE = {"listAdd": "listGet", "mapPutAll": "mapEntries"}


def state_operations(kinds: list[str], backend: str, count: int, folder: str, redis_url: str) -> dict[str, Timed]:
    """Timings of states of these kinds by operation and temperature."""
    results: dict[str, Timed] = {}
    for kind in kinds:
        results |= _of_kind(kind, backend, count, f"{folder}/{kind}", redis_url)
    return results


def _of_kind(kind: str, backend: str, count: int, folder: str, redis_url: str) -> dict[str, Timed]:
    everything = Keys(count)
    keys = everything.all if kind == "value" else everything.collections()
    results = {}
    large = f"state.cache-size={max(StateConfig().cache_size, 4 * count * CACHE_BYTES_PER_VALUE)}b"
    with statestore.open(config_for(backend, folder, redis_url, large), restore="none", job="bench") as store:
        _, operations = opened(store, kind)
        for name, operation in operations.items():
            results[f"{name} hot"] = each(store, keys, operation)
            if name in WHOLE:
                each(store, keys, operations[WHOLE[name]])  # so that the rest finds all of it in the cache
        store.checkpoint()
    small = f"state.cache-size={count * CACHE_BYTES_PER_VALUE // 10}b"
    with statestore.open(config_for(backend, folder, redis_url, small), job="bench") as store:
        state, operations = opened(store, kind)
        for name, operation in operations.items():
            if name not in FIRST:
                results[f"{name} cold"] = each(store, everything.sample(keys, COLD_OPERATIONS), operation)
        if kind == "value":
            results |= in_batches(store, state, keys)
    return results


def in_batches(store: StateStore, state: Any, keys: list[str]) -> dict[str, Timed]:
    """The cold ones, a thousand keys at a time."""
    assert state.get_many(keys[:10]) == [value(2)] * 10

    def get() -> None:
        for part in batches(keys):
            state.get_many(part)

    def update() -> None:
        for start, part in enumerate(batches(keys)):
            state.update_many(part, [value(6)] * len(part))
            if start % 10 == 9 or store.needs_checkpoint:
                store.commit()
        store.commit()
        store.checkpoint()
        store.close()  # which waits until the backend has everything

    return {
        "valueGet cold, in batches": timed(len(keys), get),
        "valueUpdate cold, in batches": timed(len(keys), update),
    }
