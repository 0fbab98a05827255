"""Thousands of jobs in a simulated world: whatever dies, stalls, hangs or is asked for, every event counts once, and every job ends."""

from __future__ import annotations

import itertools
import logging

import pytest
from msgspec.structs import replace

from statestore_runtime.jobmanager.heartbeats import HeartbeatMonitor
from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.requests import Requests
from statestore_runtime.jobmanager.rounds import Rounds
from statestore_runtime.jobmanager.state import JobState
from tests.conftest import SOAK_EXAMPLES
from tests.simulation.trouble import REQUESTS, simulate_job
from tests.simulation.worker import SINK, Worker
from tests.simulation.world import explore

SEEDS = 20 * SOAK_EXAMPLES or 1500

FAULTS = ("kill manager", "pause manager", "storage", "workers", *REQUESTS)
WORKER_FAULTS = ("kill worker", "pause worker", "cut worker")
STATES_WITH_WORKERS = (JobState.RESTORING, JobState.RUNNING, JobState.FAILING)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, logger="statestore_runtime")


def test_every_event_counts_once_and_every_job_ends():
    jobs = explore(lambda world: simulate_job(world).summary, range(SEEDS))
    hits = set().union(*(job.hits for job in jobs))
    expected = {*itertools.product(FAULTS, (*STATES_WITH_WORKERS, JobState.RESTARTING))}
    expected |= {*itertools.product(WORKER_FAULTS, STATES_WITH_WORKERS)}
    assert not expected - hits, "not everything has happened in every state"
    assert sum(job.events for job in jobs) > 5 * SEEDS, "too little is read"
    assert sum(job.attempts for job in jobs) > 2 * SEEDS, "too little goes wrong"
    assert sum(job.rescales for job in jobs) > SEEDS / 50, "too little is rescaled"
    assert sum(job.zombies for job in jobs) > SEEDS / 20, "too few workers outlive their deployment"


def test_the_same_seed_gives_the_same_trace():
    for seed in range(50):
        first, again, other = explore(lambda world: simulate_job(world) and world.trace, [seed, seed, seed + 1])
        assert first == again != other


# That the simulation would notice: parts of a JobManager with a mistake each.


class TakesStaleAcknowledgements(Rounds):
    def acknowledge(self, worker, report):
        if self._pending is not None:
            report = replace(report, checkpoint=self._pending.number)
        super().acknowledge(worker, report)


class NeedsNotAllAcknowledgements(Rounds):
    def acknowledge(self, worker, report):
        if self._pending is not None and report.checkpoint == self._pending.number:
            self._pending.acknowledged.update(dict.fromkeys(range(1, self._workers.parallelism), report))
        super().acknowledge(worker, report)


class ForgetsWhatItInsistsOn(Rounds):
    def _fail(self, error):
        self.insisted = None
        super()._fail(error)


class ForgetsWhoWaitsForACheckpoint(Rounds):
    def give_up(self, reason):
        pass


class LeavesNoPause(Rounds):
    def __init__(self, clock, settings, **options):
        super().__init__(clock, replace(settings, min_pause=0.0), **options)


class WaitsForEverForACheckpoint(Rounds):
    def _check_time(self, current):
        pass


class RefusesNobodyAtTheEnd(Requests):
    def refuse_all(self, reason):
        pass


class HearsNoSilence(HeartbeatMonitor):
    def __init__(self, clock, timeout_seconds):
        super().__init__(clock, float("inf"))


class BeginsBeforeTheFirstCheckpoint(JobManager):
    def _after_opening(self):
        super()._after_opening()
        if self.state is JobState.RESTORING:
            self._begin()


class WaitsForEverForTheState(JobManager):
    def _expect_opening(self):
        pass


class ForgetsToStopAfterARestart(JobManager):
    def _after_opening(self):
        self._requests.stopping = None
        super()._after_opening()


class LetsWorkersLive(JobManager):
    def _end_deployment(self, *, at_once=True):
        self._reset()


@pytest.mark.parametrize(
    ("mistaken", "noticed"),
    [
        (TakesStaleAcknowledgements, "have not acknowledged it|another checkpoint"),
        (NeedsNotAllAcknowledgements, "have not acknowledged it|another checkpoint"),
        (ForgetsWhatItInsistsOn, "of peace the job is|not answered"),
        (ForgetsWhoWaitsForACheckpoint, "not answered"),
        (LeavesNoPause, "a pause of"),
        (WaitsForEverForACheckpoint, "of peace the job is|it spins"),
        (RefusesNobodyAtTheEnd, "not answered"),
        (WaitsForEverForTheState, "of peace the job is|it spins"),
        (HearsNoSilence, "of peace the job is"),
        (BeginsBeforeTheFirstCheckpoint, "reads before there is a checkpoint"),
        (ForgetsToStopAfterARestart, "not answered"),
        (LetsWorkersLive, "have not been ended"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_mistake_would_be_noticed(mistaken, noticed, monkeypatch):
    (part,) = mistaken.__bases__
    if part is not JobManager:
        monkeypatch.setattr(f"statestore_runtime.jobmanager.manager.{part.__name__}", mistaken)
    manager_class = mistaken if part is JobManager else JobManager
    with pytest.raises(AssertionError, match=rf"(?s)SIMULATION_SEED=\d+: .*({noticed})"):
        explore(lambda world: simulate_job(world, manager_class), range(SEEDS))


def test_output_before_its_checkpoint_is_complete_would_be_noticed(monkeypatch):
    class Hasty(Worker):
        def _acknowledge(self, taken):
            for transaction in taken[1]["sinks"][SINK]["transactions"]:
                self.job.output.commit(self.attempt, transaction)
            super()._acknowledge(taken)

    monkeypatch.setattr("tests.simulation.driver.Worker", Hasty)
    with pytest.raises(AssertionError, match=r"SIMULATION_SEED=\d+: .*is visible twice"):
        explore(simulate_job, range(SEEDS))
