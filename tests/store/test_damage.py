"""Every kind of damage to the newest checkpoint gives way to the one before, loudly; nothing expected is silently empty."""

from __future__ import annotations

import logging
import shutil

import pytest

from statestore import CorruptionError, StateStoreError, UnavailableError, UsageError
from statestore.segment import SegmentReader
from tests.conftest import BACKENDS
from tests.store.stores import content, handles

KEYS = [f"key-{n}" for n in range(200)]
FILES = "checkpointing.inline-threshold=0"
"""Every delta is a file of its own, which can be damaged."""


def fill(store, start, stop, position):
    for n in range(start, stop):
        store.set_current_key(KEYS[n])
        handles(store)["value"].update(1000 * position + n)
        handles(store)["list"].add("x" * (n % 50))
    return store.checkpoint({"position": position})


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x20
    path.write_bytes(bytes(data))


def damage(kind, folder, info):
    """Do it to a file that only the newest checkpoint has."""
    metadata = folder / f"chk-{info.checkpoint_id}" / "_metadata"
    delta = folder / info.manifest.parts[0].deltas[-1].path
    match kind:
        case "manifest flipped":
            flipped(metadata, 100)
        case "manifest truncated":
            truncated(metadata)
        case "manifest empty":
            metadata.write_bytes(b"")
        case "manifest of another":
            shutil.copy(folder / f"chk-{info.checkpoint_id - 1}" / "_metadata", metadata)
        case "delta missing":
            delta.unlink()
        case "delta truncated":
            truncated(delta)
        case "delta flipped":
            flipped(delta, delta.stat().st_size // 2)
        case "delta a symbolic link":
            delta.rename(delta.with_suffix(".moved"))
            delta.symlink_to(delta.with_suffix(".moved"))


KINDS = (
    "manifest flipped",
    "manifest truncated",
    "manifest empty",
    "manifest of another",
    "delta missing",
    "delta truncated",
    "delta flipped",
    "delta a symbolic link",
)


@pytest.mark.parametrize("backend", ["memory", "rocksdb"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_gives_way_to_the_one_before(stores, caplog, backend, kind):
    store = stores.open(backend, "none", FILES)
    fill(store, 0, 100, 1)
    expected = content(store, KEYS)
    info = fill(store, 50, 200, 2)
    store.close()
    stores.forget_local()
    damage(kind, stores.checkpoints / "job", info)
    with caplog.at_level(logging.ERROR):
        restored = stores.open(backend)
    assert restored.restored.meta == {"position": 1}
    assert content(restored, KEYS) == expected
    assert "checkpoint 2 can't be" in caplog.text
    again = fill(restored, 0, 10, 3)
    assert again.checkpoint_id == 3
    expected = content(restored, KEYS)
    restored.close()
    stores.forget_local()
    assert content(stores.open(backend), KEYS) == expected


@pytest.mark.parametrize("retained", [2, 1000])
@pytest.mark.parametrize("backend", ["memory", "rocksdb"])
@pytest.mark.parametrize("place", ["header", "block", "index", "filter", "truncated", "missing"])
def test_a_damaged_base_gives_way_to_a_checkpoint_without_it_if_there_is_any(stores, caplog, backend, place, retained):
    settings = [FILES, "checkpointing.base-min-size=1b", "checkpointing.base-ratio=1000"]
    store = stores.open("memory", "none", *settings, f"checkpointing.num-retained={retained}")
    info = fill(store, 0, 100, 1)
    while base_of(info) is None:  # it is made in the background
        older, info = info, fill(store, 0, 1, 2)
    newest = fill(store, 50, 200, 3)
    assert base_of(newest) == base_of(info)
    segment = SegmentReader(store.checkpoints.storage, f"job/{base_of(info)}")
    store.close()
    path = stores.checkpoints / "job" / base_of(info)
    size, (_, offset, length, *_) = path.stat().st_size, segment._blocks[0]
    match place:
        case "header":
            flipped(path, 2)
        case "block":
            flipped(path, offset + length // 2)
        case "index":
            flipped(path, offset + length + 10)
        case "filter":
            flipped(path, size - 30)
        case "truncated":
            truncated(path)
        case "missing":
            path.unlink()
    stores.forget_local()
    with caplog.at_level(logging.ERROR):
        if retained == 2:
            with pytest.raises(CorruptionError, match="base-"):
                stores.open(backend)
        else:
            assert stores.open(backend).restored.checkpoint_id == older.checkpoint_id
    assert f"checkpoint {newest.checkpoint_id} can't be restored" in caplog.text


def base_of(info):
    base = info.manifest.parts[0].base
    return base.segments[0].path if base else None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedded_store_loses_no_commit_to_a_damaged_checkpoint(embedded, backend, kind):
    """Its log may continue the damaged one only: then it says so, and goes on where the state survived."""
    store = embedded.open(backend, None, FILES)
    fill(store, 0, 100, 1)
    info = fill(store, 50, 150, 2)
    with store.key(KEYS[7]):
        handles(store)["value"].update(7)
    store.commit({"position": 3})
    expected = content(store, KEYS)
    store.close()
    damage(kind, embedded.checkpoints / "job", info)
    try:
        again = embedded.open(backend, None, FILES)
    except StateStoreError as error:
        assert isinstance(error, (CorruptionError, UsageError))
        assert embedded.open(backend, info.path.replace("chk-2", "chk-1")).restored.meta == {"position": 1}
    else:
        assert (again.restored.meta, content(again, KEYS)) == ({"position": 3}, expected)


# Nothing starts empty where something was expected


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("restore", [None, "latest"])
def test_the_checkpoints_are_gone_the_local_state_is_not(embedded, backend, restore):
    store = embedded.open(backend, None, FILES)
    fill(store, 0, 50, 1)
    with store.key(KEYS[7]):
        handles(store)["value"].update(7)
    store.commit({"position": 2})
    expected = content(store, KEYS)
    store.close()
    emptied(embedded.checkpoints)
    again = embedded.open(backend, restore)
    assert (again.restored.meta, content(again, KEYS)) == ({"position": 2}, expected)
    info = fill(again, 50, 60, 3)  # which needs a base: the log's beginning may be gone
    expected = content(again, KEYS)
    again.close()
    embedded.forget_local()
    if backend == "redis":
        embedded.open(backend, "none", "state.dir=" + str(embedded.checkpoints / "other")).close()
    assert content(embedded.open(backend, info.path), KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("restore", [None, "latest"])
def test_a_job_whose_checkpoints_are_gone_does_not_start_empty_unasked(stores, backend, restore):
    store = stores.open(backend, "none", FILES)
    fill(store, 0, 50, 1)
    store.close()
    emptied(stores.checkpoints)
    with pytest.raises(StateStoreError, match=r"are gone from|there is no checkpoint"):
        stores.open(backend, restore)
    assert content(stores.open(backend, "none", FILES), KEYS[:1])[KEYS[0]]["value"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_checkpoint_folder_does_not_start_a_job_empty_unasked(stores, tmp_path, backend):
    store = stores.open(backend, "none", FILES)
    info = fill(store, 0, 50, 1)
    expected = content(store, KEYS)
    store.close()
    stores.checkpoints = tmp_path / "another"
    for restore in (None, "latest"):
        with pytest.raises(StateStoreError):
            stores.open(backend, restore)
    assert content(stores.open(backend, info.path), KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_local_state_is_gone_the_checkpoints_are_not(stores, embedded, backend):
    for opened, word in ((stores, "--restore latest"), (embedded, "restore='latest'")):
        store = opened.open(backend, "none", FILES)
        fill(store, 0, 50, 1)
        expected = content(store, KEYS)
        store.close()
        opened.forget_local()
        with pytest.raises(UsageError, match=word):
            opened.open(backend, None, FILES)
        restored = opened.open(backend, "latest")
        assert content(restored, KEYS) == expected
        restored.close()


def test_checkpoints_without_their_manifests_are_missed(embedded):
    store = embedded.open("memory", None)
    fill(store, 0, 50, 1)
    store.close()
    embedded.forget_local()
    (embedded.checkpoints / "job" / "chk-1" / "_metadata").unlink()
    with pytest.raises(UsageError, match="are gone from"):
        embedded.open("memory", None)
    assert embedded.open("memory", "none", FILES).restored is None


def test_attempts_without_any_manifest_are_nothing_to_go_on_from(stores, monkeypatch):
    """A job that died before its first checkpoint: it has shown nothing yet, so it starts from the beginning."""
    store = stores.open("rocksdb", None)
    with monkeypatch.context() as patch:
        patch.setattr("statestore.io.LocalStorage.create", unanswered)
        with pytest.raises(UnavailableError):
            fill(store, 0, 10, 1)
    stores.crash(store)
    again = stores.open("rocksdb", None)
    assert (again.restored, again.attempt) == (None, 2)


def unanswered(storage, name, data):
    raise UnavailableError("storage", name, "no answer")
