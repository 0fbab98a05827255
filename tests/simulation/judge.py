"""Sees all of a simulated job at once, and asserts what must hold whatever happens."""

from __future__ import annotations

from statestore_runtime.jobmanager.state import JobState
from tests.simulation.worker import SINK, SOURCE

TOLERANCE_SECONDS = 1e-6


class Judge:
    """Told of everything that matters, in the order in which it truly happens."""

    def __init__(self, job):
        self._job = job
        self._acknowledged = {}  # (attempt, checkpoint) -> subtask -> report
        self._deployed = {}  # attempt -> parallelism
        self._pending = {}  # attempt -> checkpoint
        self._last = {}  # attempt -> (number of the last checkpoint, when it was decided)
        self._may_read = set()  # attempts
        self._continued = {}  # attempt -> number of the newest checkpoint when it began
        self.hits = set()

    def deploys(self, driver, deploy):
        attempt = deploy.attempt
        assert attempt not in self._deployed, f"attempt {attempt} is deployed twice"
        later = [other for other in self._deployed if other > attempt]
        assert not later or self._job.is_replaced(driver), f"attempt {attempt} is deployed after {later}"
        assert driver.manager.state is JobState.RESTORING
        self._deployed[attempt] = deploy.parallelism

    def begins(self, driver, attempt, checkpoint):
        assert attempt not in self._pending, "two checkpoints are pending"
        number, ended = self._last.get(attempt, (0, None))
        assert checkpoint > number, f"checkpoint {checkpoint} after {number}"
        if ended is not None:
            pause = driver.process.clock.monotonic() - ended
            least = self._job.config.checkpointing.min_pause
            assert pause >= least - TOLERANCE_SECONDS, f"a pause of {pause} s, the least is {least} s"
        self._pending[attempt] = checkpoint

    def decides(self, driver, attempt, checkpoint):
        assert self._pending.pop(attempt, None) == checkpoint, "a checkpoint is decided that was not pending"
        self._last[attempt] = checkpoint, driver.process.clock.monotonic()

    def acknowledges(self, worker, report):
        self._acknowledged.setdefault((worker.attempt, report.checkpoint), {})[worker.subtask] = report

    def commits(self, driver, checkpoint, manifests, meta):
        attempt = manifests[0].attempt
        assert self._pending.get(attempt) == checkpoint, f"checkpoint {checkpoint} is committed and was not pending"
        reports = self._acknowledged.get((attempt, checkpoint), {})
        subtasks = range(self._deployed[attempt])
        missing = [subtask for subtask in subtasks if subtask not in reports]
        assert not missing, f"checkpoint {checkpoint} is committed, and workers {missing} have not acknowledged it"
        assert len(manifests) == len(subtasks)
        for subtask in subtasks:
            assert manifests[subtask] is reports[subtask].manifest, "it was another checkpoint that was acknowledged"
        assert meta["events"] == sum(report.meta["events"] for report in reports.values())
        known = meta["sources"][SOURCE]
        assert not known["splits"].keys() & known["finished"].keys()
        names = [transaction["id"] for transaction in meta["sinks"][SINK]["transactions"]]
        assert len(set(names)) == len(names)

    def opens(self, worker):
        self._continued[worker.attempt] = worker.newest

    def lets_read(self, driver, attempt):
        self._may_read.add(attempt)

    def reads(self, worker):
        """Nothing is read before "latest" means what the deployment goes on from."""
        assert worker.attempt in self._may_read, "it reads and was not told to"
        manifests = self._job.storage.manifests.values()
        is_restored = worker.restored is not None and worker.restored.checkpoint_id == worker.newest
        is_own = any(manifest.attempt == worker.attempt for manifest in manifests)
        assert is_restored or is_own, "it reads before there is a checkpoint to come back to"

    def hit(self, fault, state):
        """A fault has happened to a JobManager in a state."""
        self.hits.add((fault, state))

    def concludes(self):
        """The job has come to its end."""
        job = self._job
        by_split = {split: [] for split in job.splits}
        for split, number in job.output.visible:
            by_split[split].append(number)
        for split, numbers in by_split.items():
            count = job.splits[split]
            assert sorted(numbers) == list(range(count)), f"of {split}'s {count} events {sorted(numbers)} are visible"
        self._check_history()

    def _check_history(self):
        """Each checkpoint continues the one before."""
        last, author = 0, 0
        for number, attempt in self._job.storage.written:
            assert number > last, f"checkpoint {number} was written after {last}"
            is_continued = attempt == author or self._continued[attempt] == last
            assert is_continued, (
                f"checkpoint {number} of attempt {attempt} does not continue {last} of attempt {author}"
            )
            last, author = number, attempt
