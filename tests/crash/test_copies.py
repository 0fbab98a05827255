"""Migrations, savepoints and claims, killed with SIGKILL at each of their steps, and started again."""

from __future__ import annotations

import signal

import pytest

import statestore
from statestore import CheckpointNotFoundError, Place, StateStoreError, crashpoints
from statestore.checkpoint.locating import locate_checkpoint
from tests.command import in_a_process
from tests.crash import copies
from tests.store.stores import content, handles

KEYS = [f"key-{n}" for n in range(80)]
EVERY = {"migrate.copying": (1, 3), "savepoint.copying": (1, 3), "claim.removing": (1,)}


@pytest.fixture
def source(tmp_path):
    """URL of a state with a checkpoint and more, and its content."""
    url = f"rocksdb://{tmp_path}/source"
    with statestore.open(url) as store:
        states = handles(store)
        for n, key in enumerate(KEYS):
            store.set_current_key(key)
            states["value"].update(n)
            states["map"].put_all({f"entry-{i}": i for i in range(n % 5)})
            if n == 40:
                store.checkpoint()
        store.commit({"position": 1})
        return url, content(store, KEYS)


def killed(folder, point, function, *arguments):
    """Call a function in another process, which dies at a point."""
    token = folder / "token"
    token.touch()
    ended = in_a_process(function, *arguments, cwd=folder, STATESTORE_CRASH_POINT=point, STATESTORE_CRASH_TOKEN=token)
    assert ended.code == -signal.SIGKILL, ended.err
    assert not token.exists()


def run(folder, function, *arguments):
    """Call it in another process to its end; returns what it has printed."""
    ended = in_a_process(function, *arguments, cwd=folder)
    assert ended.code == 0, ended.err
    return ended.out


def points(*prefixes):
    names = [name for name in crashpoints.NAMES if name.startswith(prefixes)]
    return [f"{name}#{hit}" for name in names for hit in EVERY.get(name, (1,))]


@pytest.mark.parametrize("point", points("migrate."))
@pytest.mark.parametrize("target", ["rocksdb", "file", "redis"])
def test_a_killed_migration_goes_on_and_is_never_taken_for_whole(source, tmp_path, redis_url, target, point):
    url, expected = source
    folder = tmp_path / "target"
    target = redis_url if target == "redis" else f"{target}://{folder}"
    place = Place(target, dir=str(folder) if target == redis_url else None)
    killed(tmp_path, point, copies.migrate, url, target, str(folder))
    if point != "migrate.completed#1":
        with pytest.raises(StateStoreError, match="was interrupted: run it again"):
            statestore.open(place.url, dir=place.dir)
        resumed_at = int(run(tmp_path, copies.migrate, url, target, str(folder)))
        # What RocksDB was told to keep is kept, and the others keep everything.
        assert resumed_at > 0 or point in ("migrate.begun#1", "migrate.copying#1")
    with statestore.open(place.url, dir=place.dir) as store:
        assert store.restored.meta == {"position": 1}
        assert content(store, KEYS) == expected


@pytest.mark.parametrize("point", points("savepoint."))
@pytest.mark.parametrize("copy", [copies.savepoint, copies.migrate])
def test_a_killed_savepoint_is_none_and_is_completed_over(source, tmp_path, copy, point):
    url, expected = source
    arguments = [copy, url, str(tmp_path / "sp")]
    killed(tmp_path, point, *arguments)
    if point != "savepoint.completed#1":
        with pytest.raises(CheckpointNotFoundError, match="not completed"):
            locate_checkpoint(str(tmp_path / "sp"))
        run(tmp_path, *arguments)
        savepoint, number = locate_checkpoint(str(tmp_path / "sp"))
        names = {path.name for path in (tmp_path / "sp").iterdir()}
        assert names == {"_metadata", *(entry.path for entry in savepoint.load(number).files())}
    with statestore.open("memory://", restore=str(tmp_path / "sp")) as store:
        assert content(store, KEYS) == expected


@pytest.mark.parametrize("point", [*points("claim."), "recovery.loaded#1", "checkpoint.manifest-written#1"])
def test_a_claim_survives_a_kill(source, tmp_path, point):
    url, expected = source
    with statestore.open(url) as store:
        store.savepoint(str(tmp_path / "sp"))
    killed(tmp_path, point, copies.claim, str(tmp_path / "sp"), str(tmp_path / "heir"))
    is_claimed = point != "recovery.loaded#1"
    run(tmp_path, copies.go_on if is_claimed else copies.claim, str(tmp_path / "sp"), str(tmp_path / "heir"))
    assert list((tmp_path / "sp").iterdir()) == []
    with statestore.open(f"rocksdb://{tmp_path}/heir") as store:
        assert content(store, KEYS) == expected
