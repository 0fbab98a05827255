"""Many jobs with several JobManagers in a simulated world: whoever leads, stalls or dies, every event counts once, and every job ends."""

from __future__ import annotations

import itertools
import logging

import pytest

from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.state import JobState
from tests.conftest import SOAK_EXAMPLES
from tests.simulation.leading import Candidate, simulate_led_job
from tests.simulation.storage import Storage
from tests.simulation.world import explore

SEEDS = 10 * SOAK_EXAMPLES or 400


@pytest.fixture(autouse=True)
def quiet(caplog):
    for name in ("statestore.ha", "statestore_runtime"):
        caplog.set_level(logging.CRITICAL, logger=name)


def test_a_standby_takes_over_wherever_the_leader_stands():
    jobs = explore(lambda world: simulate_led_job(world).summary, range(SEEDS))
    hits = set().union(*(job.hits for job in jobs))
    states = (JobState.RESTORING, JobState.RUNNING, JobState.RESTARTING, JobState.FAILING)
    expected = {*itertools.product(("kill manager", "pause manager"), states)}
    expected |= {*itertools.product(("lease", "standby"), states[:2])}
    assert not expected - hits, "not everything has happened in every state"
    assert sum(job.leaders for job in jobs) > 2 * SEEDS, "too seldom another one leads"
    assert sum(job.zombies for job in jobs) > SEEDS / 20, "too few workers outlive their deployment"


def test_a_leader_that_does_not_look_whether_it_leads_changes_nothing_either():
    explore(lambda world: simulate_led_job(world, is_careless=True), range(SEEDS, 2 * SEEDS))


def test_the_same_seed_gives_the_same_trace():
    for seed in range(20):
        first, again, other = explore(lambda world: simulate_led_job(world) and world.trace, [seed, seed, seed + 1])
        assert first == again != other


class GivesUpAtTheFirstFailure(JobManager):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{**options, "resumed": False})


def test_a_new_leader_that_gives_up_too_soon_would_be_noticed():
    with pytest.raises(AssertionError, match=r"SIMULATION_SEED=\d+: .*it gives up for"):
        explore(lambda world: simulate_led_job(world, GivesUpAtTheFirstFailure), range(SEEDS))


def test_a_leader_that_goes_on_when_it_leads_no_more_would_be_noticed(monkeypatch):
    monkeypatch.setattr(Candidate, "may_act", lambda self: self.look_for_others() or True)
    with pytest.raises(AssertionError, match=r"SIMULATION_SEED=\d+: .*acts while"):
        explore(simulate_led_job, range(SEEDS))


def test_checkpoints_that_are_not_fenced_would_be_noticed(monkeypatch):
    class Unfenced(Storage):
        def commit(self, process, manifest, answer):
            def create():
                self.check()
                return self.write(manifest)

            self._call(process, [create], answer)

    monkeypatch.setattr("tests.simulation.job.Storage", Unfenced)
    with pytest.raises(AssertionError, match=r"SIMULATION_SEED=\d+: .*(visible|was written after|does not continue)"):
        explore(lambda world: simulate_led_job(world, is_careless=True), range(SEEDS))
