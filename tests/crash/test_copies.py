"""Migrations, savepoints and claims, killed with SIGKILL at each of their steps, and started again."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import statestore
from statestore import CheckpointNotFoundError, Place, StateStoreError, crashpoints
from statestore.checkpoint.locating import locate_checkpoint
from tests.command import environment
from tests.store.stores import content, handles

KEYS = [f"key-{n}" for n in range(80)]
EVERY = {"migrate.copying": (1, 3), "savepoint.copying": (1, 3), "claim.removing": (1,)}

PROGRAM = """
import sys
import statestore
from statestore import Place, copying

copying.PIECE_ENTRIES = 30
what, *arguments = sys.argv[1:]
if what == "migrate":
    source, target, folder = arguments
    target = Place(target, dir=folder) if target.startswith("redis") else target
    print(statestore.migrate(source, target).resumed_at)
elif what == "savepoint":
    source, target = arguments
    with statestore.open(source) as store:
        store.savepoint(target)
else:
    source, target = arguments
    restore = source if what == "claim" else "latest"
    with statestore.open(f"rocksdb://{target}", restore=restore, claim_mode="claim") as store:
        store.checkpoint()
        store.checkpoint()
        store.checkpoint()
"""


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


def run(*arguments, **variables):
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=60)


def killed(folder, point, *arguments):
    """Run, and die at a point."""
    token = folder / "token"
    token.touch()
    ended = run(*arguments, STATESTORE_CRASH_POINT=point, STATESTORE_CRASH_TOKEN=token)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not token.exists()


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
    killed(tmp_path, point, "migrate", url, target, folder)
    if point != "migrate.completed#1":
        with pytest.raises(StateStoreError, match="was interrupted: run it again"):
            statestore.open(place.url, dir=place.dir)
        ended = run("migrate", url, target, folder)
        assert ended.returncode == 0, ended.stderr
        # What RocksDB was told to keep is kept, and the others keep everything.
        assert int(ended.stdout) > 0 or point in ("migrate.begun#1", "migrate.copying#1")
    with statestore.open(place.url, dir=place.dir) as store:
        assert store.restored.meta == {"position": 1}
        assert content(store, KEYS) == expected


@pytest.mark.parametrize("point", points("savepoint."))
@pytest.mark.parametrize("what", ["savepoint", "migrate"])
def test_a_killed_savepoint_is_none_and_is_completed_over(source, tmp_path, what, point):
    url, expected = source
    arguments = [what, url, tmp_path / "sp", *([tmp_path] if what == "migrate" else [])]
    killed(tmp_path, point, *arguments)
    if point != "savepoint.completed#1":
        with pytest.raises(CheckpointNotFoundError, match="not completed"):
            locate_checkpoint(str(tmp_path / "sp"))
        ended = run(*arguments)
        assert ended.returncode == 0, ended.stderr
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
    killed(tmp_path, point, "claim", tmp_path / "sp", tmp_path / "heir")
    is_claimed = point != "recovery.loaded#1"
    ended = run("latest" if is_claimed else "claim", tmp_path / "sp", tmp_path / "heir")
    assert ended.returncode == 0, ended.stderr
    assert list((tmp_path / "sp").iterdir()) == []
    with statestore.open(f"rocksdb://{tmp_path}/heir") as store:
        assert content(store, KEYS) == expected
