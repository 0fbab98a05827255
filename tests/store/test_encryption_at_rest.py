"""Encrypted stores: they live as others do, nothing readable lies about, and the right key is all that is needed."""

from __future__ import annotations

import logging
import re

import pytest

import statestore
from statestore import EncryptionKeyError
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.verify import verify
from statestore.config import EncryptionConfig
from statestore.io import Keyring, open_storage
from tests.command import statestore as command_of
from tests.conftest import BACKENDS
from tests.store.stores import Stores, content, handles

CANARY = "canary-in-the-coal-mine"
KEYS = [f"{CANARY}-{n}" for n in range(40)]
FIRST, SECOND = "a1" * 32, "b2" * 32


@pytest.fixture
def key_files(tmp_path):
    for name, key in (("first", FIRST), ("second", SECOND)):
        (tmp_path / name).write_text(key)
    return tmp_path / "first", tmp_path / "second"


@pytest.fixture
def stores(places, key_files):
    stores = Stores(places, "checkpointing.base-min-size=1kb", "checkpointing.inline-threshold=0", auto_complete=True)
    yield stores
    stores.close()


@pytest.fixture
def encrypted(key_files):
    return f"encryption.key-file={key_files[0]}"


@pytest.fixture
def rotated(key_files):
    return f"encryption.key-file={key_files[1]}", f"encryption.previous-key-files={key_files[0]}"


def fill(store, start, stop):
    states = handles(store)
    for n in range(start, stop):
        store.set_current_key(KEYS[n])
        states["value"].update(n)
        states["list"].add_all([CANARY, "x" * n])
        states["map"].put(CANARY, n)
        states["sum"].add(n)


@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("source", BACKENDS)
def test_a_life_with_encryption(stores, encrypted, source, target, places):
    store = stores.open(source, None, encrypted)
    fill(store, 0, 20)
    store.checkpoint({"position": CANARY})
    fill(store, 10, 30)
    store.commit()
    stores.crash(store)
    store = stores.open(source, None, encrypted)
    fill(store, 30, 40)
    expected = content(store, KEYS)
    info = store.checkpoint({"position": CANARY})
    store.close()
    artefacts = [path for path in places.folder.rglob("*") if path.is_file() and path.parent != places.folder]
    readable = {path for path in artefacts if CANARY.encode() in path.read_bytes()}
    assert all("rocksdb" in path.parts for path in readable), "RocksDB's own files are not encrypted; all others are"
    assert any("log" in path.parts for path in artefacts)
    assert any("shared" in path.parts for path in artefacts)
    assert (source == "filesystem") == any("segments" in path.parts for path in artefacts)
    stores.forget_local()
    restored = stores.open(target, info.path, encrypted)
    assert restored.restored.meta == {"position": CANARY}
    assert content(restored, KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_the_key_nothing_opens_and_nothing_changes(stores, encrypted, key_files, backend, places):
    store = stores.open(backend, None, encrypted)
    fill(store, 0, 20)
    info = store.checkpoint()
    fill(store, 10, 40)
    store.commit()
    expected = content(store, KEYS)
    store.close()
    before = {path: path.read_bytes() for path in stores.checkpoints.rglob("*") if path.is_file()}
    for settings, match in (
        ([], "no key is configured"),
        ([f"encryption.key-file={key_files[1]}"], "previous-key-files"),
    ):
        for restore in (None, "latest", info.path):
            with pytest.raises(EncryptionKeyError, match=match) as caught:
                stores.open(backend, restore, *settings)
            assert caught.value.key_id == Keyring([bytes.fromhex(FIRST)]).ids[0]
    assert {path: path.read_bytes() for path in stores.checkpoints.rglob("*") if path.is_file()} == before
    assert content(stores.open(backend, None, encrypted), KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_switched_on_over_state_that_is_there(stores, encrypted, backend):
    store = stores.open(backend, None)
    fill(store, 0, 20)
    store.checkpoint()
    fill(store, 20, 30)
    store.commit()
    expected = content(store, KEYS)
    store.close()
    with pytest.raises(EncryptionKeyError, match="allow-plaintext"):
        stores.open(backend, None, encrypted)
    store = stores.open(backend, None, encrypted, "encryption.allow-plaintext=true")
    assert content(store, KEYS) == expected
    fill(store, 30, 40)
    store.checkpoint()
    expected = content(store, KEYS)
    stores.crash(store)
    assert content(stores.open(backend, None, encrypted, "encryption.allow-plaintext=true"), KEYS) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_key_takes_over_with_new_bases(stores, encrypted, rotated, key_files, backend):
    store = stores.open(backend, None, encrypted)
    fill(store, 0, 40)
    store.checkpoint()
    store.close()
    store = stores.open(backend, None, *rotated, "checkpointing.num-retained=1")
    info = store.checkpoint()
    found = store.checkpoints.key_ids(info.manifest)
    ids = [Keyring([bytes.fromhex(key)]).ids[0] for key in (FIRST, SECOND)]
    assert set(found.values()) == set(ids)
    assert found[f"chk-{info.checkpoint_id}/_metadata"] == ids[1]
    while (
        ids[0] in store.checkpoints.key_ids(info.manifest).values()
    ):  # until a base that was made meanwhile is taken up
        fill(store, 0, 40)
        info = store.checkpoint()
    expected = content(store, KEYS)
    store.close()
    stores.forget_local()
    only_new = f"encryption.key-file={key_files[1]}"
    assert content(stores.open(backend, "latest", only_new), KEYS) == expected


def test_a_damaged_manifest_of_the_filesystem_backend_is_restored_over(stores, encrypted, places, caplog):
    store = stores.open("filesystem", None, encrypted)
    fill(store, 0, 40)
    store.checkpoint()
    expected = content(store, KEYS)
    store.close()
    (manifest,) = (places.folder / "local").rglob("MANIFEST")
    data = bytearray(manifest.read_bytes())
    data[-1] ^= 1
    manifest.write_bytes(data)
    with caplog.at_level(logging.ERROR):
        assert content(stores.open("filesystem", None, encrypted), KEYS) == expected
    assert re.search(r"MANIFEST.*has to be restored", caplog.text)


def test_a_damaged_hint_costs_nothing(stores, encrypted):
    store = stores.open("memory", None, encrypted)
    fill(store, 0, 40)
    store.checkpoint()
    expected = content(store, KEYS)
    store.close()
    hint = stores.checkpoints / "job" / "_latest"
    hint.write_bytes(hint.read_bytes()[:-1])
    assert content(stores.open("memory", None, encrypted), KEYS) == expected


def test_the_key_is_nowhere(stores, places, key_files, encrypted, caplog):
    with caplog.at_level(logging.DEBUG):
        store = stores.open("filesystem", None, encrypted)
        fill(store, 0, 40)
        info = store.checkpoint()
        store.close()
        with pytest.raises(EncryptionKeyError) as caught:
            stores.open("filesystem", None)
    forms = [FIRST.encode(), bytes.fromhex(FIRST)]
    texts = [
        caplog.text,
        str(caught.value),
        repr(caught.value),
        repr(store),
        repr(info),
        repr(store.checkpoints.storage.keys),
    ]
    artefacts = [path.read_bytes() for path in places.folder.rglob("*") if path.is_file() and path != key_files[0]]
    assert len(artefacts) > 4
    for data in [*artefacts, *(text.encode() for text in texts)]:
        assert not any(form in data for form in forms)


def test_checkpoints_elsewhere_are_opened_with_the_same_keys(stores, encrypted, tmp_path):
    store = stores.open("memory", None, encrypted)
    fill(store, 0, 40)
    info = store.checkpoint()
    expected = content(store, KEYS)
    store.close()
    stores.checkpoints.rename(tmp_path / "moved")  # names within are bound to what they name, not to where it lies
    path = info.path.replace(str(stores.checkpoints), str(tmp_path / "moved"))
    stores.forget_local()
    assert content(stores.open("memory", path, encrypted), KEYS) == expected
    keys = Keyring([bytes.fromhex(FIRST)])
    moved = CheckpointStorage(open_storage(str(tmp_path / "moved"), keys), "job")
    assert verify(moved, info.manifest).problems == []


def test_copies_of_encrypted_state_are_encrypted(stores, encrypted, rotated, key_files, tmp_path):
    """Savepoints and migrations, from one key to another as well; a claimed savepoint is found with its key."""
    store = stores.open("rocksdb", None, encrypted)
    fill(store, 0, 40)
    saved = store.savepoint(str(tmp_path / "sp"))
    expected = content(store, KEYS)
    store.close()
    first = EncryptionConfig(key_file=str(key_files[0]))
    second = EncryptionConfig(key_file=str(key_files[1]))
    target = tmp_path / "copy"
    with pytest.raises(EncryptionKeyError, match="no key is configured"):
        statestore.migrate(saved.path, f"file://{target}")
    statestore.migrate(
        statestore.Place(saved.path, encryption=first), statestore.Place(f"file://{target}", encryption=second)
    )
    statestore.migrate(
        statestore.Place(f"file://{target}", encryption=second),
        statestore.Place(str(tmp_path / "sp2"), encryption=second),
    )
    for folder in (tmp_path / "sp", target, tmp_path / "sp2"):
        for path in folder.rglob("*"):
            assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    stores.forget_local()
    heirs = Stores(stores._places, *rotated, "state-recovery.claim-mode=claim", job="heir", auto_complete=True)
    heir = heirs.open("memory", saved.path)
    assert content(heir, KEYS) == expected
    for _ in range(3):
        heir.checkpoint()
        heir._chain.wait()
        assert heir.collected(60)
    assert not (tmp_path / "sp" / "_metadata").exists()
    heirs.close()
    again = Stores(stores._places, f"encryption.key-file={key_files[1]}", job="again")
    assert content(again.open("memory", str(tmp_path / "sp2")), KEYS) == expected
    again.close()


def test_encrypted_state_is_read_from_outside_with_its_key(stores, encrypted, key_files, tmp_path):
    store = stores.open("memory", None, encrypted)
    fill(store, 0, 40)
    info = store.checkpoint()
    with pytest.raises(EncryptionKeyError, match="no key is configured"):
        statestore.read(info.path)
    reader = statestore.read(info.path, encryption=EncryptionConfig(key_file=str(key_files[0])))
    assert reader.state("value").to_dict() == {key: n for n, key in enumerate(KEYS)}
    shown = command_of("state", "get", info.path, "value", KEYS[7], "-D", encrypted, "--json", cwd=tmp_path)
    assert shown.json["value"] == 7
    refused = command_of("state", "get", info.path, "value", KEYS[7], cwd=tmp_path)
    assert (refused.code, CANARY in refused.err) == (2, False)
    assert "no key is configured" in refused.err
