"""What the JobManager and its workers say to each other: commands one way, reports the other.

Every message of a deployment travels on that deployment's own connections, so that none of an earlier one can be taken for one of this;
those about a checkpoint carry its number, so that what comes late, twice or never does no harm.
"""

from __future__ import annotations

from typing import Any

import msgspec

from statestore.checkpoint.manifest import Manifest
from statestore_runtime.messages import Finished, Message, Progress, Restoring


class Deploy(msgspec.Struct, frozen=True, kw_only=True):
    """What one deployment of a job is to be."""

    attempt: int
    """Fencing token, shared by its workers."""
    parallelism: int
    restore: str | None
    run: str
    careful: bool = False
    """Whether a function failed before: then what was processed before the failing event is kept. See `task.careful`."""


class Command(msgspec.Struct, tag_field="type", frozen=True, kw_only=True):
    """Base of what a worker is told."""


class Begin(Command, tag="begin", frozen=True, kw_only=True):
    """Read the sources from now on."""


class Assign(Command, tag="assign", frozen=True, kw_only=True):
    """These splits of a source are yours, maybe none: all others that are known are not."""

    source: str
    splits: list[str]


class NoMoreSplits(Command, tag="no-more-splits", frozen=True, kw_only=True):
    """A source has ended where its splits have."""

    source: str


class Trigger(Command, tag="trigger", frozen=True, kw_only=True):
    """Let a barrier go from the sources."""

    checkpoint: int
    final: bool = False
    """Whether the job has finished with it."""
    stop: bool = False
    """Whether nothing is to be read after the barrier."""
    base: bool = False
    """Whether it is to hold a whole new base."""


class Complete(Command, tag="complete", frozen=True, kw_only=True):
    """A checkpoint can be restored from now on: make visible what belongs to it."""

    checkpoint: int
    manifest: Manifest
    path: str
    seconds: float


class Abort(Command, tag="abort", frozen=True, kw_only=True):
    """A checkpoint is given up."""

    checkpoint: int
    reason: str


class Relax(Command, tag="relax", frozen=True, kw_only=True):
    """No need to be careful any more."""


class Drain(Command, tag="drain", frozen=True, kw_only=True):
    """Take the sources as ended: windows fire, and the job finishes."""


AnyCommand = Begin | Assign | NoMoreSplits | Trigger | Complete | Abort | Relax | Drain


class Report(msgspec.Struct, tag_field="type", frozen=True, kw_only=True):
    """Base of what a worker tells."""


class Heartbeat(Report, tag="heartbeat", frozen=True, kw_only=True):
    """The worker lives, though it may have nothing to tell."""


class Opened(Report, tag="opened", frozen=True, kw_only=True):
    """State, sinks and operators are open."""

    backend: str
    state: str
    """Where the backend keeps its state, without secrets."""
    checkpoints: str
    restored_checkpoint: int | None
    restored_epoch: int
    is_newest: bool
    """Whether "latest" means just what was restored."""
    events: int
    """Read before, by all workers, as the restored checkpoint knows."""
    recover_seconds: float
    splits: dict[str, list[str]]
    """By source, those the restored checkpoint knows."""


class Discovered(Report, tag="discovered", frozen=True, kw_only=True):
    """New splits of a source."""

    source: str
    splits: list[str]
    is_final: bool
    """Whether there will be no more."""


class Acknowledged(Report, tag="acknowledged", frozen=True, kw_only=True):
    """A worker's part of a checkpoint is durable."""

    checkpoint: int
    manifest: Manifest
    meta: dict[str, Any]
    phases: dict[str, float]
    """Seconds by phase: start delay, alignment, sync, async."""


class Declined(Report, tag="declined", frozen=True, kw_only=True):
    """A worker's part of a checkpoint failed."""

    checkpoint: int
    reason: str
    exit_code: int
    cause: Any = None
    """The exception, where it need not leave the process."""


class CheckpointWanted(Report, tag="checkpoint-wanted", frozen=True, kw_only=True):
    """More is uncommitted than memory is meant for."""


class InputEnded(Report, tag="input-ended", frozen=True, kw_only=True):
    """Everything that will ever come has been processed."""


class Working(Report, tag="working", frozen=True, kw_only=True):
    """How far a worker is."""

    progress: Progress


class Recovering(Report, tag="recovering", frozen=True, kw_only=True):
    """How far a worker's restoring is."""

    restoring: Restoring


class Done(Report, tag="done", frozen=True, kw_only=True):
    """The final checkpoint's output is visible; the worker's figures."""

    finished: Finished


class Failed(Report, tag="failed", frozen=True, kw_only=True):
    """The worker has ended with an error."""

    error: str
    """One line: what, where, how to mend it."""
    exit_code: int
    is_known: bool = True
    """Whether it is one of statestore's own errors, not one inside it."""
    is_users: bool = False
    """Whether a function of the job raised it."""
    is_lost_peer: bool = False
    """Whether it was another worker that hung up."""
    is_reproduced: bool = False
    """Whether it did so again, in a deployment that was careful."""
    can_save: bool = False
    """Whether the worker stands right before the event, and can take part in a checkpoint."""
    claim_above: int | None = None
    """The backend's owner is an attempt that the checkpoints know nothing of: claim a greater one."""
    traceback: str = ""
    cause: Any = None
    """The exception, where it need not leave the process."""


AnyReport = (
    Heartbeat
    | Opened
    | Discovered
    | Acknowledged
    | Declined
    | CheckpointWanted
    | InputEnded
    | Working
    | Recovering
    | Done
    | Failed
)

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)
_report_decoder: msgspec.msgpack.Decoder[AnyReport] = msgspec.msgpack.Decoder(AnyReport)


def encode(message: Command | Report | Message | Deploy) -> bytes:
    """Bytes of a message."""
    return _encoder.encode(message)


def decode_command(data: bytes) -> AnyCommand:
    """Command of its bytes. Raises msgspec.ValidationError when it is none."""
    return _command_decoder.decode(data)


def decode_report(data: bytes) -> AnyReport:
    """Report of its bytes. Raises msgspec.ValidationError when it is none."""
    return _report_decoder.decode(data)
