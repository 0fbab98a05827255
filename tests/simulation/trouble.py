"""What befalls a simulated job: its JobManager, its workers, its storage, and the people who ask it for things."""

from __future__ import annotations

from functools import partial

from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.state import JobState
from tests.simulation.job import SimulatedJob

TROUBLE_SECONDS = 20.0
PATIENCE_SECONDS = 150.0
"""Until what hangs is given up, and the restarts' delays are over."""

EPILOGUE_SECONDS = 5.0
REQUESTS = ("checkpoint", "savepoint", "stop", "savepoint-stop", "drain", "cancel", "rescale")
RARE = {"drain": 0.3, "cancel": 0.5, "stop": 0.5, "savepoint-stop": 0.5}
"""Those that end the run: with this probability they are asked for when chance picks them."""


class Trouble:
    """Faults at random moments, and right after the JobManager has come to a new state.

    Parameters
    ----------
    more
        Further faults: functions that take the driver.
    """

    def __init__(self, job: SimulatedJob, more=()):
        self._job, self._world = job, job.world
        self._is_over = False
        self._faults = {
            "kill manager": self._kill_manager,
            "pause manager": self._pause_manager,
            "kill worker": self._kill_worker,
            "pause worker": self._pause_worker,
            "cut worker": self._cut_worker,
            "storage": self._disturb_storage,
            "workers": self._disturb_workers,
            **{kind: partial(self._ask, kind) for kind in REQUESTS},
            **dict(more),
        }
        chance = self._world.chance
        self._names = [name for name in self._faults if chance(0.5)] or [
            "kill worker"
        ]  # more come together than of all at once
        self._rest = self._world.between((0.5, 6.0))
        job.on_state, job.on_commit = self._on_state, self._on_commit
        if chance(0.5):
            job.put_poison()
        self._next()

    def end(self):
        """From now on there is peace."""
        self._is_over = True
        job = self._job
        job.storage.be_well()
        job.slow_openings = job.slow_checkpoints = job.declining = job.escaping = 0.0
        self._world.note("trouble", "is over")

    def _next(self):
        self._world.schedule(self._world.between((0.0, self._rest)), self._befall)

    def _befall(self):
        if not self._is_over:
            self._strike()
            self._next()

    def _on_state(self, driver, state):
        is_short = state in (JobState.FAILING, JobState.RESTARTING)
        if not self._is_over and self._world.chance(0.9 if is_short else 0.3):
            driver.process.schedule(self._world.between((0.0, 0.1 if is_short else 0.4)), self._strike)

    def _on_commit(self, driver):
        if not self._is_over and self._world.chance(0.1):
            driver.process.schedule(self._world.between((0.0, 0.1)), self._strike)

    def _strike(self):
        driver = self._job.driver
        if self._is_over or driver is None or driver.is_over or not driver.process.is_alive:
            return
        name = self._world.random.choice(self._names)
        state = driver.manager.state
        if self._faults[name](driver) is not False:
            self._world.note("trouble", name)
            self._job.judge.hit(name, state)

    def _later(self, span, action):
        self._world.schedule(self._world.between(span), action)

    def _kill_manager(self, driver):
        driver.process.kill()
        self._job.manager_died(driver)

    def _pause_manager(self, driver):
        driver.process.pause()
        self._later((0.1, 10.0), driver.process.resume)

    def _victim(self, driver):
        alive = [worker for worker in driver.workers if worker.process.is_alive]
        return self._world.random.choice(alive) if alive else None

    def _kill_worker(self, driver):
        if (victim := self._victim(driver)) is None:
            return False
        victim.exit()
        return True

    def _pause_worker(self, driver):
        if (victim := self._victim(driver)) is None:
            return False
        victim.process.pause()
        self._later((0.1, 20.0), victim.process.resume)
        return True

    def _cut_worker(self, driver):
        if (victim := self._victim(driver)) is None:
            return False
        driver.cut_off(victim, is_noticed=self._world.chance(0.5))
        return True

    def _disturb_storage(self, driver):
        storage, world = self._job.storage, self._world
        name, value = world.random.choice(
            [
                ("is_down", True),
                ("failing", 0.5),
                ("ambiguous", 0.5),
                ("hanging", 0.4),
                ("straggling", 0.4),
                ("delay_seconds", (0.0, world.between((0.5, 6.0)))),
            ]
        )
        setattr(storage, name, value)
        self._later((0.5, 6.0), storage.be_well)

    def _disturb_workers(self, driver):
        job = self._job
        name = self._world.random.choice(["slow_openings", "slow_checkpoints", "declining", "escaping"])
        setattr(job, name, self._world.between((0.1, 0.6)))
        self._later((0.5, 6.0), lambda: setattr(job, name, 0.0))

    def _ask(self, kind, driver):
        if not self._world.chance(RARE.get(kind, 1.0)):
            return False
        self._job.ask(kind)
        return True


def simulate_job(world, manager_class=JobManager) -> SimulatedJob:
    """Trouble, then peace, in which the job must come to its end; then whoever has slept wakes up, and must change nothing."""
    job = SimulatedJob(world, manager_class)
    job.start()
    go_through(job, Trouble(job))
    return job


def go_through(job: SimulatedJob, trouble: Trouble) -> None:
    """Let a job come to its end, in spite of all trouble and soon after it."""
    world = job.world
    _run(job, TROUBLE_SECONDS)
    trouble.end()
    _wake_all(job)
    _run(job, TROUBLE_SECONDS + PATIENCE_SECONDS)
    assert job.is_over, (
        f"after {PATIENCE_SECONDS:g} s of peace the job is {job.driver and job.driver.manager.state.value} still"
    )
    _wake_all(job)
    visible = len(job.output.visible)
    world.run(until=world.now + EPILOGUE_SECONDS)
    assert len(job.output.visible) == visible, "something has become visible after the end"
    job.judge.concludes()
    for driver in job.drivers:
        job.check_answers(driver)


def _wake_all(job):
    for each in [*job.drivers, *job.workers]:
        each.process.resume()


def _run(job, until):
    while not job.is_over and job.world.now < until:
        job.world.run(until=min(until, job.world.now + 2.0))
