"""Migration between any two places: the same state, compared, resumable, and never half."""

from __future__ import annotations

import shutil

import pytest

import statestore
from statestore import (
    AlreadyExistsError,
    CheckpointNotFoundError,
    CorruptionError,
    Place,
    UnavailableError,
    UsageError,
    copying,
)
from statestore.checkpoint.locating import locate_checkpoint
from statestore.checkpoint.savepoint import SavepointWriter
from statestore.checkpoint.verify import verify
from statestore.migration.target import BackendTarget
from statestore.testing.clock import FakeClock
from tests.store.stores import EMPTY, content, handles

KEYS = [f"key-{n}" for n in range(80)]
DURABLE = ("rocksdb", "file", "filesystem", "redis")
KINDS = (*DURABLE, "memory", "checkpoint", "savepoint")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(copying, "PIECE_ENTRIES", 100)


@pytest.fixture
def place_of(tmp_path, redis_url):
    """Where a backend keeps a state of some name."""

    def place(backend, name):
        folder = str(tmp_path / name)
        if backend == "filesystem":
            return Place(f"filesystem+file://{folder}-files", name, folder)
        if backend == "redis":
            return Place(redis_url, name, folder)
        return Place(f"{backend}://{folder}", name)

    return place


def opened(place, **options):
    return statestore.open(place.url, job=place.job, dir=place.dir, **options)


def fill(store, start, stop):
    states = handles(store)
    for n in range(start, stop):
        store.set_current_key(KEYS[n])
        states["value"].update(n)
        states["list"].add_all([str(n), "x" * (n % 7)] * (n % 20))
        states["map"].put_all({f"entry-{i}": i for i in range(n % 5)})
        states["sum"].add(n)


@pytest.fixture
def made(place_of, tmp_path):
    """Makes a state of one kind; its place and content."""

    def make(kind):
        place = place_of("rocksdb" if kind in ("checkpoint", "savepoint") else kind, "source")
        with opened(place) as store:
            fill(store, 0, 50)
            info = store.checkpoint({"position": 1})
            if kind == "savepoint":
                info = store.savepoint(str(tmp_path / "sp"))
            if kind not in ("checkpoint", "savepoint"):
                fill(store, 30, 80)
                store.commit({"position": 2})
            epoch, expected = store._epoch, content(store, KEYS)
        return Place(info.path) if kind in ("checkpoint", "savepoint") else place, epoch, expected

    return make


@pytest.mark.parametrize("target", DURABLE)
@pytest.mark.parametrize("source", KINDS)
def test_every_place_to_every_backend(made, place_of, source, target):
    origin, epoch, expected = made(source)
    place = place_of(target, "target")
    report = statestore.migrate(origin, place)
    assert (report.epoch, report.resumed_at) == (epoch, 0)
    with opened(place) as store:
        assert store.restored.epoch == epoch
        assert store.restored.meta == {"position": 2 if source in (*DURABLE, "memory") else 1}
        assert content(store, KEYS) == expected
        fill(store, 0, 10)
        store.commit()
        expected = content(store, KEYS)
    with opened(place) as store:
        assert store.restored.epoch == epoch + 1
        assert content(store, KEYS) == expected
        store.checkpoint()
    if source in DURABLE:
        with opened(origin) as store:
            assert store.restored.epoch == epoch


@pytest.mark.parametrize("source", KINDS)
def test_every_place_to_a_savepoint(made, place_of, tmp_path, source):
    origin, epoch, expected = made(source)
    report = statestore.migrate(origin, str(tmp_path / "copy"))
    savepoint, number = locate_checkpoint(str(tmp_path / "copy"))
    manifest = savepoint.load(number)
    assert verify(savepoint, manifest).problems == []
    assert (manifest.kind, manifest.epoch) == ("savepoint", epoch)
    assert sum(segment.entries for segment in manifest.parts[0].base.segments) == report.entries
    with opened(place_of("redis", "target"), restore=str(tmp_path / "copy")) as store:
        assert content(store, KEYS) == expected


@pytest.mark.parametrize("target", DURABLE)
def test_the_same_entries_have_the_same_hash_wherever_they_are(made, place_of, tmp_path, target):
    origin, _, _ = made("rocksdb")
    first = statestore.migrate(origin, place_of(target, "target"))
    second = statestore.migrate(place_of(target, "target"), str(tmp_path / "copy"))
    assert (first.hash, first.entries) == (second.hash, second.entries)
    assert first.entries > 300


@pytest.mark.parametrize("groups", [1, 7, 128, 300])
@pytest.mark.parametrize("target", DURABLE)
def test_another_number_of_key_groups(place_of, target, groups):
    clock = FakeClock(1000.0)
    with opened(place_of("rocksdb", "source"), max_parallelism=16, clock=clock) as store:
        fill(store, 0, 80)
        timers = store.timers("timers")
        for n, key in enumerate(KEYS):
            store.set_current_key(key)
            timers.register(2000.0 + n)
        store.commit()
        expected = content(store, KEYS)
    statestore.migrate(place_of("rocksdb", "source"), place_of(target, "target"), max_parallelism=groups)
    with opened(place_of(target, "target"), max_parallelism=groups, clock=clock) as store:
        assert content(store, KEYS) == expected
        assert [key for _, key in store.timers("timers").due(3000.0)] == KEYS
        assert store.count_keys() == 80


def interrupted(monkeypatch, after, owner, method="apply"):
    """Make the target fail after some pieces."""
    original, calls = getattr(owner, method), []

    def failing(backend, *arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise UnavailableError("backend", "here", "cut")
        return original(backend, *arguments)

    monkeypatch.setattr(owner, method, failing)


@pytest.mark.parametrize("target", DURABLE)
def test_an_interrupted_migration_is_refused_until_it_has_gone_on(made, place_of, monkeypatch, target):
    origin, epoch, expected = made("memory")
    place = place_of(target, "target")
    with monkeypatch.context() as patch:
        interrupted(patch, 3, BackendTarget, "write")
        with pytest.raises(UnavailableError, match="cut"):
            statestore.migrate(origin, place)
    with pytest.raises(UsageError, match="was interrupted: run it again"):
        opened(place)
    with pytest.raises(CheckpointNotFoundError):
        opened(place, restore="latest")
    report = statestore.migrate(origin, place)
    assert report.resumed_at == 200
    with opened(place) as store:
        assert store.restored.epoch == epoch
        assert content(store, KEYS) == expected
    with pytest.raises(AlreadyExistsError):
        statestore.migrate(origin, place)


def test_an_interrupted_savepoint_goes_on(made, tmp_path, monkeypatch):
    origin, _, _ = made("redis")
    with monkeypatch.context() as patch:
        interrupted(patch, 3, SavepointWriter, "write")
        with pytest.raises(UnavailableError, match="cut"):
            statestore.migrate(origin, str(tmp_path / "copy"))
    report = statestore.migrate(origin, str(tmp_path / "copy"))
    assert report.resumed_at == 300
    assert statestore.migrate(str(tmp_path / "copy"), str(tmp_path / "again")).hash == report.hash


@pytest.mark.parametrize("target", ["rocksdb", "savepoint"])
def test_a_source_that_has_changed_is_copied_anew(made, place_of, tmp_path, monkeypatch, target):
    origin, _, _ = made("file")
    place = Place(str(tmp_path / "copy")) if target == "savepoint" else place_of(target, "target")
    with monkeypatch.context() as patch:
        interrupted(patch, 3, SavepointWriter if target == "savepoint" else BackendTarget, "write")
        with pytest.raises(UnavailableError, match="cut"):
            statestore.migrate(origin, place)
    with opened(origin) as store:
        fill(store, 0, 80)
        store.commit()
        expected = content(store, KEYS)
    assert statestore.migrate(origin, place).resumed_at == 0
    if target == "savepoint":
        names = {path.name for path in (tmp_path / "copy").iterdir()}
        savepoint, number = locate_checkpoint(place.url)
        assert names == {"_metadata", *(entry.path for entry in savepoint.load(number).files())}
        options, place = {"restore": place.url}, place_of("rocksdb", "target")
    else:
        options = {}
    with opened(place, **options) as store:
        assert content(store, KEYS) == expected


@pytest.mark.parametrize("target", DURABLE)
def test_a_copy_that_differs_is_noticed_and_not_kept(made, place_of, monkeypatch, target):
    origin, _, expected = made("memory")
    place, original = place_of(target, "target"), BackendTarget.write

    def altering(self, piece, progress):
        original(self, [(key, value + b"?") for key, value in piece[:1]] + piece[1:], progress)

    with monkeypatch.context() as patch:
        patch.setattr(BackendTarget, "write", altering)
        with pytest.raises(CorruptionError, match=r"hash \w{32}\).*begins anew"):
            statestore.migrate(origin, place)
    with pytest.raises(UsageError, match="was interrupted"):
        opened(place)
    assert statestore.migrate(origin, place).resumed_at == 0
    with opened(place) as store:
        assert content(store, KEYS) == expected


@pytest.mark.parametrize("old_groups", [128, 64, 200])
@pytest.mark.parametrize("target", DURABLE)
def test_state_is_overwritten_only_when_told_so(made, place_of, target, old_groups):
    origin, _, expected = made("memory")
    place = place_of(target, "target")
    with opened(place, max_parallelism=old_groups) as store:
        fill(store, 0, 80)
        store.set_current_key("of old")
        handles(store)["value"].update(1)
        info = store.checkpoint()
        before = content(store, KEYS)
    with pytest.raises(AlreadyExistsError, match="--overwrite"):
        statestore.migrate(origin, place)
    with opened(place, max_parallelism=old_groups) as store:
        assert content(store, KEYS) == before
    statestore.migrate(origin, place, overwrite=True)
    with opened(place) as store:
        assert content(store, [*KEYS, "of old"]) == {**expected, "of old": EMPTY}
        assert store.restored.checkpoint_id == info.checkpoint_id + 1
    shutil.rmtree(f"{place.dir or place.url.partition('://')[2]}/log")
    with opened(place, restore="latest") as store:  # the old checkpoints are not the newest any more
        assert content(store, KEYS) == expected


def test_a_savepoint_is_overwritten_only_when_told_so(made, tmp_path):
    origin, _, _ = made("savepoint")
    first = statestore.migrate(origin, str(tmp_path / "copy"))
    with pytest.raises(AlreadyExistsError):
        statestore.migrate(origin, str(tmp_path / "copy"))
    assert statestore.migrate(origin, str(tmp_path / "copy"), overwrite=True).hash == first.hash


def test_a_source_in_use_is_refused(made, tmp_path):
    origin, _, _ = made("rocksdb")
    with opened(origin), pytest.raises(UnavailableError, match=r"process \d+ uses it"):
        statestore.migrate(origin, str(tmp_path / "copy"), clock=FakeClock())


def test_sources_that_are_not_there(place_of, tmp_path):
    target = str(tmp_path / "copy")
    with pytest.raises(CheckpointNotFoundError, match="no such state"):
        statestore.migrate(place_of("rocksdb", "nowhere"), target)
    assert not (tmp_path / "nowhere").exists()
    opened(place_of("rocksdb", "empty")).close()
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint"):
        statestore.migrate(place_of("rocksdb", "empty"), target)
    with pytest.raises(UsageError, match="keeps nothing"):
        statestore.migrate("memory://", target)


def test_targets_that_can_not_be(made, place_of, tmp_path):
    origin, epoch, expected = made("rocksdb")
    with pytest.raises(UsageError, match="would forget"):
        statestore.migrate(origin, "memory://")
    with pytest.raises(UsageError, match="would forget"):
        statestore.migrate(origin, place_of("memory", "target"))
    with pytest.raises(UsageError, match="share the folder"):
        statestore.migrate(origin, place_of("file", "source"))
    with pytest.raises(UsageError, match="make the savepoint of it"):
        statestore.migrate(origin, str(tmp_path / "copy"), max_parallelism=7)
    with pytest.raises(UsageError, match="from 1 to"):
        statestore.migrate(origin, place_of("redis", "target"), max_parallelism=0)
    statestore.migrate(origin, str(tmp_path / "copy"))
    with pytest.raises(UsageError, match="are one"):
        statestore.migrate(str(tmp_path / "copy"), f"{tmp_path}/copy/", overwrite=True)
    with opened(origin) as store:
        assert (store.restored.epoch, content(store, KEYS)) == (epoch, expected)


def test_a_server_is_not_overwritten_with_itself(made, tmp_path):
    origin, _, expected = made("redis")
    with pytest.raises(UsageError, match="are one"):
        statestore.migrate(origin, Place(origin.url, origin.job, str(tmp_path / "other")), overwrite=True)
    with opened(origin) as store:
        assert content(store, KEYS) == expected


def test_a_migrated_state_of_one_epoch_that_is_lost_is_missed(place_of, tmp_path):
    with opened(place_of("rocksdb", "source")) as store:
        fill(store, 0, 10)
        assert store.commit() == 1
    statestore.migrate(place_of("rocksdb", "source"), place_of("rocksdb", "target"))
    shutil.rmtree(tmp_path / "target" / "rocksdb")
    with pytest.raises(CorruptionError, match="lost its state"):
        opened(place_of("rocksdb", "target"))


def test_progress_is_told(made, place_of):
    told = []
    statestore.migrate(made("rocksdb")[0], place_of("file", "target"), show=lambda *what: told.append(what))
    for phase in ("copy", "verify"):
        shares = [share for name, share, _ in told if name == phase]
        assert shares == sorted(shares)
        assert len(shares) > 3
        assert shares[-1] == 1.0
    assert told[0][0] == "copy"
