"""What an opening costs and tells, and what happens when the backend does not keep up or answer."""

from __future__ import annotations

import logging

import pytest

import statestore
from statestore import CorruptionError, FencedError, RestoreProgress, UnavailableError
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.verify import verify
from statestore.io import LocalStorage, MemoryStorage
from statestore.testing.clock import FakeClock
from statestore.wal import log as log_module
from statestore_backends.memory import MemoryBackend
from statestore_backends.rocksdb import RocksDBBackend
from tests.conftest import BACKENDS
from tests.store.stores import Stores, content, handles

KEYS = [f"key-{n}" for n in range(50)]
DURABLE = [backend for backend in BACKENDS if backend != "memory"]


class TickingClock(FakeClock):
    """A second passes each time it is asked."""

    def monotonic(self):
        self.advance(1)
        return super().monotonic()


def fill(store, number):
    for key in KEYS:
        store.set_current_key(key)
        handles(store)["value"].update(number)
        handles(store)["list"].add(str(number))


@pytest.fixture
def reads(monkeypatch):
    """Names of the local files that are read, as they are."""
    names, read = [], LocalStorage.read

    def reading(storage, name, *arguments):
        names.append(name)
        return read(storage, name, *arguments)

    monkeypatch.setattr(LocalStorage, "read", reading)
    return names


@pytest.mark.parametrize("backend", DURABLE)
def test_a_restart_reads_log_and_manifest_once_and_no_state(embedded, reads, backend):
    store = embedded.open(backend, "none", "checkpointing.base-min-size=1kb")
    for number in range(3):
        fill(store, number)
        store.checkpoint()
    fill(store, 3)
    store.commit()
    store.close()
    store = embedded.open(backend, None)
    fill(store, 4)
    store.commit()
    expected = content(store, KEYS)
    embedded.crash(store)
    reads.clear()
    again = embedded.open(backend, None)
    logs = [name for name in reads if name.endswith(".log")]
    assert len(logs) == len(set(logs)) >= 2
    assert sum("_metadata" in name for name in reads) == 1
    assert not [name for name in reads if "shared/" in name]
    assert content(again, KEYS) == expected


def test_a_log_that_is_larger_than_what_is_kept_of_it(embedded, reads, monkeypatch):
    monkeypatch.setattr(log_module, "RECOVERED_MAX_BYTES", 1)
    store = embedded.open("memory", "none")
    for number in range(4):
        fill(store, number)
        store.commit()
        store._log.seal()
    expected = content(store, KEYS)
    embedded.crash(store)
    reads.clear()
    assert content(embedded.open("memory", None), KEYS) == expected
    logs = sorted(name for name in reads if name.endswith(".log"))
    assert [logs.count(name) for name in sorted(set(logs))] == [2, 2, 2, 1]


def test_older_manifests_are_read_only_when_they_are_needed(stores, reads):
    store = stores.open("rocksdb", "none", "checkpointing.inline-threshold=0")
    for number in range(3):
        fill(store, number)
        info = store.checkpoint()
    store.close()
    stores.forget_local()
    reads.clear()
    stores.open("rocksdb").close()
    assert [name for name in reads if "_metadata" in name] == ["job/chk-3/_metadata"]
    (stores.checkpoints / "job" / info.manifest.parts[0].deltas[-1].path).unlink()
    stores.forget_local()
    reads.clear()
    assert stores.open("rocksdb").restored.checkpoint_id == 2
    assert [name for name in reads if "_metadata" in name] == ["job/chk-3/_metadata", "job/chk-2/_metadata"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress_of_a_restore(embedded, tmp_path, backend, monkeypatch, redis_url):
    monkeypatch.setattr("statestore.progress.ENTRIES_PER_COUNT", 7)
    store = embedded.open("memory", "none", "checkpointing.base-min-size=1b")
    fill(store, 1)
    store.checkpoint()
    store._chain.wait()
    info = store.checkpoint()
    store.close()
    told, url = [], {"memory": "memory://", "redis": redis_url}.get(backend, f"{backend}://{tmp_path}/new")
    store = statestore.open(
        url,
        job="job",
        dir=tmp_path / "dir",
        checkpoint_dir=str(embedded.checkpoints),
        restore="latest",
        clock=TickingClock(),
        on_restore_progress=told.append,
    )
    assert len(told) > 5
    assert [progress.entries for progress in told] == sorted(progress.entries for progress in told)
    assert told[-1].entries == 150
    assert told[-1].bytes_done == told[-1].bytes_total == info.manifest.total_bytes
    assert told[-1].eta_seconds == 0
    halfway = told[len(told) // 2]
    assert 0 < halfway.bytes_done < halfway.bytes_total
    assert halfway.eta_seconds > 0
    assert content(store, KEYS[:3])["key-2"]["value"] == 1
    store.close()


def test_nothing_can_be_told_yet():
    assert RestoreProgress(0, 1000, 0, 1.0).eta_seconds is None


def test_a_store_in_memory_trims_its_log(monkeypatch):
    monkeypatch.setattr(log_module, "SEGMENT_MAX_BYTES", 1000)
    config = statestore.load_config(overrides=["state.backend=memory", "state.pending-size=1kb"])
    store = statestore.open_store(config, "store", restore=None, auto_complete=True, root=None)
    most = 0
    for number in range(100):
        fill(store, number)
        store.commit()
        store._applier.settle()
        most = max(most, len(store._log.sealed))
    assert most < 5
    store.checkpoint()  # whose base stands for what is gone
    fill(store, 100)
    info = store.checkpoint()
    expected = content(store, KEYS)
    objects = store.checkpoints.storage
    store.close()
    elsewhere = CheckpointStorage(MemoryStorage(), "store")
    elsewhere.storage.objects.update(objects.objects)
    manifest = elsewhere.load(info.checkpoint_id)
    assert verify(elsewhere, manifest).problems == []
    view = statestore.recovery.loading.CheckpointView(elsewhere, manifest)
    assert len(list(view.scan(b"", None))) >= len(KEYS) * 2
    assert expected["key-1"]["value"] == 100
    view.close()


# A backend that fails


@pytest.fixture
def failing(monkeypatch):
    """Set `failing.error` to make the memory backend's `apply` fail."""

    class Failing:
        error: Exception | None = None
        calls = 0

    failing, apply = Failing(), MemoryBackend.apply

    def failing_apply(backend, batch, epoch):
        failing.calls += 1
        if failing.error is not None:
            raise failing.error
        apply(backend, batch, epoch)

    monkeypatch.setattr(MemoryBackend, "apply", failing_apply)
    return failing


SILENT = UnavailableError("redis", "somewhere", "it does not answer")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def ticking(places, clock):
    stores = Stores(places, "state.pending-size=15kb", "state.cache-size=1kb", auto_complete=True, clock=clock)
    yield stores
    stores.close()


def commit(store, number):
    fill(store, number)
    store.commit({"number": number})
    store._applier.settle()


def test_a_backend_that_does_not_answer_is_tried_again(ticking, clock, failing, caplog):
    store = ticking.open("memory", "none")
    failing.error = SILENT
    commit(store, 1)
    assert failing.calls == 1
    fill(store, 2)
    store.commit({"number": 2})  # durable, and not disturbed by what the backend does
    assert failing.calls == 1  # not before some time has passed
    clock.advance(0.2)
    store.commit()
    store._applier.settle()
    assert failing.calls == 2
    assert "was not applied" in caplog.text
    clock.advance(0.1)
    store.commit()
    assert failing.calls == 2  # each time it waits longer
    failing.error = None
    clock.advance(60)
    store.commit()
    store._applier.settle()
    expected = content(store, KEYS)
    assert expected["key-7"]["list"] == ["1", "2"]
    ticking.crash(store)
    assert content(ticking.open("memory", None), KEYS) == expected


def test_when_there_is_no_room_for_what_waits_nothing_more_is_committed(ticking, clock, failing):
    store = ticking.open("memory", "none")
    failing.error = SILENT
    committed = 0
    with pytest.raises(UnavailableError, match="does not answer"):
        for number in range(1, 100):
            commit(store, number)
            committed = number
    assert 1 < committed < 20
    with pytest.raises(UnavailableError):  # what it would have committed is still there
        store.commit({"number": committed + 1})
    failing.error = None
    clock.advance(60)
    with pytest.raises(UnavailableError):
        store.commit({"number": committed + 1})
    store._applier.settle()
    store.commit({"number": committed + 1})
    expected = content(store, KEYS)
    assert expected["key-7"]["list"] == [str(number) for number in range(1, committed + 2)]
    ticking.crash(store)
    again = ticking.open("memory", None)
    assert again.restored.meta == {"number": committed + 1}
    assert content(again, KEYS) == expected


@pytest.mark.parametrize("error", [FencedError("somewhere", 1, 2), CorruptionError("file", "damaged")])
def test_what_does_not_pass_is_raised_before_the_next_commit(ticking, clock, failing, error):
    store = ticking.open("memory", "none")
    failing.error = error
    commit(store, 1)
    fill(store, 2)
    for _ in range(2):
        clock.advance(60)
        with pytest.raises(type(error)):
            store.commit({"number": 2})
    assert failing.calls == 1
    ticking.crash(store)
    failing.error = None
    assert ticking.open("memory", None).restored.meta == {"number": 1}


def test_a_job_is_told_at_once(places, failing, clock):
    stores = Stores(places, "state.pending-size=2kb", clock=clock)
    store = stores.open("memory", "none")
    failing.error = SILENT
    fill(store, 1)
    store.checkpoint()
    store._applier.settle()
    with pytest.raises(UnavailableError, match="does not answer"):
        store.commit()
    stores.close()


@pytest.mark.parametrize("step", ["write", "ingest"])
def test_a_disk_that_is_full_while_files_are_loaded(stores, monkeypatch, step):
    store = stores.open("memory", "none", "checkpointing.base-min-size=1kb")
    fill(store, 1)
    info = store.checkpoint()
    expected = content(store, KEYS)
    store.close()
    stores.forget_local()
    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(RocksDBBackend, "_written", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        else:
            patch.setattr("statestore_backends.rocksdb.IngestExternalFileOptions", _Broken)
        with pytest.raises((UnavailableError, RuntimeError)):
            stores.open("rocksdb", info.path)
    assert content(stores.open("rocksdb", info.path), KEYS) == expected


class _Broken:
    def __init__(self):
        raise RuntimeError("no such thing")


def test_files_that_are_missing_are_found_before_anything_is_given_up(stores, caplog):
    store = stores.open("rocksdb", "none", "checkpointing.inline-threshold=0")
    fill(store, 1)
    path = store.checkpoint().path
    fill(store, 2)
    info = store.checkpoint()
    expected = content(store, KEYS)
    store.close()
    (stores.checkpoints / "job" / info.manifest.parts[0].deltas[0].path).unlink()
    with caplog.at_level(logging.ERROR), pytest.raises(CorruptionError, match="missing"):
        stores.open("rocksdb", path)
    assert content(stores.open("rocksdb"), KEYS) == expected
