"""The flights job, killed with SIGKILL: every flight counts exactly once, on every backend."""

from __future__ import annotations

import itertools
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
from tests.conftest import BACKENDS, SOAK_EXAMPLES
from tests.crash import flights, killed_flights

JOB = f"{ROOT / 'examples' / 'flights.py'}:job"
KILLED_JOB = f"{ROOT / 'tests' / 'crash' / 'killed_flights.py'}:job"
ALL_FLIGHTS = 336_776
SOME_FLIGHTS = 120_000
MORE_FLIGHTS = ALL_FLIGHTS if SOAK_EXAMPLES else 200_000
KILLS, FLIGHTS_BETWEEN_KILLS = 10 if SOAK_EXAMPLES else 5, 20_000
ROUNDS = 1 + SOAK_EXAMPLES // 100

# Small enough that bases, packing, applying and collecting all happen within a run.
BUSY = [
    "checkpointing.interval=20ms",
    "checkpointing.base-min-size=8kb",
    "checkpointing.num-retained=2",
    "checkpointing.base-ratio=0.1",
    "checkpointing.pack-deltas=1",
    "checkpointing.inline-threshold=4kb",
    "state.pending-size=24kb",
    "restart.initial-backoff=0",
]
# Points that one run dies at, one after the other; those of savepoints, claims and migrations are in test_copies.py.
TOGETHER = (("commit.", "backend.", "base."), ("checkpoint.", "pack."), ("sink.", "recovery."))
# In the life of a process; where the backend is slow there is no second base.
ONCE = ("base.made", "recovery.begun", "recovery.loaded")


MANIFEST = "checkpoint.manifest-written"  # which is the JobManager's doing


def named(*prefixes):
    return [name for prefix in prefixes for name in crashpoints.NAMES if name.startswith(prefix) and name != MANIFEST]


def points_of_runs():
    """Each point once, several in a run; many times and in a run of its own where there is time for it."""
    if SOAK_EXAMPLES:
        before = {"recovery.loaded": ["job.batch#100"]}  # else there is nothing to load
        hits = {name: (1,) if name in ONCE else (2, 1) for name in named(*itertools.chain(*TOGETHER))}
        return [[*before.get(name, ()), *(f"{name}#{hit}" for hit in hits[name])] for name in hits]
    return [[f"{name}#{1 if name in ONCE else 2}" for name in named(*prefixes)] for prefixes in TOGETHER]


def run(places, backend, *options, cwd, job=JOB, changed=(), **variables):
    overrides = [*places.overrides(backend), *BUSY, *changed]
    return statestore("run", job, "--json", *options, *settings(overrides), cwd=cwd, **variables)


def killed_run(places, backend, points, *options, cwd, **more):
    """A run in which the process dies at each of the points, and is started again unless the options say that it is not."""
    folder = cwd / "points"
    shutil.rmtree(folder, ignore_errors=True)
    killed_flights.put(folder, points)
    ended = run(places, backend, *options, cwd=cwd, job=KILLED_JOB, CRASH_POINTS=folder, **more)
    assert killed_flights.left(folder) == [], f"it was not killed there: {ended.err}"
    return ended


def check_output(folder, expected):
    """Compared without showing hundreds of thousands of lines."""
    found = flights.written(folder / "out" / "flights")
    assert len(found) == len(expected)
    wrong = next((index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]), None)
    assert wrong is None, f"flight {wrong}: {found[wrong]} instead of {expected[wrong]}"
    assert flights.hidden(folder / "out" / "flights") == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_at_random_moments(tmp_path, places, more_flights, backend, seed):
    randomness = random.Random(f"{backend}-{seed}")
    batches = [randomness.randrange(1, FLIGHTS_BETWEEN_KILLS // DEFAULT_BATCH_SIZE) for _ in range(KILLS)]
    points = [f"job.batch#{batch}" for batch in batches]
    ended = killed_run(places, backend, points, cwd=tmp_path, FLIGHTS_CSV=more_flights)
    assert ended.code == 0, ended.err
    assert (ended.json["restarts"], ended.json["finished"]["events"]) == (KILLS, MORE_FLIGHTS)
    check_output(tmp_path, flights.expected(MORE_FLIGHTS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("points", points_of_runs(), ids=lambda points: points[-1])
def test_killed_at_crash_points(tmp_path, places, some_flights, backend, points):
    one_base = (
        ["checkpointing.base-ratio=1e9"] if any(point.startswith("pack.") for point in points) else []
    )  # else another base comes before it
    ended = killed_run(places, backend, points, cwd=tmp_path, changed=one_base, FLIGHTS_CSV=some_flights)
    assert ended.code == 0, ended.err
    assert (ended.json["restarts"], ended.json["finished"]["events"]) == (len(points), SOME_FLIGHTS)
    check_output(tmp_path, flights.expected(SOME_FLIGHTS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_while_it_recovers(tmp_path, places, some_flights, backend):
    """By hand: a run that is over, and another one that goes on from its checkpoint."""
    never = ("-D", "restart.type=none")
    ended = killed_run(places, backend, ["job.batch#170"], *never, cwd=tmp_path, FLIGHTS_CSV=some_flights)
    assert ended.code == 11, ended.err
    points = [f"{name}#1" for name in named("recovery.")]
    ended = killed_run(places, backend, points, "--restore", "latest", cwd=tmp_path, FLIGHTS_CSV=some_flights)
    assert ended.code == 0, ended.err
    check_output(tmp_path, flights.expected(SOME_FLIGHTS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_while_its_state_is_copied(tmp_path, places, more_flights, backend):
    """The local state is lost; the job works on its checkpoint at once, dies at every step of it, and its worker is restarted.

    More flights, so that there is work for much longer than the copying takes.
    """
    portable = ("-D", "checkpointing.base-format=portable")  # a native base is brought back whole
    more = {"cwd": tmp_path, "FLIGHTS_CSV": more_flights}
    ended = killed_run(places, backend, ["job.batch#100"], *portable, "-D", "restart.type=none", **more)
    assert ended.code == 11, ended.err
    for lost in ("log", backend):
        shutil.rmtree(tmp_path / "local" / "flights" / lost, ignore_errors=True)
    points = [f"{name}#1" for name in named("hydration.")]
    lazy = ("--restore", "latest", "-D", "state-recovery.lazy=true")
    ended = killed_run(places, backend, points, *lazy, **more)
    assert ended.code == 0, ended.err
    check_output(tmp_path, flights.expected(MORE_FLIGHTS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_everything_killed_again_and_again(tmp_path, places, some_flights, backend, seed):
    """Command and worker together, as a machine goes down, soon after a checkpoint; each time the user starts it again."""
    delays = random.Random(f"{backend}-{seed}")
    arguments = ["run", JOB, *settings(places.overrides(backend) + BUSY)]
    restore, killed = [], 0
    for _ in range(4):
        process = started(*arguments, *restore, cwd=tmp_path, FLIGHTS_CSV=some_flights)
        wait_for_a_checkpoint(process, tmp_path)
        time.sleep(delays.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        restore = ["--restore", "latest"]
    ended = run(places, backend, *restore, cwd=tmp_path, FLIGHTS_CSV=some_flights)
    assert ended.code == 0, ended.err
    assert killed >= 1
    check_output(tmp_path, flights.expected(SOME_FLIGHTS))


@pytest.mark.parametrize("hit", [1, 2, 5] if SOAK_EXAMPLES else [2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_command_is_killed_while_it_completes_a_checkpoint(tmp_path, places, some_flights, backend, hit):
    """Its manifest is there, and no worker knows of it."""
    token = tmp_path / "token"
    token.touch()
    arguments = ["run", JOB, *settings(places.overrides(backend) + BUSY)]
    variables = {"STATESTORE_CRASH_POINT": f"{MANIFEST}#{hit}", "STATESTORE_CRASH_TOKEN": token}
    process = started(*arguments, cwd=tmp_path, FLIGHTS_CSV=some_flights, **variables)
    assert (process.wait(), token.exists()) == (-signal.SIGKILL, False)
    ended = run(places, backend, "--restore", "latest", cwd=tmp_path, FLIGHTS_CSV=some_flights)
    assert ended.code == 0, ended.err
    check_output(tmp_path, flights.expected(SOME_FLIGHTS))


def test_the_worker_ends_with_the_command(tmp_path, places, some_flights):
    """Whoever kills only the command leaves nobody behind who writes."""
    arguments = ["run", JOB, *settings(places.overrides("rocksdb") + BUSY)]
    process = started(*arguments, cwd=tmp_path, FLIGHTS_CSV=some_flights)
    wait_for_a_checkpoint(process, tmp_path)
    process.kill()
    process.wait()
    # It waits for the worker's lock, and gets it.
    ended = run(places, "rocksdb", "--restore", "latest", cwd=tmp_path, FLIGHTS_CSV=some_flights)
    assert ended.code == 0, ended.err
    check_output(tmp_path, flights.expected(SOME_FLIGHTS))


def started(*arguments, cwd, **variables):
    """The real command, in the background, leader of a process group."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_a_checkpoint(process, folder):
    """Until there is one that was not there before, or the job has come to its end."""
    checkpoints = folder / "local" / "checkpoints" / "flights"
    before = set(checkpoints.glob("chk-*/_metadata"))
    while process.poll() is None and not set(checkpoints.glob("chk-*/_metadata")) - before:
        time.sleep(0.01)
