"""What an earlier version has written is read for ever, on every backend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from statestore.io import EncryptedAppendStorage, LocalStorage
from statestore.keys import split_entry
from statestore.testing.clock import FakeClock
from statestore.wal.log import Log
from tests.conftest import BACKENDS
from tests.formats.write import APPENDED, ENCRYPTED, ENCRYPTION_KEYS, STORED_KEYS, encoded_keys
from tests.store.stores import Stores, content

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if path.name.startswith("v"))


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def golden(request):
    return request.param


@pytest.fixture
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("folder", [".", "native"])
def test_checkpoints(golden, expected, places, tmp_path, backend, folder):
    shutil.copytree(golden / folder / "checkpoints", tmp_path / "checkpoints")
    stores = Stores(places, "state.max-parallelism=4", job="golden")
    try:
        store = stores.open(backend)
        assert (store.restored.checkpoint_id, store.restored.meta) == (expected["checkpoint"], expected["meta"])
        assert content(store, STORED_KEYS) == expected["state"]
    finally:
        stores.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_savepoints(golden, expected, places, backend):
    stores = Stores(places, "state.max-parallelism=4", job="other")
    try:
        store = stores.open(backend, str(golden / "savepoint"))
        assert store.restored.meta == expected["meta"]
        assert content(store, STORED_KEYS) == expected["state"]
    finally:
        stores.close()


def test_logs(golden, expected, tmp_path):
    shutil.copytree(golden / "log", tmp_path / "log")
    log = Log(LocalStorage(tmp_path / "log"), "golden", 4, FakeClock())
    log.recover()
    groups = list(log.groups(0))
    assert groups[-1].commit.meta == expected["meta"]
    entries = [key for group in groups for part in group.entries() for key in part]
    assert entries
    assert {split_entry(entry)[0] for entry in entries} <= set(range(4))


def test_keys(expected):
    assert encoded_keys() == expected["keys"]


def test_encrypted_objects(golden):
    storage = EncryptedAppendStorage(LocalStorage(golden / "encrypted"), ENCRYPTION_KEYS)
    assert {name: storage.read(name) for name in storage.list()} == {**ENCRYPTED, "appended": b"".join(APPENDED)}
