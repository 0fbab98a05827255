"""Thousands of jobs in a simulated world: whatever dies, stalls, hangs or is asked for, every event counts once, and every job ends."""

from __future__ import annotations

import itertools
import logging

import pytest
from msgspec.structs import replace

from statestore_runtime.jobmanager.manager import JobManager, JobState
from tests.conftest import SOAK_EXAMPLES
from tests.simulation.trouble import REQUESTS, simulate_job
from tests.simulation.worker import SINK, Worker
from tests.simulation.world import explore

SEEDS = 20 * SOAK_EXAMPLES or 3000

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


# That the simulation would notice: JobManagers with a mistake each.


class TakesStaleAcknowledgements(JobManager):
    def _handle_acknowledged(self, index, report):
        if self._round is not None:
            report = replace(report, checkpoint=self._round.number)
        super()._handle_acknowledged(index, report)


class NeedsNotAllAcknowledgements(JobManager):
    def _handle_acknowledged(self, index, report):
        if self._round is not None and report.checkpoint == self._round.number:
            self._round.acknowledged.update(dict.fromkeys(range(1, self.parallelism), report))
        super()._handle_acknowledged(index, report)


class BeginsBeforeTheFirstCheckpoint(JobManager):
    def _insist(self, trigger):
        if not self._has_begun and not trigger.stop:
            self._begin()
        super()._insist(trigger)


class ForgetsWhatItInsistsOn(JobManager):
    def _fail_round(self, error):
        self._insisted = None
        super()._fail_round(error)


class RefusesNobodyAtTheEnd(JobManager):
    def _refuse_requests(self, reason):
        pass


class ForgetsWhoWaitsForACheckpoint(JobManager):
    def _end_deployment(self, *, at_once=True):
        self._round = None
        super()._end_deployment(at_once=at_once)


class ForgetsToStopAfterARestart(JobManager):
    def _after_opening(self):
        self._stopping = None
        super()._after_opening()


class LeavesNoPause(JobManager):
    def _reset(self):
        super()._reset()
        self._coordinator._min_pause = 0.0


class WaitsForEverForACheckpoint(JobManager):
    def _check_time_of_round(self):
        pass


class WaitsForEverForTheState(JobManager):
    def _check_deadline(self, now):
        pass


class HearsNoSilence(JobManager):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._heartbeats.timeout_seconds = float("inf")


class LetsWorkersLive(JobManager):
    def _end_deployment(self, *, at_once=True):
        self._reset()


@pytest.mark.parametrize(
    ("mistaken", "noticed"),
    [
        (TakesStaleAcknowledgements, "have not acknowledged it|another checkpoint"),
        (NeedsNotAllAcknowledgements, "have not acknowledged it|another checkpoint"),
        (BeginsBeforeTheFirstCheckpoint, "reads before there is a checkpoint"),
        (ForgetsWhatItInsistsOn, "of peace the job is|not answered"),
        (RefusesNobodyAtTheEnd, "not answered"),
        (ForgetsWhoWaitsForACheckpoint, "not answered"),
        (ForgetsToStopAfterARestart, "not answered"),
        (LeavesNoPause, "a pause of"),
        (WaitsForEverForACheckpoint, "of peace the job is|it spins"),
        (WaitsForEverForTheState, "of peace the job is|it spins"),
        (HearsNoSilence, "of peace the job is"),
        (LetsWorkersLive, "have not been ended"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_mistake_would_be_noticed(mistaken, noticed):
    with pytest.raises(AssertionError, match=rf"(?s)SIMULATION_SEED=\d+: .*({noticed})"):
        explore(lambda world: simulate_job(world, mistaken), range(SEEDS))


def test_output_before_its_checkpoint_is_complete_would_be_noticed(monkeypatch):
    class Hasty(Worker):
        def _acknowledge(self, taken):
            for transaction in taken[1]["sinks"][SINK]["transactions"]:
                self.job.output.commit(self.attempt, transaction)
            super()._acknowledge(taken)

    monkeypatch.setattr("tests.simulation.driver.Worker", Hasty)
    with pytest.raises(AssertionError, match=r"SIMULATION_SEED=\d+: .*is visible twice"):
        explore(simulate_job, range(SEEDS))
