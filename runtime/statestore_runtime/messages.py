"""What a running job tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Message(msgspec.Struct, tag_field="type", kw_only=True, frozen=True):
    """Base of all messages."""


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
    parallelism: int = 1
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
    tasks: list[dict[str, float]] = []
    """Of each worker, seconds by phase: start-delay (from the trigger to the first barrier), alignment (to the last), sync (which stops
    processing) and async (uploading)."""
    commit_seconds: float = 0.0
    """Writing the manifest."""


class CheckpointFailed(Message, tag="checkpoint-failed", kw_only=True, frozen=True):
    """A checkpoint was given up; the job goes on or fails as `checkpointing.tolerable-failed` says."""

    checkpoint: int
    """Which one of this deployment."""
    reason: str


class Finished(Message, tag="finished", kw_only=True, frozen=True):
    """The job has read its sources to the end, and all it wrote is committed."""

    job: str
    events: int
    events_this_run: int
    bad_records: int
    keys: int | None
    """Those that have state; None where a worker has so much of it that the job's end would wait for the counting."""
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
    skipped_events: int = 0
    """Events, and timers, passed over because a function failed on them."""
    late_events: int = 0
    """Events that came too late for a window or a join, and were dropped."""


class Restarting(Message, tag="restarting", kw_only=True, frozen=True):
    """The job has failed and will start again from its last checkpoint; told by who watches it."""

    reason: str
    restart: int
    """How many times it has been restarted, this one included."""
    delay_seconds: float


def progress_of(workers: Sequence[Progress], checkpoints: int) -> Progress:
    """How far a job is, by what its workers tell."""
    return Progress(
        events=sum(worker.events for worker in workers),
        seconds=max(worker.seconds for worker in workers),
        checkpoints=checkpoints,
        state_bytes=sum(worker.state_bytes for worker in workers),
        wal_disk_bytes=sum(worker.wal_disk_bytes for worker in workers),
        wal_age_seconds=max(worker.wal_age_seconds for worker in workers),
    )


def finished_of(
    workers: Sequence[Finished], *, checkpoints: int, last_checkpoint: int | None, heartbeat_seconds: float
) -> Finished:
    """What a job has come to, by what its workers tell; a share of time is the mean of theirs."""
    seconds = max(worker.seconds for worker in workers)
    shares = {
        activity: sum(worker.shares[activity] for worker in workers) / len(workers) for activity in workers[0].shares
    }
    shares["heartbeat"] += heartbeat_seconds / seconds
    keys = [worker.keys for worker in workers if worker.keys is not None]
    return Finished(
        job=workers[0].job,
        events=sum(worker.events for worker in workers),
        events_this_run=sum(worker.events_this_run for worker in workers),
        bad_records=sum(worker.bad_records for worker in workers),
        keys=sum(keys) if len(keys) == len(workers) else None,
        seconds=seconds,
        checkpoints=checkpoints,
        last_checkpoint=last_checkpoint,
        state_bytes=sum(worker.state_bytes for worker in workers),
        uploaded_bytes=sum(worker.uploaded_bytes for worker in workers),
        wal_disk_bytes=sum(worker.wal_disk_bytes for worker in workers),
        wal_age_seconds=max(worker.wal_age_seconds for worker in workers),
        outputs=list(dict.fromkeys(place for worker in workers for place in worker.outputs)),
        shares=shares,
        skipped_events=sum(worker.skipped_events for worker in workers),
        late_events=sum(worker.late_events for worker in workers),
    )
