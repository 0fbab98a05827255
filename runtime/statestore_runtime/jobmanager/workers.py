"""The workers of one deployment: what is known of them, and who reads what."""

from __future__ import annotations

from dataclasses import dataclass

from statestore_runtime.jobmanager.events import Deployment
from statestore_runtime.jobmanager.splits import SplitAssigner
from statestore_runtime.messages import Finished, Progress, Started
from statestore_runtime.protocol import (
    AnyCommand,
    AnyReport,
    Assign,
    Discovered,
    Done,
    InputEnded,
    NoMoreSplits,
    Opened,
    Working,
)


@dataclass(slots=True)
class _Worker:
    opened: Opened | None = None
    progress: Progress | None = None
    finished: Finished | None = None
    has_input_ended: bool = False


class Workers:
    """Workers 0 to `parallelism` - 1, of which nothing is known at first."""

    def __init__(self, parallelism: int, deployment: Deployment):
        self.parallelism, self._deployment = parallelism, deployment
        self._all = [_Worker() for _ in range(parallelism)]
        self._splits: dict[str, SplitAssigner] = {}

    def send_all(self, command: AnyCommand) -> None:
        """Tell all of them the same."""
        for worker in range(self.parallelism):
            self._deployment.send(worker, command)

    # What they tell

    def take(self, worker: int, report: AnyReport) -> None:
        """Take what a worker reports, if it is about itself or about what there is to read."""
        known = self._all[worker]
        match report:
            case Opened():
                known.opened = report
                if worker == 0:  # all have restored the same checkpoint, or none of them goes on
                    self._splits = {
                        uid: SplitAssigner(splits, self.parallelism) for uid, splits in report.splits.items()
                    }
            case Discovered():
                self._assign(report)
            case Working(progress=progress):
                known.progress = progress
            case InputEnded():
                known.has_input_ended = True
            case Done(finished=finished):
                known.finished = finished

    def _assign(self, report: Discovered) -> None:
        """Tell everybody which of a source's new splits are theirs."""
        assigner = self._splits.setdefault(report.source, SplitAssigner((), self.parallelism))
        assigned = assigner.assign(report.splits)
        for worker in range(self.parallelism):  # those that get none are to know that
            self._deployment.send(worker, Assign(source=report.source, splits=assigned.get(worker, [])))
        if report.is_final:
            self.send_all(NoMoreSplits(source=report.source))

    # What is known

    @property
    def have_opened(self) -> bool:
        """Whether all have."""
        return all(worker.opened is not None for worker in self._all)

    @property
    def have_input_ended(self) -> bool:
        """Whether all have come to the end of what there is to process."""
        return all(worker.has_input_ended for worker in self._all)

    @property
    def have_finished(self) -> bool:
        """Whether all have done all they will."""
        return all(worker.finished is not None for worker in self._all)

    def has_finished(self, worker: int) -> bool:
        """Whether this one has done all it will."""
        return self._all[worker].finished is not None

    @property
    def reports(self) -> list[Opened]:
        """Of those that have opened their state, in order."""
        return [worker.opened for worker in self._all if worker.opened is not None]

    @property
    def progress(self) -> list[Progress]:
        """Of those that have told of it."""
        return [worker.progress for worker in self._all if worker.progress is not None]

    @property
    def figures(self) -> list[Finished]:
        """Of those that have finished."""
        return [worker.finished for worker in self._all if worker.finished is not None]

    @property
    def events(self) -> int:
        """How many they have read, as far as they have told."""
        return sum(progress.events for progress in self.progress)

    @property
    def disagreement(self) -> str | None:
        """What is wrong when they have restored different checkpoints."""
        numbers = [report.restored_checkpoint for report in self.reports]
        if len(set(numbers)) == 1:
            return None
        return f"the workers restored different checkpoints ({', '.join(map(str, numbers))})"

    @property
    def checkpoints(self) -> str:
        """Where checkpoints go, for messages."""
        return next((report.checkpoints for report in self.reports), "its storage")

    def started(self, job: str, attempt: int) -> Started:
        """What is told of a deployment whose workers have all opened the same state."""
        first = self.reports[0]
        return Started(
            job=job,
            backend=first.backend,
            state=first.state,
            checkpoints=first.checkpoints,
            attempt=attempt,
            parallelism=self.parallelism,
            restored_checkpoint=first.restored_checkpoint,
            restored_epoch=first.restored_epoch,
            events=first.events,
            recover_seconds=max(report.recover_seconds for report in self.reports),
        )
