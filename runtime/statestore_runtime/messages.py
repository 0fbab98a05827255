"""What a running job tells whoever watches it: one JSON object a line, from worker process to command, or to a callback."""

from __future__ import annotations

from typing import Any

import msgspec

from statestore.config import Config


class Message(msgspec.Struct, tag_field="type", kw_only=True, frozen=True):
    """Base of all messages."""


class Loaded(Message, tag="loaded", kw_only=True, frozen=True):
    """The worker has read the job's file: what the job is called, and the configuration with the job's own defaults."""

    job: str
    config: Config
    """Between the two processes only: it may hold secrets."""


class Heartbeat(Message, tag="heartbeat", kw_only=True, frozen=True):
    """The worker lives, though it may have nothing to tell."""


class Restoring(Message, tag="restoring", kw_only=True, frozen=True):
    """How far the restoring of the job's state is: before it has started or, when it is restored lazily, while it runs."""

    job: str
    bytes_done: int
    bytes_total: int
    entries: int
    seconds: float
    eta_seconds: float | None
    """What is probably left, None while that can't be told."""


class Started(Message, tag="started", kw_only=True, frozen=True):
    """The job has opened its state and begins to read."""

    job: str
    backend: str
    state: str
    """Where the backend keeps its state, without secrets."""
    checkpoints: str
    """Where checkpoints go."""
    attempt: int
    restored_checkpoint: int | None = None
    restored_epoch: int = 0
    events: int = 0
    """Events read before, as the restored checkpoint knows."""
    recover_seconds: float = 0.0


class Progress(Message, tag="progress", kw_only=True, frozen=True):
    """How far the job is."""

    events: int
    """Events read since the job's beginning, restored ones included."""
    seconds: float
    checkpoints: int
    state_bytes: int
    """Size of the last checkpoint, base and deltas together."""
    wal_disk_bytes: int = 0
    """Bytes of the log that are kept."""
    wal_age_seconds: float = 0.0
    """Age of the oldest of them."""


class CheckpointCompleted(Message, tag="checkpoint-completed", kw_only=True, frozen=True):
    """A checkpoint can be restored from now on."""

    checkpoint: int
    epoch: int
    seconds: float
    uploaded_bytes: int
    total_bytes: int


class CheckpointFailed(Message, tag="checkpoint-failed", kw_only=True, frozen=True):
    """A checkpoint was given up; the job goes on or fails as `checkpointing.tolerable-failed` says."""

    epoch: int
    reason: str


class Finished(Message, tag="finished", kw_only=True, frozen=True):
    """The job has read its sources to the end, and all it wrote is committed."""

    job: str
    events: int
    events_this_run: int
    bad_records: int
    keys: int
    seconds: float
    checkpoints: int
    last_checkpoint: int | None
    state_bytes: int
    uploaded_bytes: int
    wal_disk_bytes: int
    wal_age_seconds: float
    outputs: list[str]
    shares: dict[str, float]
    """Share of total time by activity: wal, persistence, checkpoint, heartbeat, recovery."""


class Failed(Message, tag="failed", kw_only=True, frozen=True):
    """The job has ended with an error."""

    error: str
    """One line: what, where, how to mend it."""
    exit_code: int
    retryable: bool = False
    """Whether starting it again may help."""
    traceback: str = ""


class Restarting(Message, tag="restarting", kw_only=True, frozen=True):
    """The job has failed and will start again from its last checkpoint; told by who watches it."""

    reason: str
    restart: int
    """How many times it has been restarted, this one included."""
    delay_seconds: float


AnyMessage = (
    Loaded
    | Heartbeat
    | Restoring
    | Started
    | Progress
    | CheckpointCompleted
    | CheckpointFailed
    | Finished
    | Failed
    | Restarting
)

_encoder = msgspec.json.Encoder()
_decoder: Any = msgspec.json.Decoder(AnyMessage)


def to_line(message: Message) -> bytes:
    """One line of JSON with its newline."""
    return _encoder.encode(message) + b"\n"


def from_line(line: bytes) -> AnyMessage:
    """Message of a line. Raises msgspec.ValidationError when it is none."""
    message: AnyMessage = _decoder.decode(line)
    return message
