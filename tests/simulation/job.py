"""A simulated job: what it reads, how it is configured, who asks it for what, and who starts it again when it has ended too early."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import msgspec

from statestore.config import CheckpointingConfig, Config, HeartbeatConfig, JobConfig, RestartConfig
from statestore_runtime.jobmanager.events import Cancel, Rescale, Stop, TakeCheckpoint
from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.state import JobState
from tests.simulation.driver import Driver
from tests.simulation.judge import Judge
from tests.simulation.storage import Output, Storage
from tests.simulation.worker import Worker
from tests.simulation.world import Network, World

POISON_FOR_EVER = 1 << 30
STOPS = ("stop", "savepoint-stop", "drain")


def config_of(world: World) -> Config:
    """Settings by chance, short enough for much to happen."""
    pick, span = world.random.choice, world.between
    restart = pick(
        [
            RestartConfig(type="exponential-delay", initial_backoff=0.5, max_backoff=4.0, reset_backoff_threshold=20.0),
            RestartConfig(type="exponential-delay", initial_backoff=0.2, max_backoff=2.0),
            RestartConfig(type="exponential-delay", initial_backoff=0.5, attempts_before_reset_backoff=3),
            RestartConfig(type="fixed-delay", attempts=pick([1, 10]), delay=span((0.0, 3.0))),
            RestartConfig(type="failure-rate", max_failures_per_interval=3, failure_rate_interval=20.0, delay=0.5),
            RestartConfig(type="none"),
        ]
    )
    return msgspec.structs.replace(
        Config(),
        checkpointing=CheckpointingConfig(
            interval=pick([0.0, 0.5, 1.0, 3.0]),
            min_pause=pick([0.0, 0.0, 0.3, 2.0]),
            timeout=span((2.0, 6.0)),
            tolerable_failed=pick([0, 0, 1, 5]),
            on_failure=world.chance(0.8),
        ),
        heartbeat=HeartbeatConfig(interval=1.0, timeout=span((3.0, 8.0))),
        job=JobConfig(restore_timeout=span((4.0, 10.0)), stop_timeout=span((2.0, 10.0))),
        restart=restart,
    )


class Asked:
    """A request, and what it has come to."""

    def __init__(self, world: World, driver: Driver, kind: str):
        self._world, self.driver, self.kind = world, driver, kind
        self.answers: list[object] = []

    def reply(self, outcome):
        self._world.note(self.kind, f"answered: {outcome}")
        self.answers.append(outcome)
        assert len(self.answers) == 1, f"{self.kind} is answered twice: {self.answers}"


@dataclass(frozen=True)
class Summary:
    """What has happened to a job."""

    hits: frozenset[tuple[str, JobState]]
    """Faults, and the JobManager's state in which they came."""
    events: int
    attempts: int
    leaders: int
    rescales: int
    zombies: int
    """Workers that could not be ended with their deployment."""


class SimulatedJob:
    """Splits of numbered events that are to be counted and put out, once each, whatever happens to whoever does it."""

    slow_openings = slow_checkpoints = declining = escaping = 0.0

    def __init__(self, world: World, manager_class=JobManager, config: Config | None = None):
        self.world, self.manager_class = world, manager_class
        self.config = config or config_of(world)
        self.network = Network(world, delay_seconds=(0.001, 0.02))
        self.storage = Storage(world)
        self.output = Output(owner=world.random.choice([0, 0, 0, 7]))  # 7: of a run whose checkpoints were removed
        self.splits = {f"split-{n}": world.random.randint(0, 12) for n in range(world.random.randint(0, 4))}
        self.poison: dict[tuple[str, int], int] = {}
        self.savepoints: dict[str, object] = {}
        self.judge = Judge(self)
        self.asked: list[Asked] = []
        self.is_over = False
        self.zombies = 0
        self.driver: Driver | None = None
        self.drivers: list[Driver] = []
        self.workers: list[Worker] = []
        """All that there ever were."""
        self._counts: dict[str, int] = {}
        self._replaced: set[int] = set()
        self.on_state = lambda driver, state: None
        self.on_commit = lambda driver: None

    def count(self, what: str) -> int:
        """1, 2, ... for each thing."""
        self._counts[what] = self._counts.get(what, 0) + 1
        return self._counts[what]

    def put_poison(self):
        """Let the function fail on some events: a few times, or always until somebody mends it."""
        for split, events in self.splits.items():
            if events and self.world.chance(0.2):
                event = split, self.world.random.randrange(events)
                self.poison[event] = self.world.random.choice([1, 2, POISON_FOR_EVER])

    @property
    def summary(self) -> Summary:
        """What has happened to it."""
        return Summary(
            hits=frozenset(self.judge.hits),
            events=len(self.output.visible),
            attempts=self.storage.attempt,
            leaders=len(self.drivers),
            rescales=sum(
                each.kind == "rescale" and all(isinstance(answer, int) for answer in each.answers)
                for each in self.asked
            ),
            zombies=self.zombies,
        )

    # Life

    def start(self, restore: str | None = None):
        """Somebody starts the job's JobManager."""
        if restore is None and self.storage.newest is not None:
            restore = "latest"
        name = f"jm{self.count('jobmanager')}"
        process = self.world.process(name, clock_rate=self.world.between((0.95, 1.05)))
        self.driver = Driver(self, process, restore=restore, manager_class=self.manager_class)
        self.drivers.append(self.driver)

    def entered(self, driver: Driver, state: JobState):
        """A JobManager's state is another one."""
        self.on_state(driver, state)

    def ended(self, driver: Driver):
        """A JobManager is at its end: is there something to be done still, then it is started again."""
        manager = driver.manager
        self._check_answers(driver)
        assert (manager.finished is not None) == (manager.state is JobState.FINISHED)
        if manager.state is JobState.FAILED:
            self._look_at_failure(driver)
        if self._has_all_output():
            self._conclude()
            return
        if manager.state is JobState.FINISHED:
            stops = [each for each in self.asked if each.driver is driver and each.kind in STOPS]
            assert stops, "it has finished, though not all it has read is visible, and nobody has stopped it"
        self._replaced.add(driver.number)
        restore = self._savepoint_of(driver) if self.world.chance(0.5) else None
        self.world.schedule(self.world.between((0.0, 3.0)), partial(self.start, restore))

    def _savepoint_of(self, driver):
        """Where the one lies that the job was stopped with, if it is as new as can be."""
        if driver.manager.state is not JobState.FINISHED:
            return None
        for each in self.asked:
            if each.driver is driver and each.kind == "savepoint-stop" and each.answers:
                path, newest = each.answers[0], self.storage.newest
                if isinstance(path, str) and self.savepoints[path].checkpoint_id == newest.checkpoint_id:
                    return path
        return None

    def _has_all_output(self):
        return len(self.output.visible) == sum(self.splits.values()) and self.storage.newest is not None

    def _look_at_failure(self, driver):
        """Whoever runs the job mends what made it fail; it must not have failed for less."""
        failure = driver.manager.failures.last[-1]
        if failure.is_users and (failure.is_reproduced or self.config.restart.type != "exponential-delay"):
            self.poison.clear()
            return
        may_wait = failure.is_users or not failure.is_known or failure.exit_code == 3
        has_patience = self.config.restart.type == "exponential-delay" and (
            self.config.restart.attempts_before_reset_backoff is None
        )
        has_run = driver.is_resumed or driver.manager.last_checkpoint is not None
        assert not (may_wait and has_patience and has_run), f"it gives up for {failure.error}"

    def is_replaced(self, driver):
        """Whether somebody else runs the job by now."""
        return driver.number in self._replaced

    def manager_died(self, driver: Driver):
        """Workers see that their connection is closed, or find out when nothing comes any more; another JobManager is started."""
        self._replaced.add(driver.number)
        for worker in driver.workers:
            if self.world.chance(0.7):
                worker.process.schedule(self.world.between((0.0, 0.5)), worker.exit)
        if driver is self.driver:
            self.world.schedule(self.world.between((0.0, 4.0)), self.start)

    def _check_answers(self, driver):
        """Every request to it is answered, but for savepoints that are being copied."""
        self.world.schedule(3.0, partial(self.check_answers, driver))

    def check_answers(self, driver):
        """Every request to a JobManager is answered, unless it could not do so any more."""
        silent = [each.kind for each in self.asked if each.driver is driver and not each.answers]
        is_able = driver.process.is_alive and not driver.process.is_paused and not driver.is_deposed
        assert not silent or not is_able, f"{silent} are not answered"

    def _conclude(self):
        """All is done. Those who sleep wake up, and must change nothing."""
        self.is_over = True
        self.world.note("job", "is over")

    # Requests

    def ask(self, kind: str):
        """Somebody asks for something."""
        driver = self.driver
        if driver is None or driver.is_over or not driver.process.is_alive:
            return
        asked = Asked(self.world, driver, kind)
        self.asked.append(asked)
        chance = self.world.random
        request = {
            "checkpoint": lambda: TakeCheckpoint(asked.reply, base=chance.random() < 0.3),
            "savepoint": lambda: TakeCheckpoint(asked.reply, savepoint_dir="sp"),
            "stop": lambda: Stop(asked.reply),
            "savepoint-stop": lambda: Stop(asked.reply, savepoint_dir="sp"),
            "drain": lambda: Stop(asked.reply, drain=True),
            "cancel": lambda: Cancel(asked.reply),
            "rescale": lambda: Rescale(chance.randint(1, 4), asked.reply),
        }[kind]()
        self.world.note(kind, "asked")
        driver.process.schedule(0.0, lambda: driver.request(request))
