"""Damage of a RocksDB database is an error or a rebuilding, never silence."""

from __future__ import annotations

import logging
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from statestore import ConfigError, CorruptionError, UnavailableError
from statestore.backend import BackendContext
from statestore.keys import EntryKeys
from statestore_backends.rocksdb import METRICS, RocksDBBackend
from tests.store.stores import Stores, content, handles

GROUPS = 8
KEYS = [EntryKeys(1, GROUPS).of(f"key-{n:05}".encode()) for n in range(5000)]
BATCH = {key: key * 3 for key in KEYS}


def opened(folder, **options):
    return RocksDBBackend.open(BackendContext("job", str(folder), GROUPS, 1, options))


@pytest.fixture
def stores(places):
    stores = Stores(places)
    yield stores
    stores.close()


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


MEMORY = 8 << 20


@pytest.mark.parametrize("entries_per_batch", [1000, 60_000], ids=["small-batches", "large-batches"])
def test_memory_stays_within_the_total(tmp_path, entries_per_batch):
    """Ten times as much state as memory, written, looked up and scanned, with eyes on what RocksDB has allocated."""
    backend, rng = opened(tmp_path / "db", memory="8mb"), random.Random(1)
    most, done = {"cache": 0, "buffers": 0}, threading.Event()

    def watch():
        while not done.wait(0.005):
            found = backend.metrics()
            # What write buffers take counts as used in the cache.
            most["cache"] = max(most["cache"], found["rocksdb_block_cache_usage_bytes"])
            most["buffers"] = max(most["buffers"], found["rocksdb_cur_size_all_mem_tables_bytes"])

    keys = [EntryKeys(1, GROUPS).of(b"key-%d" % n) for n in range(120_000)]
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        for first in range(0, len(keys), entries_per_batch):
            backend.apply({key: rng.randbytes(700) for key in keys[first : first + entries_per_batch]}, first + 1)
        backend.persist()
        assert all(len(value) == 700 for value in backend.get_many(rng.sample(keys, 20_000)))
        assert sum(1 for _ in backend.scan(b"", None)) == len(keys)
        done.set()
        watching.result()
    assert backend.metrics()["rocksdb_total_sst_files_size_bytes"] > 9 * MEMORY
    assert MEMORY / 4 < most["cache"] <= MEMORY
    assert 0 < most["buffers"] <= MEMORY / 2
    backend.close()


def test_a_large_batch_that_is_cut_off_can_be_applied_again(tmp_path, monkeypatch):
    backend = opened(tmp_path / "db", memory="8mb")
    batch = {key: bytes(700) for key in KEYS}
    backend.apply(dict.fromkeys(KEYS, b"old"), 1)
    commit, left = backend._commit, iter(range(5))

    def failing(writes):
        if next(left, None) is None:
            raise UnavailableError("rocksdb", "here", "disk full")
        commit(writes)

    monkeypatch.setattr(backend, "_commit", failing)
    with pytest.raises(UnavailableError):
        backend.apply(batch, 2)
    monkeypatch.undo()
    assert backend.applied_epoch() == backend.persist() == 1
    backend.close()
    backend = opened(tmp_path / "db", memory="8mb")
    assert backend.applied_epoch() == 1
    backend.apply(batch, 2)
    assert (backend.applied_epoch(), dict(backend.scan(b"", None))) == (2, batch)
    backend.close()


def test_open_files_are_bounded(tmp_path):
    backend = opened(tmp_path / "db", memory="8mb", **{"max-open-files": 20})
    for epoch in range(1, 60):
        backend.apply({EntryKeys(1, GROUPS).of(b"%d-%d" % (epoch, n)): bytes(100) for n in range(100)}, epoch)
        backend.persist()
        assert len(list(backend.scan(b"", None))) == 100 * epoch
        assert sum(path.startswith(str(tmp_path)) for path in open_files()) <= 30
    backend.close()


def open_files():
    """Paths of what this process has open; another thread may close one while they are listed."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield str(link.readlink())


def test_metrics(stores):
    store = stores.open("rocksdb", "none")
    store.set_current_key("key")
    handles(store)["value"].update(1)
    store.checkpoint()
    assert store.backend_metrics()["rocksdb_background_errors"] == 0
    assert set(store.backend_metrics()) == set(METRICS.values())
    store.close()
    assert stores.open("memory", "none").backend_metrics() == {}


def test_options(tmp_path):
    with pytest.raises(ConfigError, match=r"state.rocksdb.memory.*8mb"):
        opened(tmp_path / "x", memory="1mb")
    with pytest.raises(ConfigError, match=r"state.rocksdb.memry.*did you mean 'memory'"):
        opened(tmp_path / "x", memry="100mb")
