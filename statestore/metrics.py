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
    """Sealing, uploading, completing and collecting checkpoints."""
    base_seconds: float = 0.0
    """Making new bases in the background."""
    pack_seconds: float = 0.0
    """Packing deltas in the background."""
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
    expired_entries: int = 0
    """Entries swept away since the opening because their time was over."""
    expired_bytes: int = 0
    """Keys and values of these."""

    @contextmanager
    def time(self, activity: str) -> Iterator[None]:
        """Add the seconds spent in the block to `<activity>_seconds`. An activity runs in one thread at a time."""
        begun = self.clock.monotonic()
        try:
            yield
        finally:
            name = f"{activity}_seconds"
            setattr(self, name, getattr(self, name) + self.clock.monotonic() - begun)
