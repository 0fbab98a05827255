"""Checkpoints in a real object store: found, fenced and restored without the local disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore import FencedError
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.verify import verify
from statestore.io import open_storage
from statestore.testing.redis_server import free_port
from tests.command import ROOT, settings, statestore
from tests.conftest import BACKENDS
from tests.crash import flights
from tests.store.stores import Stores, content, handles

KEYS = [f"key-{n}" for n in range(50)]


@pytest.fixture
def on_s3(places, s3_url):
    stores = Stores(places)
    stores.checkpoints = s3_url
    yield stores
    stores.close()


def fill(store, position):
    for key in KEYS:
        store.set_current_key(key)
        handles(store)["value"].update(position)
        handles(store)["list"].add(str(position))
    return store.checkpoint({"position": position})


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoints_on_s3(on_s3, backend):
    store = on_s3.open(backend, "none", "checkpointing.base-min-size=1kb", "checkpointing.num-retained=2")
    for position in range(5):
        info = fill(store, position)
    expected = content(store, KEYS)
    store.close()
    on_s3.forget_local()
    restored = on_s3.open(backend)
    assert restored.restored.meta == {"position": 4}
    assert content(restored, KEYS) == expected
    assert restored.checkpoints.retained() == [4, 5]
    assert verify(restored.checkpoints, info.manifest).problems == []
    restored.close()
    on_s3.forget_local()
    assert on_s3.open(backend, info.path).restored.checkpoint_id == 5


def test_a_taken_over_store_completes_nothing_on_s3(on_s3, tmp_path):
    old = on_s3.open("memory", "none")
    fill(old, 1)
    new = on_s3.open("memory", "latest", f"state.dir={tmp_path / 'another'}")
    with pytest.raises(FencedError):
        fill(old, 2)
    assert new.checkpoints.latest() == 1


@pytest.mark.parametrize("kind", ["s3", "local"])
def test_every_attempt_has_one_owner(s3_url, tmp_path, kind):
    url = s3_url if kind == "s3" else str(tmp_path)
    racers = [CheckpointStorage(open_storage(url), "job") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        claimed = [number for _ in range(3) for number in pool.map(lambda racer: racer.claim_attempt(), racers)]
    assert sorted(claimed) == list(range(1, 25))


def test_the_flights_with_everything_on_s3(tmp_path, s3_url):
    """The filesystem backend and the checkpoints on S3, the local disk lost in between."""
    source = tmp_path / "flights.csv"
    source.write_text("".join(flights.lines()[:30_001]), newline="")
    token = tmp_path / "token"
    token.touch()
    options = settings(
        [
            "state.backend=filesystem",
            f"state.filesystem.url={s3_url}/state",
            f"checkpointing.dir={s3_url}/checkpoints",
            "checkpointing.interval=100ms",
            "restart.type=none",
        ]
    )
    job = f"{ROOT / 'examples' / 'flights.py'}:job"
    crash = {"STATESTORE_CRASH_POINT": "job.batch#60", "STATESTORE_CRASH_TOKEN": token}
    assert statestore("run", job, *options, cwd=tmp_path, FLIGHTS_CSV=source, **crash).code == 11
    (tmp_path / ".statestore").rename(tmp_path / "lost")
    ended = statestore("run", job, *options, "--restore", "latest", cwd=tmp_path, FLIGHTS_CSV=source)
    assert ended.code == 0, ended.err
    assert flights.written(tmp_path / "out" / "flights") == flights.expected(30_000)
    assert "canary-secret" not in ended.err + ended.out


def test_an_unreachable_object_store(tmp_path):
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_MAX_ATTEMPTS": "1",
    }
    job = f"{ROOT / 'examples' / 'flights.py'}:job"
    ended = statestore("run", job, "-D", "checkpointing.dir=s3://nowhere/x", cwd=tmp_path, **variables)
    assert ended.code == 3, ended.err
    (line,) = ended.err.splitlines()
    assert "storage unavailable at s3://nowhere/x" in line
    assert "canary" not in line
