"""Damage of a RocksDB database is an error or a rebuilding, never silence."""

from __future__ import annotations

import logging
import shutil

import pytest

from statestore import ConfigError, CorruptionError, UnavailableError
from statestore.backend import BackendContext
from statestore.keys import EntryKeys
from statestore_backends.rocksdb import RocksDBBackend
from tests.store.stores import Stores, content, handles

GROUPS = 8
KEYS = [EntryKeys(1, GROUPS).of(f"key-{n:05}".encode()) for n in range(5000)]
BATCH = {key: key * 3 for key in KEYS}


def opened(folder, **options):
    return RocksDBBackend.open(BackendContext("job", str(folder), GROUPS, 1, options))


@pytest.fixture
def folder(tmp_path):
    backend = opened(tmp_path / "db")
    backend.apply(BATCH, 7)
    assert backend.persist() == 7
    backend.close()
    return tmp_path / "db"


def test_what_was_persisted_is_there_with_its_marker(folder):
    backend = opened(folder)
    assert (backend.applied_epoch(), dict(backend.scan(b"", None))) == (7, BATCH)
    backend.close()


def test_what_was_not_persisted_is_gone_with_its_marker(folder, tmp_path):
    """A copy of the folder is what a killed process leaves: there is no log of RocksDB's own."""
    backend = opened(folder)
    backend.apply({KEYS[0]: b"new", KEYS[1]: None}, 8)
    shutil.copytree(folder, tmp_path / "copy")
    assert all(log.stat().st_size == 0 for log in (tmp_path / "copy").glob("*.log"))
    copy = opened(tmp_path / "copy")
    assert (copy.applied_epoch(), dict(copy.scan(b"", None))) == (7, BATCH)
    copy.close()
    backend.close()


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_the_data(folder, position):
    (table,) = folder.glob("*.sst")
    data = bytearray(table.read_bytes())
    data[int(len(data) * position)] ^= 1
    table.write_bytes(data)
    backend = opened(folder)
    if backend.applied_epoch() == 0:  # what tells the marker was hit: set aside
        assert list(backend.scan(b"", None)) == []
        backend.close()
        return
    try:
        with pytest.raises(CorruptionError, match="db"):
            list(backend.scan(b"", None))
        with pytest.raises(CorruptionError, match="db"):
            backend.get_many(KEYS)
    except pytest.fail.Exception:  # the bit was in a part that neither needs: then nothing is missing
        assert dict(backend.scan(b"", None)) == BATCH
        assert backend.get_many(KEYS) == list(BATCH.values())
    finally:
        backend.close()


@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*", "*.sst"])
@pytest.mark.parametrize("damage", ["missing", "garbage", "empty"])
def test_damaged_files_are_set_aside_or_reported(folder, caplog, pattern, damage):
    for path in folder.glob(pattern):
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(b"garbage" * 100 if damage == "garbage" else b"")
    with caplog.at_level(logging.ERROR):
        try:
            backend = opened(folder)
        except CorruptionError:
            return
    try:
        found = dict(backend.scan(b"", None))
    except CorruptionError:
        return
    finally:
        backend.close()
    assert (found, backend._epoch) == ({}, 0), "neither an error nor the whole state nor an empty one to be restored"
    assert "has to be restored" in caplog.text


@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*", "*.sst"])
def test_a_job_gets_over_a_damaged_database(places, pattern):
    stores = Stores(places)
    try:
        store = stores.open("rocksdb", "none")
        for n in range(100):
            store.set_current_key(f"key-{n}")
            handles(store)["value"].update(n)
        store.checkpoint()
        store.close()
        names = [f"key-{n}" for n in range(100)]
        for path in (places.folder / "local" / "job" / "rocksdb").glob(pattern):
            path.unlink()
        expected = {name: n for n, name in enumerate(names)}
        assert {name: state["value"] for name, state in content(stores.open("rocksdb"), names).items()} == expected
    finally:
        stores.close()


def test_a_database_in_use(folder):
    holder = opened(folder)
    with pytest.raises(UnavailableError, match="another process holds the lock"):
        opened(folder, **{"lock-timeout": "0s"})
    holder.close()


def test_options(tmp_path):
    with pytest.raises(ConfigError, match=r"state.rocksdb.memry.*did you mean 'memory'"):
        opened(tmp_path / "x", memry="1mb")
