"""Several JobManagers of a simulated job, one of which leads: the real `Election` decides who."""

from __future__ import annotations

from statestore_runtime.ha.election import Election
from statestore_runtime.jobmanager.manager import JobManager
from tests.ha.simulated import SimulatedStore
from tests.simulation.driver import Driver
from tests.simulation.job import SimulatedJob
from tests.simulation.trouble import Trouble, go_through

LEASE_SECONDS, RENEW_SECONDS = 6.0, 2.0


class Candidate:
    """A process that stands for election, and runs the job while it leads."""

    def __init__(self, job: LedJob):
        self.job, self.world = job, job.world
        name = f"jm{job.count('candidate')}"
        self.process = self.world.process(
            name, clock_rate=self.world.between((0.92, 1.08)), clock_offset=self.world.between((0.0, 1e4))
        )
        self.election = Election(self.process.clock, name, lease_seconds=LEASE_SECONDS, renew_seconds=RENEW_SECONDS)
        self.driver: Driver | None = None
        self._token = None
        self._timer = self.process.schedule(0.0, self._step)

    def _step(self):
        if (request := self.election.request()) is not None:
            self.job.lease.ask(self.process, request, lambda outcome: self._answered(request, outcome))
        if self._token != self.election.token:
            self._token = self.election.token
            self.process.note(f"token {self._token}")
            self._begin_or_end()
        if self.election.is_over:
            self.process.kill()
        else:
            self._timer = self.process.schedule(self.election.seconds_to_next() + 0.001, self._step)

    def _answered(self, request, outcome):
        self.election.answer(request, outcome)
        self._timer.cancel()
        self._step()

    def _begin_or_end(self):
        if self.driver is not None:
            self.driver.depose()
            self.driver = None
        if self._token is not None and not self.job.is_over:
            self.driver = self.job.leads(self)

    def resign(self):
        """Leave cleanly, and end."""
        self.election.resign()
        self._timer.cancel()
        self._step()

    def may_act(self) -> bool:
        """Asked just before anything is done: whether this process leads, by its own clock. Nobody else does at the same time."""
        if self.job.is_careless:
            return True
        if not self.election.is_leader():
            return False
        self.look_for_others()
        return True

    def look_for_others(self):
        """Assert that nobody else leads, as it acts."""
        leaders = [each for each in self.job.candidates if each.process.is_alive and each.election.is_leader()]
        others = [each.process.name for each in leaders if each is not self]
        assert not others, f"{self.process} acts while {others} lead"


class LedJob(SimulatedJob):
    """A job that several JobManagers stand by for.

    Parameters
    ----------
    is_careless
        Whether leaders act without asking whether they lead still, until they are told that they don't.
    """

    def __init__(self, world, manager_class=JobManager, *, is_careless=False):
        super().__init__(world, manager_class)
        self.is_careless = is_careless
        self.lease = SimulatedStore(world)
        self.candidates: list[Candidate] = []

    def start(self, restore=None):
        """One more JobManager stands by; whichever leads goes on from the newest checkpoint."""
        self.candidates.append(Candidate(self))

    def leads(self, candidate: Candidate) -> Driver:
        """A leader takes over."""
        self.driver = Driver(
            self,
            candidate.process,
            restore="latest" if self.storage.newest is not None else None,
            resumed=bool(self.drivers),
            manager_class=self.manager_class,
            may_act=candidate.may_act,
        )
        self.drivers.append(self.driver)
        return self.driver

    def is_replaced(self, driver):
        """An older leader deploys after a newer one only if it does not look."""
        return self.is_careless

    def ended(self, driver):
        """See `SimulatedJob.ended`: the JobManager's process ends with it."""
        super().ended(driver)
        if not self.is_over:
            next(each for each in self.candidates if each.driver is driver).resign()


class LeaseTrouble(Trouble):
    """Also the lease's store is disturbed, and standbys die."""

    def __init__(self, job: LedJob):
        self._led = job
        super().__init__(job, {"lease": self._disturb_lease, "standby": self._kill_standby})
        self._names += 2 * ["kill manager", "pause manager", "lease"]

    def _disturb_lease(self, driver):
        store, world = self._led.lease, self._world
        name, value = world.random.choice(
            [
                ("is_down", True),
                ("silence", 0.5),
                ("loss", 0.4),
                ("delay_seconds", (0.0, world.between((0.1, LEASE_SECONDS)))),
            ]
        )
        setattr(store, name, value)
        self._later((0.5, 1.5 * LEASE_SECONDS), store.be_well)

    def _kill_standby(self, driver):
        standbys = [
            each for each in self._led.candidates if each.process.is_alive and each.process is not driver.process
        ]
        if not standbys:
            return False
        self._world.random.choice(standbys).process.kill()
        self._later((0.0, 4.0), self._led.start)
        return True

    def end(self):
        """Peace, for the lease too."""
        super().end()
        self._led.lease.be_well()


def simulate_led_job(world, manager_class=JobManager, *, is_careless=False) -> LedJob:
    """As `simulate_job`, with several JobManagers."""
    job = LedJob(world, manager_class, is_careless=is_careless)
    for _ in range(world.random.randint(1, 3)):
        job.start()
    go_through(job, LeaseTrouble(job))
    return job
