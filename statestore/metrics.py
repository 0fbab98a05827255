"""Where a store's time goes, for the efficiency figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from statestore.clock import Clock


@dataclass(slots=True)
class StoreMetrics:
    """Seconds by activity, and sizes. Background work counts with the time it took, though processing went on meanwhile."""

    clock: Clock
    wal_seconds: float = 0.0
    """Encoding changes, logging and syncing them."""
    persistence_seconds: float = 0.0
    """Applying epochs to the backend and persisting it."""
    checkpoint_seconds: float = 0.0
    """Sealing, uploading and completing checkpoints."""
    base_seconds: float = 0.0
    """Making new bases in the background."""
    pack_seconds: float = 0.0
    """Packing deltas in the background."""
    collection_seconds: float = 0.0
    """Removing old checkpoints and orphans in the background."""
    recovery_seconds: float = 0.0
    state_bytes: int = 0
    """Size of the last checkpoint, base and deltas together."""
    uploaded_bytes: int = 0
    """Sum over the checkpoints of this opening."""
    bases: int = 0
    """Bases made since the opening."""
    base_bytes: int = 0
    """Their sizes together."""
    base_uploaded_bytes: int = 0
    """What of that was not in the storage before."""
    packs: int = 0
    """Packed deltas made since the opening."""
    packed_deltas: int = 0
    """How many deltas these were before."""
    wal_bytes: int = 0
    """Bytes logged since the opening."""
    wal_disk_bytes: int = 0
    """Bytes of the log that are kept."""
    wal_begun: float | None = None
    """When the oldest of them was begun, in seconds since the Unix epoch; for one of an earlier opening, when it was written last."""
    removed_files: int = 0
    """Files of checkpoints, and orphans, that were removed since the opening."""
    removed_bytes: int = 0
    expired_entries: int = 0
    """Entries swept away since the opening because their time was over."""
    expired_bytes: int = 0
    """Keys and values of these."""

    @property
    def wal_age_seconds(self) -> float:
        """Age of the oldest log segment that is kept."""
        return 0.0 if self.wal_begun is None else max(0.0, self.clock.time() - self.wal_begun)

    @contextmanager
    def time(self, activity: str) -> Iterator[None]:
        """Add the seconds spent in the block to `<activity>_seconds`. An activity runs in one thread at a time."""
        begun = self.clock.monotonic()
        try:
            yield
        finally:
            name = f"{activity}_seconds"
            setattr(self, name, getattr(self, name) + self.clock.monotonic() - begun)
