"""The flights job, killed with SIGKILL: every flight counts exactly once, on every backend."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from statestore import crashpoints
from statestore_runtime.sources.memory import DEFAULT_BATCH_SIZE
from tests.command import ROOT, command, environment, settings, statestore
from tests.conftest import BACKENDS
from tests.crash import flights

JOB = f"{ROOT / 'examples' / 'flights.py'}:job"
ALL_FLIGHTS = 336_776
BATCHES = ALL_FLIGHTS // DEFAULT_BATCH_SIZE
KILLS = 10
ROUNDS = 1 + int(os.environ.get("SOAK_EXAMPLES", "0")) // 100  # `make soak` has many more

# Small enough that bases, packing, applying and collecting all happen within a run.
BUSY = [
    "checkpointing.interval=40ms",
    "checkpointing.base-min-size=8kb",
    "checkpointing.num-retained=2",
    "checkpointing.base-ratio=0.1",
    "checkpointing.pack-deltas=1",
    "checkpointing.inline-threshold=4kb",
    "state.pending-size=24kb",
    "restart.delay=0",
]
RECOVERY_POINTS = [name for name in crashpoints.NAMES if name.startswith("recovery.")]
HYDRATION_POINTS = [name for name in crashpoints.NAMES if name.startswith("hydration.")]
OFFLINE = ("savepoint.", "claim.", "migrate.")  # see test_copies.py
POINTS = [
    name
    for name in crashpoints.NAMES
    if name not in (*RECOVERY_POINTS, *HYDRATION_POINTS, "job.batch") and not name.startswith(OFFLINE)
]


@pytest.fixture(scope="session")
def some_flights(tmp_path_factory):
    """A file with the first flights."""
    path = tmp_path_factory.mktemp("flights") / "flights.csv"
    path.write_text("".join(flights.lines()[:80_001]), newline="")
    return path


def run(places, backend, *options, cwd, changed=(), **variables):
    overrides = [*places.overrides(backend), *BUSY, *changed]
    return statestore("run", JOB, "--json", *options, *settings(overrides), cwd=cwd, **variables)


def armed(folder, point):
    """Environment in which a process dies once at a crash point, and the file that tells whether it has."""
    token = folder / "token"
    token.touch()
    return token, {"STATESTORE_CRASH_POINT": point, "STATESTORE_CRASH_TOKEN": token}


def check_output(folder, expected):
    """Compared without showing hundreds of thousands of lines."""
    found = flights.written(folder / "out" / "flights")
    assert len(found) == len(expected)
    wrong = next((index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]), None)
    assert wrong is None, f"flight {wrong}: {found[wrong]} instead of {expected[wrong]}"
    assert flights.hidden(folder / "out" / "flights") == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_moment(tmp_path, places, backend, seed):
    batch = random.Random(f"{backend}-{seed}").randrange(1, BATCHES)
    token, variables = armed(tmp_path, f"job.batch#{batch}")
    ended = run(places, backend, cwd=tmp_path, **variables)
    assert not token.exists(), "it was not killed"
    assert ended.code == 0, ended.err
    assert (ended.json["restarts"], ended.json["finished"]["events"]) == (1, ALL_FLIGHTS)
    check_output(tmp_path, flights.expected())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_crash_point(tmp_path, places, some_flights, backend, point):
    hit = 1 if point.endswith(".made") else 2  # where the backend is slow there is no second base
    token, variables = armed(tmp_path, f"{point}#{hit}")
    changed = ["checkpointing.base-min-size=1gb"] if point.startswith("pack.") else []  # else a base comes before it
    ended = run(places, backend, cwd=tmp_path, changed=changed, FLIGHTS_CSV=some_flights, **variables)
    assert not token.exists(), "it was not killed"
    assert ended.code == 0, ended.err
    assert (ended.json["restarts"], ended.json["finished"]["events"]) == (1, 80_000)
    check_output(tmp_path, flights.expected(80_000))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("point", RECOVERY_POINTS)
def test_killed_while_it_recovers(tmp_path, places, some_flights, backend, point):
    token, variables = armed(tmp_path, "job.batch#170")
    ended = run(places, backend, "-D", "restart.type=none", cwd=tmp_path, FLIGHTS_CSV=some_flights, **variables)
    assert (ended.code, token.exists()) == (11, False), ended.err
    token, variables = armed(tmp_path, f"{point}#1")
    ended = run(places, backend, "--restore", "latest", cwd=tmp_path, FLIGHTS_CSV=some_flights, **variables)
    assert not token.exists(), "it was not killed"
    assert ended.code == 0, ended.err
    check_output(tmp_path, flights.expected(80_000))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("point", HYDRATION_POINTS)
def test_killed_while_its_state_is_copied(tmp_path, places, backend, point):
    """The local state is lost; the job works on its checkpoint at once, dies again, and its worker is restarted.

    All flights, so that there is work for much longer than the copying takes.
    """
    token, variables = armed(tmp_path, "job.batch#170")
    portable = ("-D", "checkpointing.base-format=portable")  # a native base is brought back whole
    ended = run(places, backend, *portable, "-D", "restart.type=none", cwd=tmp_path, **variables)
    assert (ended.code, token.exists()) == (11, False), ended.err
    for lost in ("log", backend):
        shutil.rmtree(tmp_path / "local" / "flights" / lost, ignore_errors=True)
    token, variables = armed(tmp_path, f"{point}#1")
    lazy = ("--restore", "latest", "-D", "state-recovery.lazy=true")
    ended = run(places, backend, *lazy, cwd=tmp_path, **variables)
    assert not token.exists(), "it was not killed"
    assert ended.code == 0, ended.err
    check_output(tmp_path, flights.expected())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_everything_killed_again_and_again(tmp_path, places, backend, seed):
    """Command and worker together, by the clock, as a machine goes down; each time the user starts it again."""
    delays = random.Random(f"{backend}-{seed}")
    arguments = ["run", JOB, *settings(places.overrides(backend) + BUSY)]
    restore, killed = [], 0
    for _ in range(6):
        process = subprocess.Popen(
            command(*arguments, *restore),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        time.sleep(delays.uniform(0.4, 0.9))
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stderr.close()
        if any((tmp_path / "local" / "checkpoints").glob("flights/chk-*/_metadata")):
            restore = ["--restore", "latest"]
    ended = run(places, backend, *restore, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert killed >= 1
    check_output(tmp_path, flights.expected())


def test_the_worker_ends_with_the_command(tmp_path, places):
    """Whoever kills only the command leaves nobody behind who writes."""
    process = subprocess.Popen(
        command("run", JOB, *settings(places.overrides("rocksdb") + BUSY)),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    checkpoints = tmp_path / "local" / "checkpoints"
    while process.poll() is None and not any(checkpoints.glob("flights/chk-2/_metadata")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    ended = run(places, "rocksdb", "--restore", "latest", cwd=tmp_path)  # waits for the worker's lock, and gets it
    assert ended.code == 0, ended.err
    check_output(tmp_path, flights.expected())
