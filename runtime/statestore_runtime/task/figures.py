"""What a worker tells of itself: how far it is, and at its end what it has come to and where its time went."""

from __future__ import annotations

from dataclasses import dataclass

from statestore.clock import Clock
from statestore.metrics import StoreMetrics
from statestore.progress import RestoreProgress
from statestore.store import StateStore
from statestore_runtime.messages import Finished, Progress, Restoring

COUNTED_BYTES = 16 << 20
"""Of checkpointed state, up to which a worker counts its keys when it ends: a second or two, if values are small."""


@dataclass(slots=True)
class Tally:
    """What a worker counts. What all workers have counted before is the first one's to add."""

    events: int = 0
    """Read by its sources."""
    events_before: int = 0
    """Those of them that were read before this run."""
    skipped: int = 0
    """Passed over because a function failed on them."""


def restoring(job: str, progress: RestoreProgress) -> Restoring:
    """How far a worker's restoring is."""
    return Restoring(
        job=job,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        entries=progress.entries,
        seconds=progress.seconds,
        eta_seconds=progress.eta_seconds,
    )


def progress(metrics: StoreMetrics, events: int, seconds: float) -> Progress:
    """How far a worker is. Checkpoints are counted by the JobManager."""
    return Progress(
        events=events,
        seconds=seconds,
        checkpoints=0,
        state_bytes=metrics.state_bytes,
        wal_disk_bytes=metrics.wal_disk_bytes,
        wal_age_seconds=metrics.wal_age_seconds,
    )


def finished(
    store: StateStore,
    clock: Clock,
    *,
    job: str,
    begun: float,
    tally: Tally,
    bad_records: int,
    late_events: int,
    outputs: list[str],
) -> Finished:
    """What a worker has come to since `begun`, on the monotonic clock. Checkpoints and heartbeats are the JobManager's to add."""
    metrics = store.metrics
    before, persisted_before = clock.monotonic(), metrics.persistence_seconds
    keys = store.count_keys() if metrics.state_bytes <= COUNTED_BYTES else None
    # Applying what waits is work of the job; counting is not.
    counting = clock.monotonic() - before - (metrics.persistence_seconds - persisted_before)
    total = max(clock.monotonic() - begun - counting, 1e-9)
    spent = {
        "wal": metrics.wal_seconds,
        "persistence": metrics.persistence_seconds,
        "checkpoint": metrics.checkpoint_seconds,
        "heartbeat": 0.0,
        "recovery": metrics.recovery_seconds,
    }
    return Finished(
        job=job,
        events=tally.events,
        events_this_run=tally.events - tally.events_before,
        bad_records=bad_records,
        keys=keys,
        seconds=total,
        checkpoints=0,
        last_checkpoint=None,
        state_bytes=metrics.state_bytes,
        uploaded_bytes=metrics.uploaded_bytes,
        wal_disk_bytes=metrics.wal_disk_bytes,
        wal_age_seconds=metrics.wal_age_seconds,
        outputs=outputs,
        shares={activity: seconds / total for activity, seconds in spent.items()},
        skipped_events=tally.skipped,
        late_events=late_events,
    )
