"""Old checkpoints and orphans go in the background of a store: nothing waits for it, nothing fails of it."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from statestore import UnavailableError
from statestore.checkpoint import collector
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.verify import verify
from statestore.io import LocalStorage
from tests.conftest import BACKENDS
from tests.store.stores import content, handles

KEYS = ["a", "b", "c"]
ONE = "checkpointing.num-retained=1"


def fill(store, number):
    for key in KEYS:
        store.set_current_key(key)
        handles(store)["value"].update(number)


def filled(store, numbers):
    for number in numbers:
        fill(store, number)
        store.checkpoint({"position": number})
        assert store.collected()


def age(stores, seconds):
    """Make all that lies in the checkpoint folder so much older."""
    for path in stores.checkpoints.rglob("*"):
        os.utime(path, (path.stat().st_atime - seconds, path.stat().st_mtime - seconds))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_newest_and_the_pinned_stay_and_restore(stores, backend):
    store = stores.open(backend, "none", "checkpointing.num-retained=2", "checkpointing.base-min-size=1b")
    filled(store, [1, 2])
    expected = content(store, KEYS)
    store.checkpoints.pin(2)
    filled(store, [3, 4, 5, 6])
    assert (store.checkpoints.retained(), store.checkpoints.restorable()) == ([5, 6], [2, 5, 6])
    for number in (2, 5, 6):
        assert verify(store.checkpoints, store.checkpoints.load(number)).problems == []
    path = store.checkpoints.path_of(2)
    assert store.metrics.removed_files > 0
    store.close()
    stores.forget_local()
    restored = stores.open(backend, path, "checkpointing.num-retained=2")
    assert content(restored, KEYS) == expected
    filled(restored, [7])
    assert restored.checkpoints.restorable() == [2, 6, 7]
    restored.checkpoints.unpin(2)
    restored.close()


def test_a_storage_that_hangs_holds_up_neither_checkpoints_nor_the_close(stores, monkeypatch, caplog):
    store = stores.open("rocksdb", "none", ONE)
    filled(store, [1])
    entered, released, delete = threading.Event(), threading.Event(), LocalStorage.delete

    def hanging(storage, name):
        if "chk-1/" in name:
            entered.set()
            released.wait()
        delete(storage, name)

    monkeypatch.setattr(LocalStorage, "delete", hanging)
    fill(store, 2)
    store.checkpoint()
    assert entered.wait(60)
    assert not store.collected(0)
    fill(store, 3)
    assert store.checkpoint({"position": 3}).checkpoint_id == 3
    monkeypatch.setattr(store, "collected", lambda: False)
    monkeypatch.setattr(collector.Collector.wait, "__defaults__", (0.01,))
    with caplog.at_level(logging.WARNING):
        store.close()
    assert "hangs, and is left behind" in caplog.text
    released.set()
    again = stores.open("rocksdb", "latest", ONE)
    assert again.restored.meta == {"position": 3}
    filled(again, [4])
    assert again.checkpoints.retained() == [4]


@pytest.mark.parametrize("method", ["delete", "write"])
def test_what_fails_is_tried_again_after_the_next_checkpoint(stores, monkeypatch, caplog, method):
    store = stores.open("memory", "none", ONE)
    filled(store, [1])
    original, armed = getattr(LocalStorage, method), [True]

    def failing(storage, name, *arguments):
        if "chk-1/" in name and armed:
            armed.clear()
            raise UnavailableError("storage", name, "no answer")
        return original(storage, name, *arguments)

    monkeypatch.setattr(LocalStorage, method, failing)
    with caplog.at_level(logging.WARNING):
        filled(store, [2])
    assert "the next checkpoint tries again" in caplog.text
    assert not armed
    filled(store, [3])
    assert store.checkpoints.retained() == [3]
    assert not [name for name in store.checkpoints.storage.list() if "_removing" in name]


def test_an_unreadable_manifest_removes_nothing_and_says_so(stores, caplog):
    store = stores.open("memory", "none", "checkpointing.num-retained=2")
    filled(store, [1, 2])
    manifest = stores.checkpoints / "job" / "chk-1" / "_metadata"
    good = manifest.read_bytes()
    manifest.write_bytes(good[:-1])
    with caplog.at_level(logging.WARNING):
        filled(store, [3, 4])
    assert "nothing is removed as long as it is there" in caplog.text
    assert store.checkpoints.retained() == [1, 2, 3, 4]
    manifest.write_bytes(good)
    filled(store, [5])
    assert store.checkpoints.retained() == [4, 5]


def test_a_leader_that_was_replaced_removes_nothing(stores, tmp_path, monkeypatch, caplog):
    old = stores.open("memory", "none", ONE)
    filled(old, [1])
    start = collector.Collector.start
    monkeypatch.setattr(
        collector.Collector, "start", lambda self, newest: None
    )  # it falls asleep between completing and removing
    fill(old, 2)
    info = old.checkpoint()
    new = stores.open("memory", "latest", f"state.dir={tmp_path / 'another'}", ONE)
    before = old.checkpoints.storage.list()
    with caplog.at_level(logging.WARNING):
        start(old._chain.collector, info.manifest)
        assert old.collected()
    assert "is fenced" in caplog.text
    assert old.checkpoints.storage.list() == before
    monkeypatch.undo()
    filled(new, [3])
    assert new.checkpoints.retained() == [3]


def leftovers(stores):
    """What kills and failures leave: uploads, a temporary file, an empty folder."""
    folder = stores.checkpoints / "job"
    for name in ("shared/base-1-99-0-ab.seg", "shared/delta-1-99-ab.log", "shared/.tmp-123456", "chk-1/.tmp-654321"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "chk-99").mkdir()
    return [folder / name for name in ("shared/base-1-99-0-ab.seg", "shared/delta-1-99-ab.log", "shared/.tmp-123456")]


def test_orphans_go_after_the_first_checkpoint_of_the_next_attempt(stores):
    store = stores.open("memory", "none", ONE)
    filled(store, [1])
    stores.crash(store)
    paths = leftovers(stores)
    young = stores.open("memory")
    filled(young, [2])
    assert all(path.exists() for path in paths)
    stores.crash(young)
    age(stores, 7200)
    never = stores.open("memory", "latest", ONE, "checkpointing.orphan-age=0")
    filled(never, [3])
    assert all(path.exists() for path in paths)
    stores.crash(never)
    store = stores.open("memory", "latest", ONE)
    filled(store, [4])
    assert not [path for path in paths if path.exists()]
    folder = stores.checkpoints / "job"
    assert not (folder / "chk-99").exists()
    assert {path.name for path in (folder / "attempts").iterdir()} == {"3", "4"}  # the third is young
    store.close()
    assert stores.open("memory").attempt == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_that_vanish_before_the_first_checkpoint_are_made_up_for(stores, backend, caplog):
    store = stores.open(backend, "none", "checkpointing.inline-threshold=0")
    filled(store, [1, 2])
    store.close()
    store = stores.open(backend)
    for path in (stores.checkpoints / "job" / "shared").iterdir():
        path.unlink()
    with caplog.at_level(logging.WARNING):
        filled(store, [3])
    assert "a new base is made in its place" in caplog.text
    expected = content(store, KEYS)
    store.close()
    stores.forget_local()
    assert content(stores.open(backend), KEYS) == expected


def test_a_checkpoint_folder_that_was_emptied_is_noticed(stores):
    store = stores.open("rocksdb", "none")
    filled(store, [1])
    for path in sorted((stores.checkpoints / "job").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    fill(store, 2)
    with pytest.raises(UnavailableError, match="was it emptied or moved"):
        store.checkpoint()


def test_a_pin_and_the_background_can_not_miss_each_other(stores, monkeypatch):
    """Pinned between the choice of what goes and its removal."""
    store = stores.open("memory", "none", ONE)
    filled(store, [1])
    write, armed = LocalStorage.write, [True]

    def pinning(storage, name, data):
        if armed and name.endswith("chk-1/_removing"):
            armed.clear()
            CheckpointStorage(store.checkpoints.storage, "job").pin(1)
        write(storage, name, data)

    monkeypatch.setattr(LocalStorage, "write", pinning)
    filled(store, [2])
    assert not armed
    assert store.checkpoints.restorable() == [1, 2]
    assert verify(store.checkpoints, store.checkpoints.load(1)).problems == []
