"""Savepoints: whole, movable, and nobody's but the user's."""

from __future__ import annotations

import shutil

import pytest

from statestore import (
    AlreadyExistsError,
    CheckpointNotFoundError,
    CorruptionError,
    UnavailableError,
    UsageError,
    complete_parts,
    copying,
    load_config,
    open_store,
    split_key_groups,
)
from statestore.checkpoint.locating import locate_checkpoint
from statestore.checkpoint.retention import survey
from statestore.checkpoint.savepoint import save_checkpoint
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.verify import verify
from statestore.io import LocalStorage
from statestore.testing.clock import FakeClock
from tests.conftest import BACKENDS
from tests.store.stores import EMPTY, Stores, content, handles

KEYS = [f"key-{n}" for n in range(120)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that a savepoint has several segments."""
    monkeypatch.setattr(copying, "PIECE_ENTRIES", 100)


@pytest.fixture
def elsewhere(places, tmp_path):
    """Stores of another job, with other checkpoints and other local folders."""
    places.folder = tmp_path / "elsewhere"
    stores = Stores(places, job="other")
    yield stores
    stores.close()


def fill(store, start, stop):
    states = handles(store)
    for n in range(start, stop):
        store.set_current_key(KEYS[n])
        states["value"].update(n)
        states["list"].add_all([str(n), "x" * (n % 7)] * (n % 20))
        states["map"].put_all({f"entry-{i}": i for i in range(n % 5)})
        states["sum"].add(n)


@pytest.mark.parametrize(
    ("source", "target"), [(source, (BACKENDS * 2)[n + step]) for n, source in enumerate(BACKENDS) for step in (0, 1)]
)
def test_a_savepoint_of_each_backend_restores_on_others_wherever_it_was_moved(
    stores, elsewhere, tmp_path, source, target
):
    stores.checkpoints = tmp_path / "checkpoints"
    store = stores.open(source, "none", "checkpointing.base-min-size=1kb")
    fill(store, 0, 100)
    store.checkpoint()
    fill(store, 50, 120)
    with store.key(KEYS[7]):
        for state in handles(store).values():
            state.clear()
    info = store.savepoint(str(tmp_path / "sp"), {"position": 3})
    expected = content(store, KEYS)
    assert expected[KEYS[7]] == EMPTY
    store.close()
    shutil.rmtree(stores.checkpoints)
    (tmp_path / "sp").rename(tmp_path / "moved")
    restored = elsewhere.open(target, str(tmp_path / "moved"))
    assert (restored.restored.epoch, restored.restored.meta) == (info.epoch, {"position": 3})
    assert content(restored, KEYS) == expected
    restored.checkpoint()
    restored.close()
    shutil.rmtree(tmp_path / "moved")  # what was restored is never referred to again
    elsewhere.forget_local()
    assert content(elsewhere.open(target), KEYS) == expected


def test_a_savepoint_is_a_folder_with_relative_names_only(embedded, tmp_path):
    store = embedded.open("rocksdb", None)
    fill(store, 0, 120)
    info = store.savepoint(f"file://{tmp_path}/sp")
    names = {path.name for path in (tmp_path / "sp").iterdir()}
    assert names == {"_metadata", *(file.path for file in info.manifest.files())}
    assert len(names) > 3
    assert info.manifest.kind == "savepoint"
    assert info.total_bytes == sum((tmp_path / "sp" / name).stat().st_size for name in names - {"_metadata"})
    savepoint, number = locate_checkpoint(f"{tmp_path}/sp/_metadata")
    assert verify(savepoint, savepoint.load(number)).problems == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_clocks_and_timers_come_along(places, tmp_path, backend):
    clock = FakeClock(1000.0)
    stores = Stores(places, auto_complete=True, clock=clock)
    store = stores.open(backend, None)
    short, timers = store.value_state("short", int, ttl="10s"), store.timers("timers")
    for key in KEYS:
        store.set_current_key(key)
        short.update(1)
        timers.register(1500.0)
    store.savepoint(str(tmp_path / "sp"))
    clock.advance(10)
    restored = Stores(places, job="other", auto_complete=True, clock=clock).open(backend, str(tmp_path / "sp"))
    short, timers = restored.value_state("short", int, ttl="10s"), restored.timers("timers")
    for key in KEYS:
        restored.set_current_key(key)
        assert short.value() is None
    assert timers.next_time() == 1500.0
    assert sorted(key for _, key in timers.due(1500.0)) == sorted(KEYS)
    restored.release()
    stores.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_savepoint_of_a_store_that_goes_on_has_nothing_of_what_came_after(stores, elsewhere, tmp_path, backend):
    stores.checkpoints = tmp_path / "checkpoints"
    store = stores.open(backend, "none", "checkpointing.base-min-size=1kb", "checkpointing.num-retained=1")
    fill(store, 0, 60)
    info = store.checkpoint({"position": 1})
    expected = content(store, KEYS)
    pending = store.begin_savepoint(info, str(tmp_path / "sp"))
    for start in range(0, 100, 20):  # with new bases, whose making would have the old ones collected
        fill(store, start, start + 40 if start < 80 else 120)
        store.checkpoint({"position": 2})
        assert store.collected()
    assert (store.checkpoints.retained(), store.checkpoints.load(1)) == ([6], info.manifest)
    saved = pending.finish()
    assert saved.epoch == info.epoch
    assert content(elsewhere.open(backend, saved.path), KEYS) == expected
    store.checkpoint()
    assert store.collected()
    assert store.checkpoints.retained() == [7]
    assert not store.checkpoints.storage.exists("job/chk-1/_metadata")


def test_a_savepoint_that_is_begun_while_the_collector_looks_for_what_may_go(stores, tmp_path, monkeypatch):
    store = stores.open("memory", "none", "checkpointing.num-retained=1")
    fill(store, 0, 60)
    info = store.checkpoint()
    assert store.collected()
    checkpoints, begun = store.checkpoints, []

    def retained():
        if not begun:
            begun.append(store.begin_savepoint(info, str(tmp_path / "sp")))
            store.checkpoint()
            assert store.collected()
        return CheckpointStorage.retained(checkpoints)

    monkeypatch.setattr(checkpoints, "retained", retained)
    found = survey(checkpoints, keep=1)
    assert (sorted(found.manifests), found.newest, found.doomed) == ([1, 2], [2], [])
    assert begun[0].finish().epoch == info.epoch


def test_the_chain_of_checkpoints_goes_on(stores, tmp_path):
    store = stores.open("rocksdb", "none")
    fill(store, 0, 120)
    store.checkpoint()
    store.savepoint(str(tmp_path / "sp"))
    fill(store, 0, 1)
    info = store.checkpoint()
    assert info.checkpoint_id == 3  # a savepoint is made of a checkpoint, and has no number of its own
    assert info.uploaded_bytes < info.total_bytes / 5
    expected = content(store, KEYS)
    store.close()
    shutil.rmtree(tmp_path / "sp")
    stores.forget_local()
    assert content(stores.open("rocksdb"), KEYS) == expected


def test_a_savepoint_is_never_replaced_nor_collected(embedded, tmp_path):
    store = embedded.open("memory", None, "checkpointing.num-retained=1")
    fill(store, 0, 10)
    before = store.savepoint(str(embedded.checkpoints / "sp"))
    fill(store, 0, 20)
    for error in (AlreadyExistsError, FileExistsError):
        with pytest.raises(error, match="there is a savepoint; choose another folder"):
            store.savepoint(str(embedded.checkpoints / "sp"))
    for _ in range(3):
        store.checkpoint()
    savepoint, number = locate_checkpoint(before.path)
    assert savepoint.load(number) == before.manifest
    assert verify(savepoint, before.manifest).problems == []
    assert CheckpointStorage.jobs(LocalStorage(embedded.checkpoints)) == ["job"]


def test_what_an_interrupted_savepoint_left_is_replaced(embedded, tmp_path, monkeypatch):
    store = embedded.open("memory", None)
    fill(store, 0, 120)
    original, calls = LocalStorage.write, []

    def failing(storage, name, data):
        if name.endswith(".seg") and str(storage.root) == str(tmp_path / "sp"):
            calls.append(name)
            if len(calls) == 3:
                raise UnavailableError("storage", name, "cut")
        original(storage, name, data)

    monkeypatch.setattr(LocalStorage, "write", failing)
    with pytest.raises(UnavailableError, match="cut"):
        store.savepoint(str(tmp_path / "sp"))
    assert len(calls) == 3
    with pytest.raises(CheckpointNotFoundError, match="not completed"):
        locate_checkpoint(str(tmp_path / "sp"))
    fill(store, 0, 110)
    info = store.savepoint(str(tmp_path / "sp"))
    names = {path.name for path in (tmp_path / "sp").iterdir()}
    assert names == {"_metadata", *(file.path for file in info.manifest.files())}


def test_of_two_that_save_into_one_folder_one_wins(embedded, places, tmp_path):
    store, other = embedded.open("memory", None), Stores(places, job="other", auto_complete=True).open("memory", None)
    fill(store, 0, 120)
    fill(other, 0, 60)
    first = store.begin_savepoint(store.checkpoint(), str(tmp_path / "sp"))
    copying_first = copying.copy_entries

    def second_comes_in_between(source, target, show=None):
        copying_first(source, target, show)
        other.savepoint(str(tmp_path / "sp"))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(AlreadyExistsError):
        patch.setattr("statestore.checkpoint.savepoint.copy_entries", once(second_comes_in_between, copying_first))
        first.finish()
    savepoint, number = locate_checkpoint(str(tmp_path / "sp"))
    manifest = savepoint.load(number)
    assert manifest.job == "other"
    assert verify(savepoint, manifest).problems == []
    other.release()


def once(first, then):
    calls = []

    def call(*arguments, **named):
        calls.append(1)
        return (first if len(calls) == 1 else then)(*arguments, **named)

    return call


def test_places_that_can_not_be(embedded, tmp_path):
    store = embedded.open("memory", None)
    fill(store, 0, 10)
    with pytest.raises(UsageError, match="called like a checkpoint"):
        store.savepoint(f"{tmp_path}/job/chk-7")
    with pytest.raises(CheckpointNotFoundError, match="no such folder"):
        locate_checkpoint(f"{tmp_path}/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="no savepoint, or one that was not completed"):
        locate_checkpoint(f"{tmp_path}/empty")


def test_a_checkpoint_can_not_be_moved_alone(embedded, tmp_path):
    store = embedded.open("memory", None)
    fill(store, 0, 10)
    info = store.checkpoint()
    for place in (tmp_path / "backup", tmp_path / "backups" / "chk-1"):
        shutil.copytree(info.path, place)
        with pytest.raises((UsageError, CorruptionError), match=r"can't be moved or copied alone.* make a savepoint"):
            embedded.open("memory", str(place), f"state.dir={tmp_path / 'other'}")


def test_a_damaged_savepoint_is_not_restored(embedded, tmp_path):
    store = embedded.open("memory", None)
    fill(store, 0, 120)
    info = store.savepoint(str(tmp_path / "sp"))
    damaged = tmp_path / "sp" / info.manifest.files()[1].path
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(CorruptionError, match=damaged.name):
        embedded.open("rocksdb", info.path, f"state.dir={tmp_path / 'other'}")
    savepoint, number = locate_checkpoint(info.path)
    (problem,) = verify(savepoint, savepoint.load(number)).problems
    assert damaged.name in problem.file


def test_a_savepoint_on_s3(embedded, elsewhere, s3_url):
    store = embedded.open("memory", None)
    fill(store, 0, 120)
    expected = content(store, KEYS)
    info = store.savepoint(f"{s3_url}/sp-1", {"position": 1})
    with pytest.raises(AlreadyExistsError):
        store.savepoint(f"{s3_url}/sp-1")
    restored = elsewhere.open("rocksdb", info.path)
    assert (info.path, restored.restored.meta) == (f"{s3_url}/sp-1", {"position": 1})
    assert content(restored, KEYS) == expected


def test_a_savepoint_of_several_stores_restores_on_any_number_of_them(tmp_path):
    workers = []

    def opened(job, parallelism, restore, *overrides):
        places = [f"state.dir={tmp_path / job}", "state.max-parallelism=16", "checkpointing.num-retained=1"]
        config = load_config(overrides=[*places, *overrides])
        attempt, stores = None, []
        for own in split_key_groups(parallelism, 16):
            stores.append(open_store(config, job, restore=restore, key_groups=own, attempt=attempt))
            attempt = stores[0].attempt
        workers.extend(stores)
        return stores

    def worker(stores, key):
        return next(store for store in stores if store.key_group(key) in store.key_groups)

    def checkpoint(stores, meta):
        parts = [store.begin_checkpoint().upload() for store in stores]
        info = complete_parts(stores[0].checkpoints, parts, meta)
        for store in stores:
            store.complete(info)
        return info

    stores = opened("old", 2, "none")
    for n, key in enumerate(KEYS):
        handles(worker(stores, key))["map"]  # the same states everywhere
        with worker(stores, key).key(key):
            handles(worker(stores, key))["value"].update(n)
    pending = stores[0].begin_savepoint(checkpoint(stores, {"position": 1}), str(tmp_path / "sp"))
    for n, key in enumerate(KEYS):
        with worker(stores, key).key(key):
            handles(worker(stores, key))["value"].update(-n)
    checkpoint(stores, {"position": 2})
    saved = pending.finish()
    assert len(saved.manifest.parts) == 1
    heirs = opened("heir", 3, saved.path, "state-recovery.claim-mode=claim")
    for n, key in enumerate(KEYS):
        with worker(heirs, key).key(key):
            assert handles(worker(heirs, key))["value"].value() == n
    assert {store.restored.meta["position"] for store in heirs} == {1}
    checkpoint(heirs, {"position": 3})  # one checkpoint is retained: the savepoint goes
    assert heirs[0].collected()
    assert not (tmp_path / "sp" / "_metadata").exists()
    for store in workers:
        store.release()


def test_a_checkpoint_that_its_job_removes_meanwhile(stores, tmp_path):
    settings = ["num-retained=1", "base-min-size=1kb", "inline-threshold=0"]
    store = stores.open("rocksdb", "none", *[f"checkpointing.{setting}" for setting in settings])
    fill(store, 0, 60)
    info = store.checkpoint()
    for _ in range(3):  # until a new base has taken the place of all that the first one names
        fill(store, 0, 60)
        store.checkpoint()
        store._chain.wait()
    assert store.collected()
    with pytest.raises(UnavailableError, match="its job has removed it meanwhile; run it again"):
        save_checkpoint(store.checkpoints, info.manifest, str(tmp_path / "sp"), FakeClock())
