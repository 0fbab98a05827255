"""What happens to a JobManager. All that belongs to a deployment carries its number: what is of an earlier one is passed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.snapshot import CheckpointInfo
from statestore.errors import StateStoreError
from statestore_runtime.protocol import AnyCommand, AnyReport, Deploy


class RequestRefusedError(StateStoreError, RuntimeError):
    """The job can't do now what it is asked for: ask again later."""

    exit_code = 3


Reply = Callable[[Any], None]
"""Takes what a request has come to, or the exception it has failed with; called once."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A deployment has got its attempt, or has not."""

    deployment: int
    attempt: int | None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A worker has reported something."""

    deployment: int
    worker: int
    report: AnyReport


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, or can't be heard any more."""

    deployment: int
    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint's manifest is written, or could not be."""

    deployment: int
    checkpoint: int
    info: CheckpointInfo | None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """A savepoint is complete, or could not be made."""

    path: str | None
    reply: Reply
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class TakeCheckpoint:
    """Somebody asks for a checkpoint; with `savepoint_dir`, for a savepoint there."""

    reply: Reply
    savepoint_dir: str | None = None
    base: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody asks the job to stop with a checkpoint or a savepoint; with `drain`, as if its sources had ended."""

    reply: Reply
    savepoint_dir: str | None = None
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody asks the job to end at once: nothing after its last checkpoint counts."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Rescale:
    """Somebody asks the job to go on with another number of workers."""

    parallelism: int
    reply: Reply


Request = TakeCheckpoint | Stop | Cancel | Rescale
Event = Claimed | Told | Lost | Committed | Copied | Request


class Deployment(Protocol):
    """What carries out a JobManager's decisions. No method but `end` waits: what comes of it is an event."""

    def claim(self, deployment: int, above: int) -> None:
        """Claim an attempt, greater than `above`: `Claimed`."""
        ...

    def start(self, deployment: int, deploy: Deploy) -> None:
        """Start the workers: `Told` and `Lost`."""
        ...

    def send(self, worker: int, command: AnyCommand) -> None:
        """Tell a worker of the present deployment something; one that is gone hears nothing."""
        ...

    def end(self, *, at_once: bool) -> None:
        """End the workers of the present deployment: none of them does anything afterwards.

        Parameters
        ----------
        at_once
            Whether they are not given the time to close what they have open.
        """
        ...

    def commit(
        self, deployment: int, checkpoint: int, manifests: list[Manifest], meta: dict[str, Any], seconds: float
    ) -> None:
        """Write the manifest of a checkpoint: `Committed`."""
        ...

    def copy(self, deployment: int, manifest: Manifest, dir: str, reply: Reply) -> None:
        """Copy a complete checkpoint to a folder: `Copied`."""
        ...
