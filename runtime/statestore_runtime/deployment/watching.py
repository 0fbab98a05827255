"""What a running job has told, for those who ask how it stands; and what they ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from statestore.clock import Clock
from statestore_runtime.control.messages import (
    AnyRequest,
    CancelJob,
    Failure,
    JobStatus,
    MakeCheckpoint,
    MakeSavepoint,
    RescaleJob,
    StopJob,
)
from statestore_runtime.jobmanager.events import Cancel, Event, Rescale, Stop, TakeCheckpoint
from statestore_runtime.messages import (
    CheckpointCompleted,
    CheckpointFailed,
    Message,
    Progress,
    Restarting,
    Restoring,
    Started,
)
from statestore_runtime.protocol import Failed


class Watching:
    """Keeps the last messages of a run.

    Parameters
    ----------
    on_message
        They are handed on to it.
    """

    def __init__(self, clock: Clock, on_message: Callable[[Message], object]):
        self._clock, self._on_message = clock, on_message
        self._begun = clock.monotonic()
        self._started: Started | None = None
        self._progress: Progress | None = None
        self._restoring: Restoring | None = None
        self._checkpoint: CheckpointCompleted | None = None
        self._completed = self._failed = 0
        self._failure: str | None = None
        self._restarted: list[float] = []

    def show(self, message: Message) -> None:
        """Take a message."""
        match message:
            case Started():
                self._started, self._restoring = message, None
            case Progress():
                self._progress, self._restoring = message, None
            case Restoring():
                self._restoring = message
            case CheckpointCompleted():
                self._checkpoint = message
                self._completed += 1
            case CheckpointFailed():
                self._failure = message.reason
                self._failed += 1
            case Restarting():
                self._restarted.append(self._clock.monotonic())
        self._on_message(message)

    def added_to(self, status: JobStatus, failures: Iterable[Failed]) -> JobStatus:
        """What they tell, added to what is known otherwise."""
        now, causes = self._clock.monotonic(), list(failures)
        times = self._restarted[-len(causes) :] if causes else []
        times += [now] * (len(causes) - len(times))  # the last failure of all is followed by no restart
        status = replace(
            status,
            seconds=now - self._begun,
            progress=self._progress,
            restoring=self._restoring,
            last_checkpoint=self._checkpoint,
            completed_checkpoints=self._completed,
            failed_checkpoints=self._failed,
            last_checkpoint_failure=self._failure,
            failures=[
                Failure(error=cause.error, exit_code=cause.exit_code, seconds_ago=now - time)
                for cause, time in zip(causes, times, strict=True)
            ],
        )
        if self._started is None:
            return status
        return replace(
            status,
            attempt=self._started.attempt,
            backend=self._started.backend,
            place=self._started.state,
            checkpoints=self._started.checkpoints,
            restored_checkpoint=self._started.restored_checkpoint,
        )


def event_of(request: AnyRequest, reply: Callable[[dict[str, Any] | BaseException], object]) -> Event:
    """What a request is to the JobManager."""

    def told(name: str | None) -> Callable[[Any], None]:
        def tell(outcome: Any) -> None:
            reply(outcome if isinstance(outcome, BaseException) else {} if name is None else {name: outcome})

        return tell

    match request:
        case CancelJob():
            return Cancel(told(None))
        case StopJob(savepoint_dir=dir, drain=drain):
            return Stop(told("checkpoint" if dir is None else "savepoint"), dir, drain)
        case MakeSavepoint(dir=dir):
            return TakeCheckpoint(told("savepoint"), dir)
        case MakeCheckpoint(full=full):
            return TakeCheckpoint(told("checkpoint"), base=full)
        case RescaleJob(parallelism=parallelism):
            return Rescale(parallelism, told("parallelism"))
    raise AssertionError(f"{request} is no event")
