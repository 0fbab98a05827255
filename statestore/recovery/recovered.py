"""What recovery hands to the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from statestore.backend import Backend
from statestore.checkpoint.manifest import Base, Delta, Manifest
from statestore.ttl import Times
from statestore.types import CheckpointId, Epoch
from statestore.wal.record import StateDescriptor

NOTHING = Epoch(0)
NO_CHECKPOINT = CheckpointId(0)


@dataclass(slots=True)
class Recovered:
    """Where the store stands, and what its next checkpoint builds on."""

    backend: Backend
    """What to work on: the store's own backend, or one that is still being filled from a checkpoint."""
    newest_id: CheckpointId = NO_CHECKPOINT
    """Number of the newest checkpoint in the storage, 0 when there is none."""
    epoch: Epoch = NOTHING
    meta: dict[str, Any] = field(default_factory=dict)
    times: Times = field(default_factory=Times)
    states: list[StateDescriptor] = field(default_factory=list)
    checkpoint: Manifest | None = None
    checkpoint_epoch: Epoch = NOTHING
    """What the checkpoint has of this store."""
    base: Base | None = None
    deltas: list[Delta] = field(default_factory=list)
    log_sequence: int = 0
    log_sha256: str = ""
    is_foreign: bool = False
    """Whether the checkpoint lies elsewhere, and so can't be restored again from here."""
    finished_meta: dict[str, Any] = field(default_factory=dict)
    """Of the final checkpoint of the run before, when this one starts afresh after it."""
    uploaded_sequence: int = 0
    """Log segments up to this one are in checkpoint storage."""
