"""`statestore savepoint` and `statestore migrate`."""

from __future__ import annotations

import pytest

import statestore as library
from tests.cli.test_errors import JOB, check
from tests.command import settings, statestore
from tests.conftest import BACKENDS
from tests.store.stores import content, handles

KEYS = [f"key-{n}" for n in range(20)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "numbers.jsonl").write_text("".join(f"{n}\n" for n in range(10)))
    return tmp_path


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_goes_on_from_a_savepoint_on_another_backend(folder, redis_url, backend):
    (folder / "numbers.jsonl").write_text("".join(f"{n}\n" for n in range(20_000)))
    (folder / "token").touch()
    crash = {"STATESTORE_CRASH_POINT": "job.batch#8", "STATESTORE_CRASH_TOKEN": folder / "token"}
    options = settings(["restart.type=none", "checkpointing.interval=1ms"])
    assert statestore("run", "job.py", *options, cwd=folder, **crash).code == 11
    made = statestore("savepoint", "numbers", "sp", "--json", cwd=folder)
    assert made.code == 0, made.err
    assert made.json["path"] == str(folder / "sp")
    assert "checkpoints/numbers/chk-" in made.json["source"]
    (folder / "sp").rename(folder / "moved")
    (folder / ".statestore").rename(folder / "gone")
    options = settings([f"state.backend={backend}", f"state.redis.url={redis_url}"])
    ended = statestore("run", "job.py", "--restore", "./moved", "--json", *options, cwd=folder)
    assert ended.code == 0, ended.err
    assert (ended.json["finished"]["events"], ended.json["finished"]["keys"]) == (20_000, 2)
    verified = statestore("checkpoint", "verify", "./moved", cwd=folder)
    assert (verified.code, "all as they were written" in verified.out) == (0, True)
    shown = statestore("checkpoint", "show", "./moved", "--json", cwd=folder).json
    assert (shown["kind"], shown["job"]) == ("savepoint", "numbers")


def test_savepoint_speaks_plainly(folder):
    assert statestore("run", "job.py", cwd=folder).code == 0
    ended = statestore("savepoint", "numbers", "sp", cwd=folder)
    assert f"{folder}/sp: 2 entries of {folder}/.statestore/checkpoints/numbers/chk-2" in ended.out
    check(statestore("savepoint", "numbers", "sp", cwd=folder), 2, f"{folder}/sp is taken", "choose another folder")
    check(statestore("savepoint", "nobody", "sp-2", cwd=folder), 7, "nobody", "no checkpoint")
    check(statestore("run", "job.py", "--restore", "./nowhere", cwd=folder), 7, "./nowhere", "no such folder")


def test_migrate(tmp_path, redis_url):
    with library.open(f"rocksdb://{tmp_path}/source") as store:
        for key in KEYS:
            with store.key(key):
                handles(store)["list"].add(key)
        store.commit()
        expected = content(store, KEYS)
    url = f"rocksdb://{tmp_path}/source"
    ended = statestore("migrate", url, redis_url, "--to-job", "moved", "--json", cwd=tmp_path)
    assert ended.code == 0, ended.err
    report = ended.json
    assert (report["entries"], report["epoch"], report["target"]) == (40, 1, redis_url)
    plain = statestore("migrate", url, "sp", "--overwrite", cwd=tmp_path)
    assert plain.out.startswith("sp: 40 entries, ")
    assert f"read back, they are as they were in {url}: hash {report['hash']}" in plain.out
    with library.open(redis_url, job="moved", dir=tmp_path / ".statestore" / "moved") as store:
        assert content(store, KEYS) == expected
    check(statestore("migrate", url, redis_url, "--to-job", "moved", cwd=tmp_path), 2, "holds state", "--overwrite")
    other = ["--to-dir", "other", "--to-checkpoint-dir", "chk", "--max-parallelism", "3"]
    assert (
        statestore("migrate", url, f"file://{tmp_path}/x", *other, "--json", cwd=tmp_path).json["max_parallelism"] == 3
    )
    check(statestore("migrate", f"rocksdb://{tmp_path}/nowhere", "sp-2", cwd=tmp_path), 7, "no such state", "--dir")
    check(statestore("migrate", url, "memory://", cwd=tmp_path), 2, "would forget")
    secret = "redis://:canary-secret@127.0.0.1:1/0"
    assert "canary" not in check(statestore("migrate", secret, "sp-2", "--dir", "source", cwd=tmp_path), 3, "redis")
