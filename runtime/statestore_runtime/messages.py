"""What a running job tells whoever watches it: one JSON object a line, from worker process to command, or to a callback."""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, tag_field="type", kw_only=True, frozen=True):
    """Base of all messages."""


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
    recover_seconds: float = 0.0


class Progress(Message, tag="progress", kw_only=True, frozen=True):
    """Sent at every heartbeat."""

    events: int
    """Events read since the job's beginning, restored ones included."""
    seconds: float
    checkpoints: int
    state_bytes: int
    """Size of the last checkpoint, base and deltas together."""


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
    outputs: list[str]
    shares: dict[str, float]
    """Share of total time by activity: wal, persistence, checkpoint, heartbeat, recovery."""


class Failed(Message, tag="failed", kw_only=True, frozen=True):
    """The job has ended with an error."""

    error: str
    """One line: what, where, how to mend it."""
    exit_code: int
    traceback: str = ""


AnyMessage = Started | Progress | CheckpointCompleted | CheckpointFailed | Finished | Failed

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyMessage)


def to_line(message: Message) -> bytes:
    """One line of JSON with its newline."""
    return _encoder.encode(message) + b"\n"


def from_line(line: bytes) -> Any:
    """Message of a line. Raises msgspec.ValidationError when it is none."""
    return _decoder.decode(line)
