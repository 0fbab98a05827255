"""A value state of a given size: made, changed, checkpointed, restored."""

from __future__ import annotations

import random
import shutil
import time
from contextlib import ExitStack
from typing import Any

import statestore
from benchmarks.ours.settings import config_for
from benchmarks.timing import VALUE_BYTES, key
from statestore import complete_parts, open_store, split_key_groups
from statestore.config import Config

KEYS_PER_COMMIT = 100_000
TIMES = 3


def made(backend: str, folder: str, redis_url: str, count: int, settings: list[str]) -> dict[str, int]:
    """A state of so many keys, its base in the checkpoint storage; bytes of the checkpoint."""
    randomness = random.Random(count)
    with statestore.open(config_for(backend, folder, redis_url, *settings), restore="none", job="bench") as store:
        state = store.value_state("state", bytes)
        for start in range(0, count, KEYS_PER_COMMIT):
            keys = [key(number) for number in range(start, min(count, start + KEYS_PER_COMMIT))]
            state.update_many(keys, [randomness.randbytes(VALUE_BYTES) for _ in keys])
            store.commit()
        return {"bytes": store.checkpoint(base=True).total_bytes}


def rebased(backend: str, folder: str, redis_url: str, settings: list[str]) -> None:
    """A new base in the checkpoint storage, of what is there, as the settings want it."""
    with statestore.open(config_for(backend, folder, redis_url, *settings), restore="latest", job="bench") as store:
        store.value_state("state", bytes)
        store.wait_hydrated()
        store.checkpoint(base=True)


def first_event(
    backend: str, folder: str, redis_url: str, count: int, restore: str | None, settings: list[str]
) -> float:
    """Seconds from opening the store to the first event committed, the best of several.

    With `restore`, what survived locally is removed each time.
    """
    config, taken = config_for(backend, folder, redis_url, *settings), []
    for _ in range(TIMES):
        if restore:
            shutil.rmtree(config.state.dir)
        begun = time.perf_counter()
        with statestore.open(config, job="bench", restore=restore) as store:
            _one_event(store, count // 2)
            taken.append(time.perf_counter() - begun)
    return min(taken)


def _one_event(store: Any, number: int) -> None:
    state = store.value_state("state", bytes)
    store.set_current_key(key(number))
    assert len(state.value()) == VALUE_BYTES
    state.update(bytes(VALUE_BYTES))
    store.commit()


def checkpointed(backend: str, folder: str, redis_url: str, count: int, changed: list[int]) -> list[dict[str, Any]]:
    """Checkpoints of so many changed keys each: seconds in all and in which processing stands still, bytes; the best of several."""
    found = []
    with statestore.open(config_for(backend, folder, redis_url), job="bench") as store:
        state, randomness = store.value_state("state", bytes), random.Random(7)
        for dirty in changed:
            whole, blocking, uploaded = [], [], []
            for _ in range(TIMES):
                keys = [key(number) for number in randomness.sample(range(count), dirty)]
                state.update_many(keys, [randomness.randbytes(VALUE_BYTES) for _ in keys])
                begun = time.perf_counter()
                pending = store.begin_checkpoint()
                stood = time.perf_counter() - begun
                info = pending.finish()
                completing = time.perf_counter()
                store.complete(info)
                ended = time.perf_counter()
                whole.append(ended - begun)
                blocking.append(stood + ended - completing)
                uploaded.append(info.uploaded_bytes)
            found.append({"seconds": min(whole), "blocking_seconds": min(blocking), "uploaded_bytes": min(uploaded)})
    return found


def rescaled(backend: str, folder: str, redis_url: str, count: int) -> float:
    """A state in two parts, restored in three: seconds until each has committed an event."""
    config = config_for(backend, folder, redis_url)
    numbers = range(count)
    with ExitStack() as opened:
        stores = _parts(config, 2, "none", opened)
        states = [store.value_state("state", bytes) for store in stores]
        for store, state in zip(stores, states, strict=True):
            keys = [key(number) for number in numbers if store.key_group(key(number)) in store.key_groups]
            state.update_many(keys, [bytes(VALUE_BYTES)] * len(keys))
        complete = complete_parts(
            stores[0].checkpoints, [store.begin_checkpoint(base=True).upload() for store in stores], {}
        )
        for store in stores:
            store.complete(complete)
    begun = time.perf_counter()
    with ExitStack() as opened:
        for store in _parts(config, 3, "latest", opened):
            _one_event(store, next(number for number in numbers if store.key_group(key(number)) in store.key_groups))
        return time.perf_counter() - begun


def _parts(config: Config, parts: int, restore: str, opened: ExitStack) -> list[Any]:
    ranges = split_key_groups(parts, config.state.max_parallelism)
    first = opened.enter_context(open_store(config, "bench", restore=restore, key_groups=ranges[0]))
    others = [
        opened.enter_context(open_store(config, "bench", restore=restore, key_groups=own, attempt=first.attempt))
        for own in ranges[1:]
    ]
    return [first, *others]


def through_a_small_cache(
    backend: str, folder: str, redis_url: str, count: int, touched: int, cache_bytes: int
) -> float:
    """Seconds to read and change keys all over a state, in batches."""
    randomness = random.Random(8)
    config = config_for(backend, folder, redis_url, f"state.cache-size={cache_bytes}b")
    with statestore.open(config, job="bench") as store:
        state = store.value_state("state", bytes)
        begun = time.perf_counter()
        for _ in range(0, touched, 1000):
            keys = [key(randomness.randrange(count)) for _ in range(1000)]
            state.update_many(keys, [value[::-1] for value in state.get_many(keys)])
            if store.needs_checkpoint:
                store.commit()
        store.commit()
        return time.perf_counter() - begun
