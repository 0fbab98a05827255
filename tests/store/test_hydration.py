"""Lazy restore: a store that works while its backend is still being filled, step by step."""

from __future__ import annotations

import logging
import random
import threading

import pytest

from statestore import (
    ClosedError,
    CorruptionError,
    UnavailableError,
    UsageError,
    complete_parts,
    hydration,
    load_config,
    open_store,
    split_key_groups,
)
from statestore.hydration import Hydrating
from statestore.io import LocalStorage
from statestore.keys import group_of_entry
from statestore.stamp import is_stamp
from statestore.testing.clock import FakeClock
from tests.conftest import BACKENDS
from tests.store.stores import Stores, content, handles

KEYS = [f"key-{n}" for n in range(60)]
SETTINGS = ["state.max-parallelism=4", "state.cache-size=2kb", "state.pending-size=1b"]
SMALL_BASES = "checkpointing.base-min-size=1kb"
LAZY = "state-recovery.lazy=true"


@pytest.fixture
def stepwise(monkeypatch):
    """Nothing is copied until a test says `step`."""
    monkeypatch.setattr(Hydrating, "start", lambda backend: None)
    monkeypatch.setattr(hydration, "ENTRIES_PER_PIECE", 9)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def embedded(places, clock):
    stores = Stores(places, *SETTINGS, auto_complete=True, clock=clock)
    yield stores
    stores.close()


def fill(store, number, keys=KEYS):
    states = handles(store)
    for n, key in enumerate(keys):
        store.set_current_key(key)
        states["value"].update(number + n)
        states["list"].add_all([str(number)] * (n % 5))
        states["map"].put_all({f"entry-{i}": number for i in range(n % 7)})
        states["sum"].add(number)


def made(stores):
    """A checkpoint with a base, and deltas that change, add and delete; its local state is lost."""
    store = stores.open("memory", "none", SMALL_BASES, "checkpointing.inline-threshold=0")
    fill(store, 1, KEYS[:50])
    while store.checkpoint().manifest.parts[0].base is None:
        wait_for_base(store)
    fill(store, 100, KEYS[40:])
    for key in KEYS[::7]:
        with store.key(key):
            for state in handles(store).values():
                state.clear()
    info = store.checkpoint({"position": 1})
    expected = content(store, KEYS)
    store.close()
    stores.forget_local()
    return info, expected


def wait_for_base(store):
    store._chain.wait()


def step(store, count=1):
    return [store._backend.step() for _ in range(count)][-1]


def finish(store):
    while step(store):
        pass


def below(store):
    """What the backend itself holds."""
    return [key for key, _ in store._backend._backend.scan(b"", None)]


def change(store, rng, model):
    """One random change in a store and in a model of it."""
    key, number = rng.choice(KEYS), rng.randrange(1000)
    states, held = handles(store), model[key]
    store.set_current_key(key)
    match rng.randrange(8):
        case 0 | 1:
            states["value"].update(number)
            held["value"] = number
        case 2:
            states["list"].add_all([str(number)] * 3)
            held["list"] = [*held["list"], *[str(number)] * 3]
        case 3:
            states["map"][f"entry-{number % 9}"] = number
            held["map"] = {**held["map"], f"entry-{number % 9}": number}
        case 4:
            states["map"].remove(f"entry-{number % 9}")
            held["map"] = {name: value for name, value in held["map"].items() if name != f"entry-{number % 9}"}
        case 5:
            states["sum"].add(number)
            held["sum"] = number + (held["sum"] or 0)
        case 6:
            states["list"].update([str(number)])
            held["list"] = [str(number)]
        case 7:
            name = rng.choice(list(states))
            states[name].clear()
            held[name] = {"value": None, "list": [], "map": {}, "sum": None}[name]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_state_at_every_moment(embedded, stepwise, backend, seed):
    _, model = made(embedded)
    rng = random.Random(f"{backend}-{seed}")
    store = embedded.open(backend, "latest", LAZY, SMALL_BASES)
    assert store.hydration.entries == 0
    assert below(store) == []
    while store.hydration is not None:
        for _ in range(rng.randrange(12)):
            change(store, rng, model)
        store.commit()
        if rng.random() < 0.5:
            store._applier.settle()
        if rng.random() < 0.2:
            store.checkpoint({"position": 2})
        some = rng.sample(KEYS, 10)
        assert content(store, some) == {key: model[key] for key in some}
        step(store)
    assert content(store, KEYS) == model
    assert store.count_keys() == sum(any(state.values()) or state["value"] == 0 for state in model.values())
    info = store.checkpoint({"position": 3})
    store.close()
    again = embedded.open(backend, "latest")  # from what has survived, where it is durable
    assert content(again, KEYS) == model
    again.close()
    embedded.forget_local()
    assert content(embedded.open("memory", info.path), KEYS) == model


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scan_of_everything_shows_every_entry_once(embedded, stepwise, backend):
    """Bases are made of it: also while pieces are copied, and entries written, in the middle of it."""
    made(embedded)
    eager = embedded.open("memory", "latest", "state.dir=" + str(embedded.checkpoints.parent / "other"))
    expected = {key: value for key, value in eager._backend.scan(b"", None) if not is_stamp(key)}
    eager.release()
    store = embedded.open(backend, "latest", LAZY)
    for steps in range(1000):
        scan = store._backend.scan(b"", None)
        found = [next(scan) for _ in range(steps % 13)]
        is_more = step(store)
        assert [entry for entry in [*found, *scan] if not is_stamp(entry[0])] == sorted(expected.items())
        first, last = sorted(random.Random(steps).sample(sorted(expected), 2))
        inner = [entry for entry in store._backend.scan(first, last) if not is_stamp(entry[0])]
        assert inner == sorted((key, value) for key, value in expected.items() if first <= key < last)
        if not is_more:
            break
    assert store.hydration is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_timers_and_time_outs(embedded, clock, stepwise, backend):
    def opened(*settings):
        store = embedded.open("memory" if not settings else backend, "latest" if settings else "none", *settings)
        return store, store.timers("timers"), store.value_state("session", str, ttl="1h")

    store, timers, session = opened()
    for n, key in enumerate(KEYS):
        store.set_current_key(key)
        timers.register(clock.time() + n)
        session.update(key)
        if n == 30:
            clock.advance(1800)
    store.checkpoint()
    store.close()
    embedded.forget_local()
    store, timers, session = opened(LAZY)
    first = [key for _, key in timers.due()]
    clock.advance(1800)  # the first thirty have expired; the rest have half an hour
    step(store, 2)
    assert session.get_many(KEYS) == [None] * 31 + KEYS[31:]
    store.set_current_key(KEYS[0])
    timers.register(clock.time() - 1)
    store.commit()
    finish(store)
    due = [key for _, key in timers.due()]
    assert sorted([*first, *due]) == sorted([*KEYS, KEYS[0]])
    assert session.get_many(KEYS[31:]) == KEYS[31:]


@pytest.mark.parametrize("restore_lazily", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crash_at_every_step(embedded, stepwise, backend, restore_lazily):
    _, model = made(embedded)
    rng = random.Random(backend)
    is_done, steps = False, 0
    while not is_done:
        store = embedded.open(backend, "latest", LAZY)
        assert content(store, KEYS) == model
        is_done = not all(step(store) for _ in range(steps))
        for _ in range(4):
            change(store, rng, model)
        store.commit({"position": steps})
        if rng.random() < 0.5:
            store._applier.settle()
        embedded.crash(store)
        steps += 3
    store = embedded.open(backend, "latest", *([LAZY] if restore_lazily else []))
    assert store.restored.meta == {"position": steps - 3}
    assert content(store, KEYS) == model


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_goes_back_to_its_checkpoint(places, stepwise, backend):
    stores = Stores(places, *SETTINGS)
    _, expected = made(stores)
    store = stores.open(backend, "latest", LAZY)
    fill(store, 1000, KEYS[:30])
    step(store, 3)
    store.checkpoint({"position": 2})
    expected = content(store, KEYS)
    fill(store, 2000)
    store.commit({"position": 3})
    step(store, 2)
    stores.crash(store)
    store = stores.open(backend, "latest", LAZY)
    assert store.restored.meta == {"position": 2}
    finish(store)
    assert content(store, KEYS) == expected
    stores.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_before_it_is_done_it_begins_anew(embedded, stepwise, backend):
    _, expected = made(embedded)
    store = embedded.open(backend, "latest", LAZY)
    step(store, 2)
    fill(store, 7, ["new"])
    store.commit()
    store.close()
    with pytest.raises(ClosedError):
        store.wait_hydrated()
    again = embedded.open(backend, "latest", LAZY)
    assert again.hydration.entries == 0
    assert content(again, KEYS) == expected
    assert content(again, ["new"])["new"]["value"] == 7


def damage(stores, info):
    """Flip a bit in the middle of the base, in a block and not in the footer."""
    file = stores.checkpoints / "job" / info.manifest.parts[0].base.segments[0].path
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_that_is_met_ends_the_work_loudly(embedded, stepwise, backend, caplog):
    info, _ = made(embedded)
    file = damage(embedded, info)
    store = embedded.open(backend, "latest", LAZY)
    fill(store, 5, ["new"])
    store.commit()
    store._applier.settle()
    with caplog.at_level(logging.ERROR):
        store._backend._run()
    assert file.name in caplog.text
    fill(store, 6, ["new"])
    for work in (store.commit, store.wait_hydrated, lambda: content(store, KEYS)):
        with pytest.raises(CorruptionError, match=file.name):
            work()
    embedded.crash(store)
    with pytest.raises(CorruptionError, match=file.name):  # all checkpoints there are have this base
        embedded.open(backend, "latest")


def test_storage_that_is_gone_is_told(embedded, stepwise, monkeypatch):
    made(embedded)
    store = embedded.open("rocksdb", "latest", LAZY)
    step(store)

    def read(storage, name, *arguments):
        raise UnavailableError("storage", name, "it is gone")

    monkeypatch.setattr(LocalStorage, "read", read)
    monkeypatch.setattr(hydration, "next_piece", lambda *_, **__: read(None, "base"))
    store._backend._run()
    with pytest.raises(UnavailableError, match="it is gone"):
        store.commit()


def test_opening_reads_no_whole_file(embedded, stepwise, monkeypatch):
    """Manifest, footer and the blocks that are asked for; so the first event does not wait for the state."""
    store = embedded.open("memory", "none", SMALL_BASES)
    value = store.value_state("value", bytes)
    randomness = random.Random(1)
    for n in range(20_000):
        store.set_current_key(f"key-{n}")
        value.update(randomness.randbytes(100))
    while store.checkpoint().manifest.parts[0].base is None:
        wait_for_base(store)
    base = store.checkpoint().manifest.parts[0].base
    store.close()
    embedded.forget_local()
    asked, read = [], LocalStorage.read

    def reading(storage, name, start=0, length=None):
        data = read(storage, name, start, length)
        asked.append((name, len(data)))
        return data

    monkeypatch.setattr(LocalStorage, "read", reading)
    store = embedded.open("rocksdb", "latest", LAZY)
    value = store.value_state("value", bytes)
    store.set_current_key("key-7")
    assert value.value() is not None
    assert sum(size for name, size in asked if "base" in name) < base.size / 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_are_kept_and_bases_wait_until_all_is_copied(embedded, stepwise, backend):
    made(embedded)
    store = embedded.open(backend, "latest", LAZY, SMALL_BASES, "checkpointing.num-retained=1")
    before = store.checkpoints.retained()
    for number in range(3):
        fill(store, number)
        store.checkpoint()
    assert store.checkpoints.retained() == [*before, *range(before[-1] + 1, before[-1] + 4)]
    assert store._chain._renewal._making is None
    finish(store)
    fill(store, 9)
    store.checkpoint()
    assert store._chain._renewal._making is not None
    wait_for_base(store)
    newest = store.checkpoint()
    assert store.collected()
    assert store.checkpoints.retained() == [newest.checkpoint_id]
    expected = content(store, KEYS)
    store.close()
    embedded.forget_local()
    assert content(embedded.open("memory", newest.path), KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_checkpoint_of_another_folder(embedded, stepwise, tmp_path, backend):
    info, expected = made(embedded)
    embedded.checkpoints = tmp_path / "elsewhere"
    store = embedded.open(backend, info.path, LAZY)
    assert store.hydration is not None
    step(store, 2)
    fill(store, 7, ["new"])
    store.checkpoint()
    store.close()
    embedded.forget_local()
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    again = embedded.open(backend, "latest", LAZY)
    finish(again)
    assert content(again, KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_the_background(embedded, backend):
    _, expected = made(embedded)
    before = set(threading.enumerate())
    store = embedded.open(backend, "latest", LAZY)
    assert store.wait_hydrated()
    assert store.hydration is None
    assert content(store, KEYS) == expected
    store.close()
    assert not any(thread.name.startswith("statestore-") for thread in set(threading.enumerate()) - before)


def test_from_s3(places, s3_url, stepwise):
    stores = Stores(places, *SETTINGS, auto_complete=True)
    stores.checkpoints = s3_url
    _, expected = made(stores)
    for backend in ("rocksdb", "filesystem"):
        store = stores.open(backend, "latest", LAZY)
        fill(store, 7, ["new"])
        step(store, 3)
        assert content(store, KEYS) == expected
        finish(store)
        assert content(store, [*KEYS, "new"]) == {**expected, **content(store, ["new"])}
        stores.crash(store)
        stores.forget_local()
    stores.close()


def test_clearing_comes_after_copying(embedded, stepwise):
    made(embedded)
    store = embedded.open("rocksdb", "latest", LAZY)
    store._backend.clear(range(2))
    assert store.hydration is None
    assert store._backend.applied_epoch() == 0
    groups = {key[:2] for key, _ in store._backend.scan(b"", None)}
    assert groups == {b"\0\2", b"\0\3"}


def test_every_store_of_a_job_copies_its_own_key_groups(places, stepwise):
    def opened(parallelism, *settings):
        first, *rest = split_key_groups(parallelism, 4)
        configured = load_config(
            overrides=[
                *places.overrides("rocksdb"),
                *SETTINGS,
                f"checkpointing.dir={places.folder / 'checkpoints'}",
                f"state.dir={places.folder / str(parallelism)}",
                *settings,
            ]
        )
        restore = "latest" if settings else "none"
        one = open_store(configured, "job", restore=restore, key_groups=first)
        return [one, *(open_store(configured, "job", restore=restore, key_groups=r, attempt=one.attempt) for r in rest)]

    def of(stores, key):
        return next(store for store in stores if store.key_group(key) in store.key_groups)

    stores = opened(3)
    for key in KEYS:
        fill(of(stores, key), 1, [key])
    complete_parts(stores[0].checkpoints, [store.begin_checkpoint().upload() for store in stores])
    expected = {key: content(of(stores, key), [key])[key] for key in KEYS}
    for store in stores:
        store.close()
    stores = opened(2, LAZY)
    step(stores[0], 3)
    assert {key: content(of(stores, key), [key])[key] for key in KEYS} == expected
    assert sum(store.count_keys() for store in stores) == len(KEYS)
    finish(stores[0])
    finish(stores[1])
    assert {key: content(of(stores, key), [key])[key] for key in KEYS} == expected
    for store in stores:
        assert {group_of_entry(key) for key in below(store)} <= set(store.key_groups)
        store.close()


def test_it_is_made_of_an_open_backend():
    with pytest.raises(UsageError, match="of an open one"):
        Hydrating.open(None)
