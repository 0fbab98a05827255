"""What the process that runs a job can be asked for, and what it answers: one line of JSON each way.

    {"request":"rescale","parallelism":4}
    {"result":{"parallelism":4}}                                or {"error":"job 'flights' is restarting: ...","exit_code":3}

Empty lines before the answer say only that the process lives.
"""

from __future__ import annotations

from typing import Any

import msgspec

from statestore.errors import StateStoreError
from statestore_runtime.messages import CheckpointCompleted, Progress, Restoring


class Request(msgspec.Struct, tag_field="request", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all requests."""


class GetStatus(Request, tag="status", frozen=True, kw_only=True):
    """How does the job stand?"""


class CancelJob(Request, tag="cancel", frozen=True, kw_only=True):
    """End at once: nothing after the last checkpoint counts."""


class StopJob(Request, tag="stop", frozen=True, kw_only=True):
    """Stop with a checkpoint."""

    savepoint_dir: str | None = None
    """Where it is to be copied to."""
    drain: bool = False
    """Whether the job is to finish, as if its sources had ended."""


class MakeSavepoint(Request, tag="savepoint", frozen=True, kw_only=True):
    """Make a checkpoint, and copy it."""

    dir: str


class MakeCheckpoint(Request, tag="checkpoint", frozen=True, kw_only=True):
    """Make a checkpoint now."""

    full: bool = False
    """Whether it is to hold a whole new base."""


class RescaleJob(Request, tag="rescale", frozen=True, kw_only=True):
    """Go on with another number of workers."""

    parallelism: int


AnyRequest = GetStatus | CancelJob | StopJob | MakeSavepoint | MakeCheckpoint | RescaleJob


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has come of a request."""

    result: dict[str, Any] | None = None
    error: str | None = None
    """One line, where it has failed."""
    exit_code: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job was restarted, or has ended."""

    error: str
    exit_code: int
    seconds_ago: float


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands, as one of its JobManagers sees it."""

    job: str
    state: str
    """created, restoring, running, failing, restarting, finished, failed or cancelled; standby where another process leads."""
    pid: int
    """Of the JobManager's process."""
    host: str = ""
    seconds: float = 0.0
    """Since this process began the run, or began to stand by."""
    attempt: int | None = None
    parallelism: int | None = None
    backend: str | None = None
    place: str | None = None
    """Where the backend keeps its state, without secrets."""
    checkpoints: str | None = None
    """Where checkpoints go."""
    restored_checkpoint: int | None = None
    restarts: int = 0
    failures: list[Failure] = []
    """The last causes of restarts, oldest first."""
    progress: Progress | None = None
    restoring: Restoring | None = None
    """While the state is restored."""
    last_checkpoint: CheckpointCompleted | None = None
    completed_checkpoints: int = 0
    """By this process."""
    failed_checkpoints: int = 0
    last_checkpoint_failure: str | None = None
    workers: list[int] = []
    """Process ids of those that live."""
    leader: str | None = None
    """With high availability, who leads: a place that only tells where to look."""
    token: int | None = None
    """With high availability, the number of this process's leadership."""


class JobNotRunningError(StateStoreError, ProcessLookupError):
    """No process runs the job, as far as this machine knows."""

    exit_code = 9

    def __init__(self, job: str, place: str, hint: str):
        self.job, self.place, self.hint = job, place, hint
        super().__init__(f"job '{job}' is not running ({place}): {hint}")


class RequestFailedError(StateStoreError, RuntimeError):
    """The job answered with an error; `exit_code` is that of its kind."""

    def __init__(self, problem: str, exit_code: int):
        self.exit_code = exit_code  # type: ignore[misc]  # this error stands for many kinds
        super().__init__(problem)


_request_decoder: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
_answer_decoder = msgspec.json.Decoder(Answer)


def encode_line(message: Request | Answer) -> bytes:
    """A message as one line."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> AnyRequest:
    """Request of a line. Raises msgspec.DecodeError."""
    return _request_decoder.decode(line)


def decode_answer(line: bytes) -> Answer:
    """Answer of a line. Raises msgspec.DecodeError."""
    return _answer_decoder.decode(line)


def answer_of(outcome: dict[str, Any] | BaseException) -> Answer:
    """What a request has come to, as it is told."""
    if isinstance(outcome, StateStoreError):
        return Answer(error=" ".join(str(outcome).split()), exit_code=outcome.exit_code)
    if isinstance(outcome, BaseException):
        return Answer(error=f"internal error: {type(outcome).__name__}: {outcome}", exit_code=1)
    return Answer(result=outcome)
