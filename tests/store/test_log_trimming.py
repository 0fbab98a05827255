"""A log segment goes only when the backend's persisted state and a complete checkpoint are past it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statestore.errors import UnavailableError
from statestore.io import LocalStorage, MemoryStorage
from statestore.testing.clock import FakeClock
from statestore.wal.log import Log
from tests.conftest import BACKENDS, SOAK_EXAMPLES
from tests.store.stores import Stores, content, handles

KEYS = ["a", "b", "c"]
STEPS = st.lists(
    st.sampled_from(["commit", "commit", "checkpoint", "failed checkpoint", "apply", "reopen", "crash"]),
    min_size=5,
    max_size=25,
)


class Watched:
    """A store, and what its log was asked to drop against what it may."""

    def __init__(self, stores, backend, patch):
        self.stores, self.backend, self.number = stores, backend, 0
        self.store = stores.open(backend, "none")
        original = Log.drop_before

        def drop_before(log, epoch):
            before = list(log.sealed)
            original(log, epoch)
            self.check([segment for segment in before if segment not in log.sealed])

        patch.setattr(Log, "drop_before", drop_before)

    def check(self, dropped):
        store = self.store
        for segment in dropped:
            newest = store.checkpoints.latest()
            covered = store.checkpoints.load(newest).epoch if newest else 0
            if store._backend.durable:
                assert segment.last_epoch < store._applier.persisted, "the backend is not past it"
                assert newest is None or segment.last_epoch < covered, "no checkpoint is past it"
            else:
                assert segment.last_epoch < covered, "no checkpoint is past it"

    def step(self, name, patch):
        match name:
            case "commit":
                self.number += 1
                with self.store.key(KEYS[self.number % 3]):
                    handles(self.store)["value"].update(self.number)
                self.store.commit()
            case "checkpoint":
                self.store.checkpoint()
            case "failed checkpoint":
                with patch.context() as failing:
                    failing.setattr(LocalStorage, "create", unanswered)
                    with pytest.raises(UnavailableError):
                        self.store.checkpoint()
            case "apply":
                self.store._applier.finish()
            case "reopen":
                self.store.close()
                self.store = self.stores.open(self.backend, None)
            case "crash":
                self.stores.crash(self.store)
                self.store = self.stores.open(self.backend, None)


def unanswered(storage, name, data):
    raise UnavailableError("storage", name, "no answer")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=SOAK_EXAMPLES or 8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_nothing_is_dropped_that_is_needed(places, tmp_path_factory, backend, steps):
    """Whatever is lost after it, backend or tail of it: all that was committed comes back."""
    places.folder = tmp_path_factory.mktemp("place")
    stores = Stores(places, "state.pending-size=1b", auto_complete=True)
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(stores, backend, patch)
        for name in steps:
            watched.step(name, patch)
        has_checkpoint = watched.store.checkpoints.latest() is not None
        expected, store = content(watched.store, KEYS), watched.store
        stores.crash(store)
        if has_checkpoint and backend in ("rocksdb", "filesystem"):  # the backend is lost, the log is not
            for path in sorted((places.folder / "local" / "job" / backend).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        watched.store = stores.open(backend, None)
        assert content(watched.store, KEYS) == expected
    stores.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_log_of_a_store_stays_small_with_checkpoints_and_is_measured(embedded, places, backend):
    clock = FakeClock()
    stores = Stores(places, "state.pending-size=1b", auto_complete=True, clock=clock)
    store = stores.open(backend, "none")
    assert (store.metrics.wal_disk_bytes, store.metrics.wal_age_seconds) == (0, 0)
    sizes = []
    for number in range(12):
        with store.key("a"):
            handles(store)["value"].update(number)
        store.commit()
        clock.advance(10)
        kept = sum(path.stat().st_size for path in (places.folder / "local" / "job" / "log").iterdir())
        assert store.metrics.wal_disk_bytes == kept
        sizes.append(kept)
        if number % 4 == 3:
            store.checkpoint()
            store._applier.finish()
            store.commit()
        # The segments of the last checkpoint and those since; a checkpoint comes every 40 seconds.
        assert 10 <= store.metrics.wal_age_seconds <= 80
    assert max(sizes[4:8]) == pytest.approx(max(sizes[8:]), rel=0.3)
    stores.close()


def test_the_age_of_a_log_counts_from_its_last_write_after_a_restart():
    clock = FakeClock()
    storage = MemoryStorage("mem", clock)
    from tests.unit.test_wal import commit

    log = Log(storage, "job", 128, clock)
    log.begin(attempt=1, epoch=0, sequence=1, previous="")
    commit(log, 1, a=1)
    begun = clock.time()
    clock.advance(10)
    commit(log, 2, a=2)
    assert (log.begun, log.size_bytes) == (begun, storage.size("000000000001.log"))
    log.seal()
    clock.advance(10)
    again = Log(storage, "job", 128, clock)
    again.recover()
    assert (again.begun, again.size_bytes) == (begun, log.size_bytes)
