"""Checkpoint storage that fails, or says so."""

from __future__ import annotations

import logging

import pytest

from statestore import FencedError, UnavailableError
from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import ClosedError
from statestore.io import LocalStorage
from tests.store.stores import Stores, content, handles

KEYS = ["a", "b", "c"]


def fill(store, number):
    for key in KEYS:
        store.set_current_key(key)
        handles(store)["value"].update(number)


def failing_once(monkeypatch, method, part_of_name, *, after):
    """Make one call of a storage's method raise, before or after it has done its work."""
    original, armed = getattr(LocalStorage, method), [True]

    def call(storage, name, *arguments):
        if not (armed and part_of_name in name):
            return original(storage, name, *arguments)
        armed.clear()
        if after:
            original(storage, name, *arguments)
        raise UnavailableError("storage", name, "the reply was lost")

    monkeypatch.setattr(LocalStorage, method, call)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("method", "name"), [("create", "_metadata"), ("write", "shared/")])
def test_a_failed_checkpoint_is_made_up_for_by_the_next(stores, monkeypatch, method, name, after):
    store = stores.open("rocksdb", "none", "checkpointing.inline-threshold=0")
    fill(store, 1)
    store.checkpoint({"position": 1})
    fill(store, 2)
    failing_once(monkeypatch, method, name, after=after)
    with pytest.raises(UnavailableError, match="reply was lost"):
        store.checkpoint({"position": 2})
    with store.key("c"):
        handles(store)["value"].update(3)
    info = store.checkpoint({"position": 3})
    expected = content(store, KEYS)
    store.close()
    stores.forget_local()
    restored = stores.open("rocksdb")
    assert (restored.restored.meta, restored.restored.checkpoint_id) == ({"position": 3}, info.checkpoint_id)
    assert content(restored, KEYS) == expected


class Syncs:
    """Counts the syncs of log segments, and makes one fail."""

    def __init__(self, monkeypatch):
        self.count, self.failing = 0, False
        original = LocalStorage.appender

        def appender(storage, name):
            made = original(storage, name)
            sync = made.sync

            def counted():
                self.count += 1
                if self.failing:
                    raise UnavailableError("storage", name, "Input/output error")
                sync()

            made.sync = counted
            return made

        monkeypatch.setattr(LocalStorage, "appender", appender)


@pytest.mark.parametrize("embedded", [False, True])
def test_where_processing_stands_still_nothing_is_written(places, monkeypatch, embedded):
    """The epoch is durable when its checkpoint is finished, or when there is a commit before."""
    stores, syncs = Stores(places, auto_complete=embedded), Syncs(monkeypatch)
    store = stores.open("rocksdb", "none")
    fill(store, 1)
    first = store.begin_checkpoint({"position": 1})
    assert (syncs.count, store.metrics.wal_bytes) == (0, 0)
    with store.key("a"):
        assert handles(store)["value"].value() == 1
    first.finish()
    assert syncs.count == 1
    fill(store, 2)
    pending = store.begin_checkpoint({"position": 2})
    fill(store, 3)
    store.commit({"position": 3})
    assert syncs.count == 3
    info = pending.finish()
    assert (syncs.count, info.epoch) == (3, 2)
    expected = content(store, KEYS)
    stores.crash(store)
    again = stores.open("rocksdb")
    assert again.restored.meta == {"position": 3 if embedded else 2}
    assert (content(again, KEYS) == expected) is embedded


@pytest.mark.parametrize("first_to_find_out", ["checkpoint", "commit"])
def test_a_log_that_fails_behind_the_barrier_ends_the_store(stores, monkeypatch, first_to_find_out):
    syncs = Syncs(monkeypatch)
    store = stores.open("memory", "none")
    fill(store, 1)
    store.checkpoint({"position": 1})
    fill(store, 2)
    pending = store.begin_checkpoint({"position": 2})
    syncs.failing = True
    finish, commit = pending.finish, store.commit
    for step in (finish, commit) if first_to_find_out == "checkpoint" else (commit, finish):
        with pytest.raises((UnavailableError, ClosedError), match=r"Input/output error"):
            step()
    syncs.failing = False
    with pytest.raises(ClosedError):
        store.commit()
    stores.crash(store)
    assert stores.open("memory").restored.meta == {"position": 1}


def test_a_store_that_is_closed_before_its_checkpoint_is_finished_keeps_the_epoch(places):
    stores = Stores(places, auto_complete=True)
    store = stores.open("rocksdb", "none")
    fill(store, 1)
    store.begin_checkpoint({"position": 1})
    store.close()
    again = stores.open("rocksdb")
    assert again.restored.meta == {"position": 1}
    with again.key("a"):
        assert handles(again)["value"].value() == 1


def test_a_checkpoint_that_was_given_up_and_comes_too_late_is_none(stores):
    store = stores.open("memory", "none")
    fill(store, 1)
    late = store.begin_checkpoint({"position": 1})
    store.abort(late)
    fill(store, 2)
    store.checkpoint({"position": 2})
    fill(store, 3)
    store.checkpoint({"position": 3})
    with pytest.raises(UnavailableError, match="given up"):
        late.finish()
    stores.crash(store)
    assert stores.open("memory").restored.meta == {"position": 3}


def test_old_checkpoints_that_can_not_be_removed_wait(stores, monkeypatch, caplog):
    store = stores.open("memory", "none", "checkpointing.num-retained=1")
    fill(store, 1)
    store.checkpoint()
    assert store.collected()
    failing_once(monkeypatch, "delete", "_metadata", after=False)
    with caplog.at_level(logging.WARNING):
        assert store.checkpoint().checkpoint_id == 2
        assert store.collected()
    assert "were not removed" in caplog.text
    assert store.checkpoints.retained() == [1, 2]
    store.checkpoint()
    assert store.collected()
    assert store.checkpoints.retained() == [3]


def test_a_checkpoint_of_the_attempt_before_that_comes_late(stores, tmp_path, monkeypatch):
    """It had looked for a newer attempt just before there was one: then its checkpoint stands, and the newer one begins again."""
    old = stores.open("memory", "none")
    fill(old, 1)
    old.checkpoint({"position": 1})
    fill(old, 2)
    pending = old.begin_checkpoint({"position": 2})
    elsewhere = f"state.dir={tmp_path / 'another'}"
    new = stores.open("memory", "latest", elsewhere)
    assert new.restored.meta == {"position": 1}
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStorage, "check_owner", lambda storage, attempt: None)
        pending.finish()
    fill(new, 3)
    with pytest.raises(UnavailableError, match="start again from it"):
        new.checkpoint({"position": 3})
    stores.crash(new)
    again = stores.open("memory", "latest", elsewhere)
    assert again.restored.meta == {"position": 2}
    assert again.checkpoint({"position": 3}).checkpoint_id == 3


def test_another_attempts_checkpoint_is_not_ours(stores, tmp_path):
    old = stores.open("memory", "none")
    fill(old, 1)
    old.checkpoint()
    pending = old.begin_checkpoint()
    new = stores.open("memory", "latest", f"state.dir={tmp_path / 'another'}")
    new.checkpoint()
    with pytest.raises(FencedError):
        pending.finish()
