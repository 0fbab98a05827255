"""A job that goes on with another number of workers, while it runs and from one run to the next: each event counts once."""

from __future__ import annotations

import os
import signal

import pytest

from statestore.clock import SystemClock
from statestore.config import load_config
from statestore.io import FolderLock
from statestore_runtime.deployment.leftovers import remove_leftovers
from tests.conftest import BACKENDS
from tests.running import EVENTS, PARTS, Runs, expected, wait_for


@pytest.fixture
def runs_on(tmp_path, places):
    started = []

    def make(backend, *overrides):
        settings = [setting for setting in places.overrides(backend) if not setting.startswith("state.dir=")]
        started.append(Runs(tmp_path, *settings, *overrides))
        return started[-1]

    yield make
    for runs in started:
        runs.end()


def folders(runs):
    """Names of the local folders of ranges of key groups, and of the log and the backend of one worker alone."""
    return sorted(
        path.name
        for path in (runs.folder / "state" / "gated").iterdir()
        if path.name in ("log", "tmp", *BACKENDS) or path.name[0].isdecimal()
    )


FOUR = ["0-31", "32-63", "64-95", "96-127"]
THREE = ["0-41", "42-84", "85-127"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rescaled_while_it_runs(runs_on, backend):
    runs = runs_on(backend)
    process = runs.start()
    runs.limit(100)
    runs.wait_for_events(100)
    assert "log" in folders(runs)
    assert runs.command("rescale", "4").out == "gated runs with 4 workers\n"
    runs.limit(200)
    status = runs.wait_for_events(200)
    assert (status["parallelism"], len(status["workers"]), status["restarts"]) == (4, 4, 0)
    assert [worker.keys() for worker in status["last_checkpoint"]["tasks"]] == [
        {"start-delay", "alignment", "sync", "async"}
    ] * 4
    wait_for(lambda: folders(runs) == FOUR)
    assert runs.command("rescale", "3", "--json").json == {"job": "gated", "parallelism": 3}
    runs.limit(300)
    runs.wait_for_events(300)
    wait_for(lambda: folders(runs) == THREE)
    runs.limit(EVENTS)
    code, outcome = runs.ended(process)
    assert (code, outcome["finished"]["events"], outcome["restarts"]) == (0, PARTS * EVENTS, 0)
    assert runs.written() == expected()


@pytest.mark.parametrize("backend", ["memory", "rocksdb"])
def test_stopped_with_some_and_started_with_others(runs_on, backend):
    runs = runs_on(backend)
    options = []
    for parallelism, limit in ((4, 100), (1, 200), (3, 300)):
        process = runs.start("--parallelism", parallelism, *options)
        runs.limit(limit)
        assert runs.wait_for_events(limit)["parallelism"] == parallelism
        assert runs.command("stop").code == 0
        assert runs.ended(process)[0] == 0
        assert runs.written() == expected(limit)
        options = ["--restore", "latest"]
    assert folders(runs) == THREE
    runs.limit(EVENTS)
    assert runs.ended(runs.start("--parallelism", 2, *options))[0] == 0
    assert runs.written() == expected()


def test_a_worker_that_dies_after_a_rescaling(runs_on):
    """The job is restarted with the number of workers that it was given last."""
    runs = runs_on("rocksdb")
    process = runs.start()
    runs.limit(100)
    runs.wait_for_events(100)
    assert runs.command("rescale", "2").code == 0
    os.kill(runs.status()["workers"][1], signal.SIGKILL)
    runs.limit(EVENTS)
    code, outcome = runs.ended(process)
    assert (code, outcome["restarts"]) == (0, 1)
    assert runs.written() == expected()


def test_what_is_locked_or_somebody_elses_stays(tmp_path):
    config = load_config(overrides=["state.backend=rocksdb", f"state.dir={tmp_path}", "state.max-parallelism=4"])
    root = tmp_path / "job"
    for name in ("0-1", "2-3", "0-0", "1-3", "log", "tmp", "rocksdb", "redis", "dead-letter", "0-x", "control"):
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()
    lock = FolderLock(root / "0-0", SystemClock())
    removed = remove_leftovers(config, "job", 2, SystemClock())
    assert sorted(path.name for path in removed) == ["1-3", "log", "rocksdb", "tmp"]
    assert {path.name for path in root.iterdir()} == {
        *("0-0", "0-1", "2-3", "0-x", "control", "dead-letter", "redis", "lock")
    }
    lock.release()
    root_lock = FolderLock(root, SystemClock())
    (root / "log").mkdir()
    assert [path.name for path in remove_leftovers(config, "job", 2, SystemClock())] == ["0-0"]
    root_lock.release()
    assert [path.name for path in remove_leftovers(config, "job", 1, SystemClock())] == ["0-1", "2-3"]
    assert (root / "log").is_dir()
