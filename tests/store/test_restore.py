"""What is restored, from where, and what is refused."""

from __future__ import annotations

import logging

import pytest

from statestore import CheckpointNotFoundError, CorruptionError, FencedError, IncompatibleStateError, UsageError
from tests.conftest import BACKENDS
from tests.store.stores import EMPTY, content, handles

KEYS = [f"key-{n}" for n in range(300)]


def fill(store, start, stop):
    states = handles(store)
    for n in range(start, stop):
        store.set_current_key(KEYS[n])
        states["value"].update(n)
        states["list"].add_all([str(n), "x" * (n % 7)] * (n % 40))
        states["map"].put_all({f"entry-{i}": i for i in range(n % 5)})
        states["sum"].add(n)


@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("source", BACKENDS)
def test_a_checkpoint_of_each_backend_restores_on_each(stores, source, target):
    store = stores.open(source, "none", "checkpointing.base-min-size=1kb")
    fill(store, 0, 200)
    store.checkpoint({"position": 1})
    fill(store, 100, 250)
    with store.key(KEYS[7]):
        for state in handles(store).values():
            state.clear()
    store.checkpoint({"position": 2})
    fill(store, 240, 300)
    info = store.checkpoint({"position": 3})
    expected = content(store, KEYS)
    assert expected[KEYS[7]] == EMPTY
    store.close()
    stores.forget_local()
    restored = stores.open(target)
    assert (restored.restored.checkpoint_id, restored.restored.meta) == (info.checkpoint_id, {"position": 3})
    assert content(restored, KEYS) == expected
    assert restored.count_keys() == sum(state != EMPTY for state in expected.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_forgets_what_came_after_its_checkpoint(stores, backend):
    store = stores.open(backend, "none")
    fill(store, 0, 50)
    store.checkpoint({"position": 1})
    expected = content(store, KEYS)
    fill(store, 0, 100)
    store.commit({"position": 2})
    stores.crash(store)
    restored = stores.open(backend)
    assert restored.restored.meta == {"position": 1}
    assert content(restored, KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_embedded_store_keeps_every_commit(embedded, backend):
    store = embedded.open(backend, None)
    fill(store, 0, 50)
    store.checkpoint()
    fill(store, 25, 100)
    epoch = store.commit({"position": 2})
    expected = content(store, KEYS)
    fill(store, 0, 300)
    embedded.crash(store)
    restored = embedded.open(backend, None)
    assert (restored.restored.epoch, restored.restored.meta) == (epoch, {"position": 2})
    assert content(restored, KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_older_checkpoint_by_its_path(stores, backend):
    store = stores.open(backend, "none")
    fill(store, 0, 50)
    path = store.checkpoint().path
    expected = content(store, KEYS)
    fill(store, 0, 100)
    store.checkpoint()
    store.close()
    older = stores.open(backend, path)
    assert content(older, KEYS) == expected
    fill(older, 200, 210)
    third = older.checkpoint()
    assert third.checkpoint_id == 3
    expected = content(older, KEYS)
    older.close()
    stores.forget_local()
    assert content(stores.open(backend), KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_checkpoint_of_another_folder(stores, tmp_path, backend):
    store = stores.open("memory", "none")
    fill(store, 0, 50)
    path = store.checkpoint().path
    expected = content(store, KEYS)
    store.close()
    stores.forget_local()
    stores.checkpoints = tmp_path / "elsewhere"
    moved = stores.open(backend, path)
    assert content(moved, KEYS) == expected
    fill(moved, 50, 60)
    moved.checkpoint()
    expected = content(moved, KEYS)
    moved.close()
    stores.forget_local()
    (tmp_path / "checkpoints").rename(tmp_path / "gone")  # the new folder must not lean on the old one
    assert content(stores.open(backend), KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_checkpoint_gives_way_to_an_older_one_loudly(stores, backend, caplog):
    store = stores.open(backend, "none", "checkpointing.inline-threshold=0")
    fill(store, 0, 50)
    store.checkpoint({"position": 1})
    expected = content(store, KEYS)
    fill(store, 0, 100)
    newest = store.checkpoint({"position": 2})
    store.close()
    stores.forget_local()
    damaged = stores.checkpoints / "job" / newest.manifest.parts[0].deltas[-1].path
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    if backend == "redis":  # its state survives; but what a checkpoint is asked for must be readable
        stores.open(backend, "none").close()
    with caplog.at_level(logging.ERROR):
        restored = stores.open(backend)
    assert restored.restored.meta == {"position": 1}
    assert content(restored, KEYS) == expected
    assert damaged.name in caplog.text


def test_no_checkpoint_is_readable(stores):
    store = stores.open("memory", "none")
    fill(store, 0, 5)
    info = store.checkpoint()
    store.close()
    manifest = stores.checkpoints / "job" / f"chk-{info.checkpoint_id}" / "_metadata"
    manifest.write_bytes(b"{}")
    for restore in ("latest", info.path):
        with pytest.raises(CorruptionError, match=r"chk-1|no checkpoint"):
            stores.open("memory", restore)


def test_nothing_to_restore(stores, tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint"):
        stores.open("memory", "latest")
    with pytest.raises(CheckpointNotFoundError, match="no such folder"):
        stores.open("memory", f"{tmp_path}/nowhere/job/chk-1")
    with pytest.raises(UsageError, match="no checkpoint's path"):
        stores.open("memory", "checkpoint-1")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unfinished_job_is_neither_restored_nor_forgotten_unasked(stores, backend):
    store = stores.open(backend, None)
    fill(store, 0, 5)
    store.checkpoint()
    store.close()
    with pytest.raises(UsageError, match="--restore latest"):
        stores.open(backend, None)
    assert content(stores.open(backend, "none"), KEYS[:5]) == dict.fromkeys(KEYS[:5], EMPTY)


def test_a_finished_job_starts_afresh(stores):
    store = stores.open("rocksdb", None)
    fill(store, 0, 5)
    store.complete(store.begin_checkpoint(final=True).finish())
    store.close()
    assert stores.open("rocksdb", None).restored is None


def test_a_run_goes_on_from_its_own_checkpoint_whatever_was_asked(stores):
    store = stores.open("rocksdb", "none", run="first")
    fill(store, 0, 5)
    store.checkpoint({"position": 5})
    stores.crash(store)
    again = stores.open("rocksdb", "none", run="first")
    assert again.restored.meta == {"position": 5}
    stores.crash(again)
    assert stores.open("rocksdb", "none", run="second").restored is None


def test_other_key_groups_are_refused_before_anything_is_touched(stores):
    store = stores.open("rocksdb", "none")
    fill(store, 0, 5)
    store.checkpoint()
    expected = content(store, KEYS)
    store.close()
    with pytest.raises(IncompatibleStateError, match="max-parallelism = 128"):
        stores.open("rocksdb", "latest", "state.max-parallelism=64")
    assert content(stores.open("rocksdb"), KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_store_whose_job_was_taken_over_completes_nothing(stores, tmp_path, backend):
    old = stores.open(backend, "none")
    fill(old, 0, 5)
    old.checkpoint()
    # Another machine: other local folders, the same checkpoints.
    new = stores.open(backend, "latest", f"state.dir={tmp_path / 'another'}")
    expected = content(new, KEYS)
    with pytest.raises(FencedError):
        fill(old, 5, 10)
        old.checkpoint()
    assert new.checkpoints.latest() == 1
    assert content(new, KEYS) == expected
