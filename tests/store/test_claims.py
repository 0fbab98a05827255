"""Claim modes: whether what was restored from elsewhere stays, and when it goes."""

from __future__ import annotations

import shutil

import pytest

import statestore
from statestore import FencedError, UnavailableError, UsageError
from statestore.checkpoint.claim import claim, remove_claimed
from statestore.checkpoint.locating import locate_checkpoint
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.verify import verify
from statestore.io import LocalStorage, MemoryStorage
from tests.conftest import BACKENDS
from tests.store.stores import Stores, content, handles

KEYS = [f"key-{n}" for n in range(50)]
CLAIM = "state-recovery.claim-mode=claim"
OWN = CheckpointStorage(MemoryStorage(), "heir")
RETAIN_2 = "checkpointing.num-retained=2"


def fill(store, number):
    for key in KEYS:
        store.set_current_key(key)
        handles(store)["value"].update(number)


@pytest.fixture
def heirs(places, tmp_path):
    """Stores of another job, elsewhere."""
    places.folder = tmp_path / "heirs"
    stores = Stores(places, RETAIN_2, job="heir")
    yield stores
    stores.close()


@pytest.fixture
def old(stores, tmp_path):
    """A store with three checkpoints."""
    stores.checkpoints = tmp_path / "checkpoints"
    store = stores.open("memory", "none")
    for number in range(3):
        fill(store, number)
        store.checkpoint({"position": number})
    return store


def is_there(path):
    checkpoints, number = locate_checkpoint(path)
    return verify(checkpoints, checkpoints.load(number)).problems == []


def made(store):
    """A checkpoint, and what is removed after it."""
    info = store.checkpoint()
    assert store.collected()
    return info


@pytest.mark.parametrize("backend", BACKENDS)
def test_unclaimed_what_was_restored_stays(old, heirs, tmp_path, backend):
    saved = old.savepoint(str(tmp_path / "sp")).path
    heir = heirs.open(backend, saved)
    for number in range(4):
        fill(heir, number)
        made(heir)
    assert is_there(saved)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_claimed_savepoint_goes_when_it_would_not_be_retained(old, heirs, tmp_path, backend):
    saved = old.savepoint(str(tmp_path / "sp"), {"position": 7}).path
    heir = heirs.open(backend, saved, CLAIM)
    fill(heir, 10)
    first = made(heir)
    assert is_there(saved)
    made(heir)
    assert list((tmp_path / "sp").iterdir()) == []
    made(heir)
    expected = content(heir, KEYS)
    assert first.manifest.claimed.path == saved
    assert heir.checkpoints.load(heir.checkpoints.latest()).claimed is None
    heir.close()
    heirs.forget_local()
    assert content(heirs.open(backend), KEYS) == expected


def test_a_claim_is_kept_over_a_restart(old, heirs, tmp_path):
    saved = old.savepoint(str(tmp_path / "sp")).path
    heir = heirs.open("rocksdb", saved, CLAIM)
    fill(heir, 10)
    made(heir)
    heirs.crash(heir)
    heir = heirs.open("rocksdb", "latest")  # the claim is in the checkpoint, whatever the configuration says now
    made(heir)
    assert not (tmp_path / "sp" / "_metadata").exists()


def test_before_the_first_checkpoint_nothing_is_claimed(old, heirs, tmp_path):
    saved = old.savepoint(str(tmp_path / "sp")).path
    heirs.crash(heirs.open("rocksdb", saved, CLAIM))
    heir = heirs.open("rocksdb", saved)
    for _ in range(3):
        made(heir)
    assert is_there(saved)


def test_what_can_not_be_removed_is_tried_again(old, heirs, tmp_path, monkeypatch, caplog):
    saved = old.savepoint(str(tmp_path / "sp")).path
    heir = heirs.open("memory", saved, CLAIM)
    made(heir)
    original = LocalStorage.delete

    def failing(storage, name):
        if name == "_metadata":
            raise UnavailableError("storage", name, "cut")
        original(storage, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", failing)
        info = made(heir)
    assert info.manifest.claimed is not None
    assert "cut" in caplog.text
    made(heir)
    assert not (tmp_path / "sp" / "_metadata").exists()


def test_what_took_its_place_stays(old, heirs, tmp_path):
    saved = old.savepoint(str(tmp_path / "sp")).path
    heir = heirs.open("memory", saved, CLAIM)
    shutil.rmtree(tmp_path / "sp")
    old.savepoint(str(tmp_path / "sp"))
    for _ in range(3):
        made(heir)
    assert is_there(saved)


def test_a_savepoint_that_the_user_removed_is_nothing_to_remove(old, heirs, tmp_path):
    heir = heirs.open("memory", old.savepoint(str(tmp_path / "sp")).path, CLAIM)
    shutil.rmtree(tmp_path / "sp")
    for _ in range(3):
        info = made(heir)
    assert info.manifest.claimed is None


def test_a_claimed_checkpoint_goes_with_the_older_ones_and_its_job_is_fenced(old, heirs):
    heir = heirs.open("memory", old.checkpoints.path_of(2), CLAIM)
    assert heir.restored.meta == {"position": 1}
    fill(heir, 10)
    with pytest.raises(FencedError):
        old.checkpoint()
    for _ in range(3):
        made(heir)
    left = CheckpointStorage(LocalStorage(old.checkpoints.storage.url), "job")
    assert left.retained() == [3]  # newer than what was claimed
    assert verify(left, left.load(3)).problems == []
    restored = Stores(heirs._places, job="job")
    restored.checkpoints = old.checkpoints.storage.url
    store = restored.open("memory")
    assert store.restored.meta == {"position": 2}
    assert content(store, KEYS)[KEYS[0]]["value"] == 2
    restored.close()


def test_a_checkpoint_of_the_own_folder_is_its_own_already(stores):
    store = stores.open("memory", "none")
    fill(store, 1)
    info = store.checkpoint()
    store.close()
    store = stores.open("memory", info.path, CLAIM)
    assert store.checkpoint().manifest.claimed is None


def test_removing_is_done_once(old, tmp_path):
    path = old.savepoint(str(tmp_path / "sp")).path
    claimed = claim(path, since=1, own=OWN)
    remove_claimed(claimed, OWN)
    remove_claimed(claimed, OWN)
    assert list((tmp_path / "sp").iterdir()) == []


def test_a_secret_is_not_kept(tmp_path):
    with pytest.raises(UsageError, match="give the secret by the environment"):
        claim("s3://user:canary@bucket/sp", since=1, own=OWN)


def test_the_embedded_store_claims_when_told_so(old, tmp_path):
    saved = old.savepoint(str(tmp_path / "sp")).path
    with statestore.open("memory://", dir=tmp_path / "heir", restore=saved, claim_mode="claim") as heir:
        assert heir.checkpoints.latest() == 1  # the opening has made it, so that the savepoint is not needed again
        made(heir)
        assert is_there(saved)
        made(heir)
        assert not (tmp_path / "sp" / "_metadata").exists()
