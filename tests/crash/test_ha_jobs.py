"""Several processes of one job, of which one leads and is killed or stands still: another one finishes it, and each event counts once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading

import pytest

from statestore.errors import StateStoreError
from statestore_runtime.control.client import JobClient
from statestore_runtime.control.messages import JobNotRunningError, MakeCheckpoint, RequestFailedError, RescaleJob
from tests.conftest import BACKENDS, SOAK_EXAMPLES, seeds
from tests.running import EVENTS, PARTS, Runs, expected, lives, wait_for


class Candidates(Runs):
    """Processes of one job."""

    def __init__(self, folder, places, backend, *overrides):
        settings = [setting for setting in places.overrides(backend) if not setting.startswith("state.dir=")]
        lease = ["high-availability.lease-duration=3s", "high-availability.renew-interval=500ms"]
        super().__init__(folder, *settings, *lease, *overrides)
        self.client = JobClient(str(folder / "state"), "gated", silence_seconds=3.0)

    def start_all(self, count, *options):
        return [self.start("--ha", *options) for _ in range(count)]

    def statuses(self):
        try:
            return self.client.statuses()
        except StateStoreError:
            return []

    def leader(self, *, besides=()):
        """The status of who leads and has begun to read, other than these."""
        return wait_for(
            lambda: next(
                (
                    status
                    for status in self.statuses()
                    if status.state == "running" and status.progress is not None and status.pid not in besides
                ),
                None,
            )
        )

    def wait_for_events(self, events):
        return wait_for(
            lambda: next(
                (
                    status
                    for status in self.statuses()
                    if status.progress is not None and status.progress.events >= PARTS * events
                ),
                None,
            )
        )

    def wait_for_running(self):
        return wait_for(
            lambda: next((each for each in self.statuses() if each.state == "running" and each.workers), None)
        )

    def process(self, pid):
        return next(process for process in self.started if process.pid == pid)


@pytest.fixture
def candidates(tmp_path, places):
    started = []

    def make(backend, *overrides):
        started.append(Candidates(tmp_path, places, backend, *overrides))
        return started[-1]

    yield make
    for runs in started:
        for process in runs.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        runs.end()


@pytest.mark.parametrize("backend", ["memory", "rocksdb", "redis"])
def test_the_leader_is_killed(candidates, backend):
    runs = candidates(backend)
    started = runs.start_all(3, "--parallelism", "2")
    first = runs.leader()
    where = f"process {first.pid} on {first.host}"
    standing = [("running", None), ("standby", where), ("standby", where)]
    wait_for(lambda: [(status.state, status.leader) for status in runs.statuses()] == standing)
    runs.limit(150)
    runs.wait_for_events(150)
    runs.process(first.pid).kill()
    runs.process(first.pid).wait()
    wait_for(lambda: not any(lives(pid) for pid in first.workers))
    second = runs.leader()
    assert second.token > first.token
    assert second.attempt > first.attempt
    assert second.restored_checkpoint is not None
    runs.limit(EVENTS)
    others = [process for process in started if process.pid not in (first.pid, second.pid)]
    code, outcome = runs.ended(runs.process(second.pid))
    assert (code, outcome["finished"]["events"]) == (0, PARTS * EVENTS)
    assert runs.written() == expected()
    (third,) = others
    code, told = runs.ended(third)
    assert (code, told["state"], told["by"]) == (0, "finished", f"process {second.pid} on {second.host}")
    assert told["checkpoint"] == outcome["finished"]["last_checkpoint"]


@pytest.mark.parametrize("who", ["manager", "all"])
@pytest.mark.parametrize("backend", ["rocksdb", "redis"])
def test_the_leader_stands_still_and_wakes_up(candidates, backend, who):
    """Its workers as well, as a machine that was suspended; or only itself, while its workers go on."""
    runs = candidates(backend, "heartbeat.timeout=1h")
    runs.start_all(2)
    first = runs.leader()
    runs.limit(100)
    runs.wait_for_events(100)
    zombie = runs.process(first.pid)
    send = (lambda number: os.killpg(zombie.pid, number)) if who == "all" else zombie.send_signal
    send(signal.SIGSTOP)
    runs.limit(200)
    second = runs.leader(besides=[first.pid])
    assert second.restored_checkpoint is not None
    runs.wait_for_events(200)
    before = runs.leader(besides=[first.pid]).last_checkpoint.checkpoint
    send(signal.SIGCONT)
    wait_for(lambda: not any(lives(pid) for pid in first.workers))
    wait_for(lambda: [status.state for status in runs.statuses()] == ["running", "standby"])
    runs.limit(300)
    status = runs.wait_for_events(300)
    assert (status.pid, status.attempt, status.restarts) == (second.pid, second.attempt, 0), "nobody disturbed it"
    assert status.last_checkpoint.checkpoint >= before
    runs.limit(EVENTS)
    assert runs.ended(runs.process(second.pid))[0] == 0
    assert runs.written() == expected()
    code, told = runs.ended(zombie)
    assert (code, told["state"]) == (0, "finished")
    assert runs.written() == expected()


def test_a_leader_that_is_told_to_end_hands_over(candidates):
    runs = candidates("rocksdb")
    runs.start_all(2)
    first = runs.leader()
    runs.limit(100)
    runs.wait_for_events(100)
    process = runs.process(first.pid)
    process.terminate()
    assert runs.ended(process)[0] == 143
    second = runs.leader()
    assert second.pid != first.pid
    runs.limit(EVENTS)
    code, outcome = runs.ended(runs.process(second.pid))
    assert (code, outcome["finished"]["events_this_run"]) == (0, PARTS * (EVENTS - 100))
    assert runs.written() == expected()


def test_a_standby_that_is_told_to_end(candidates):
    runs = candidates("memory")
    runs.start_all(2)
    first = runs.leader()
    (standby,) = (process for process in runs.started if process.pid != first.pid)
    standby.terminate()
    assert runs.ended(standby)[0] == 143
    assert runs.leader().pid == first.pid


def test_commands_reach_the_leader_and_all_end_with_it(candidates):
    runs = candidates("memory")
    started = runs.start_all(2)
    first = runs.leader()
    runs.limit(100)
    runs.wait_for_events(100)
    assert runs.command("rescale", "2").code == 0
    runs.process(first.pid).kill()
    second = runs.leader(besides=[first.pid])
    assert second.parallelism == 2, "the next leader knows of it"
    started.append(runs.start("--ha", "--restore", "latest"))
    wait_for(lambda: [status.state for status in runs.statuses()] == ["running", "standby"])
    status = runs.command("status", "--json").json
    assert (status["pid"], [each["state"] for each in status["standbys"]]) == (second.pid, ["standby"])
    assert "gated: standby, process" in runs.command("status").out
    assert runs.command("stop").code == 0
    codes = {process.pid: runs.ended(process)[0] for process in started}
    assert codes == {first.pid: -9, second.pid: 0, started[-1].pid: 0}
    assert runs.written() == expected(100)
    first, second = runs.start_all(2, "--restore", "latest")
    runs.leader()
    wait_for(lambda: [status.state for status in runs.statuses()] == ["running", "standby"])
    assert runs.command("cancel").code == 0
    assert [runs.ended(process)[0] for process in (first, second)] == [12, 12]
    assert sorted([runs.error(first).splitlines()[-1][:32], runs.error(second).splitlines()[-1][:32]]) == [
        "statestore: cancelled before its",
        "statestore: job 'gated' was canc",
    ]


def test_a_job_that_fails_fails_everywhere(candidates):
    runs = candidates("memory", "restart.type=none")
    started = runs.start_all(2)
    first = runs.leader()
    # One that comes when all is over would begin a new run.
    wait_for(lambda: [status.state for status in runs.statuses()] == ["running", "standby"])
    os.kill(first.workers[0], signal.SIGKILL)
    assert [runs.ended(process)[0] for process in started] == [11, 11]
    (standby,) = (process for process in started if process.pid != first.pid)
    assert runs.error(standby).splitlines()[-1] == (
        f"statestore: job 'gated' failed at process {first.pid} on {first.host}: the worker process was killed by SIGKILL"
    )


def test_machines_that_share_only_checkpoints_and_the_lease(candidates, tmp_path, redis_url):
    """Each has a state.dir of its own; the lease is in Redis."""
    shared = [
        f"checkpointing.dir={tmp_path / 'checkpoints'}",
        "high-availability.type=redis",
        f"high-availability.url={redis_url}",
    ]
    runs = candidates("rocksdb", *shared)
    first = runs.start("-D", f"state.dir={tmp_path / 'state'}")
    runs.leader()
    second = runs.start("-D", f"state.dir={tmp_path / 'other'}")
    other = JobClient(str(tmp_path / "other"), "gated")
    where = f"process {first.pid} on {runs.leader().host}"
    wait_for(lambda: has_status(other, "standby") and other.statuses()[0].leader == where)
    with pytest.raises(JobNotRunningError, match=f"here it stands by, process {first.pid} on"):
        other.request(MakeCheckpoint())
    runs.limit(100)
    runs.wait_for_events(100)
    os.killpg(first.pid, signal.SIGKILL)
    wait_for(lambda: has_status(other, "running"))
    assert other.statuses()[0].restored_checkpoint is not None
    runs.limit(EVENTS)
    assert runs.ended(second)[0] == 0
    assert runs.written() == expected()


def has_status(client, state):
    try:
        return client.statuses()[0].state == state
    except StateStoreError:
        return False


@pytest.mark.parametrize("backend", BACKENDS if SOAK_EXAMPLES else ["rocksdb"])
@pytest.mark.parametrize("seed", seeds(1))
def test_rescaled_and_killed_again_and_again(candidates, backend, seed):
    """Workers die at any moment, also while the job stops for another number of them, or restores with it."""
    randomness = random.Random(f"{backend}-{seed}")
    runs = candidates(backend, "restart.type=fixed-delay", "restart.attempts=1000")
    process = runs.start()
    refused = 0
    for limit in range(40, EVENTS, 60):
        status = runs.wait_for_running()
        runs.limit(limit)
        victim = randomness.choice(status.workers)
        timer = threading.Timer(randomness.uniform(0, 1), kill, [victim])
        timer.start()
        try:
            runs.client.request(RescaleJob(parallelism=randomness.randint(1, 4)))
        except RequestFailedError as error:
            refused += 1
            assert error.exit_code == 3, error
        timer.join()
    runs.limit(EVENTS)
    code, outcome = runs.ended(process)
    assert code == 0, runs.error(process)
    assert outcome["finished"]["events"] == PARTS * EVENTS
    assert refused < 6, "none of the rescalings was carried out"
    assert runs.written() == expected()


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
