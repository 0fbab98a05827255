"""The chain of a store's checkpoints: each adds the log segments sealed since the one before, and now and then the base is renewed.

Invariants:
- base epoch + deltas always cover every epoch up to the last one begun;
- a base is used only by a manifest begun after it was finished, so all that its scan may have seen too early is covered by that
  manifest's deltas.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from statestore import crashpoints
from statestore.backend import Backend
from statestore.checkpoint.claim import settle_claim
from statestore.checkpoint.manifest import Base, BaseEntry, Claim, InheritedBase, Manifest, Part
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.upload import upload_base, upload_deltas
from statestore.clock import Clock
from statestore.errors import StateStoreError, UnavailableError
from statestore.hydration import is_hydrating
from statestore.metrics import StoreMetrics
from statestore.stamp import is_stamp
from statestore.sweep import Sweep
from statestore.ttl import Times
from statestore.types import Attempt, CheckpointId, Epoch
from statestore.wal.log import Log, SealedSegment
from statestore.wal.record import StateDescriptor

logger = logging.getLogger("statestore.checkpoint")

if TYPE_CHECKING:
    from statestore.recovery import Recovered
    from statestore.store import StoreSettings


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A complete checkpoint."""

    checkpoint_id: CheckpointId
    epoch: Epoch
    uploaded_bytes: int
    total_bytes: int
    seconds: float
    """From its beginning to its completion."""
    path: str
    """As `restore` takes it."""
    manifest: Manifest
    claimed: Claim | None = None
    """What the store was restored from and still is to remove."""

    @classmethod
    def of(
        cls, manifest: Manifest, checkpoints: CheckpointStorage, seconds: float, claimed: Claim | None
    ) -> CheckpointInfo:
        """What there is to know of a checkpoint that was just completed."""
        return cls(
            checkpoint_id=manifest.checkpoint_id,
            epoch=manifest.epoch,
            uploaded_bytes=manifest.uploaded_bytes,
            total_bytes=manifest.total_bytes,
            seconds=seconds,
            path=checkpoints.path_of(manifest.checkpoint_id),
            manifest=manifest,
            claimed=claimed,
        )


class PendingCheckpoint:
    """A checkpoint that has been begun. `finish` and `upload` may run in another thread."""

    def __init__(
        self, chain: SnapshotChain, epoch: Epoch, segments: list[SealedSegment], manifest: Manifest, begun: float
    ):
        self._chain, self._segments, self._manifest, self.begun = chain, segments, manifest, begun
        self.epoch = epoch
        self._lock = threading.Lock()
        self._decided = False

    def finish(self) -> CheckpointInfo:
        """Upload what is not in the storage yet, write the manifest, collect old checkpoints.

        Raises
        ------
        UnavailableError
            The storage does not answer, or the checkpoint was cancelled.
        CorruptionError
            A log segment on the local disk is damaged: nothing refers to it.
        FencedError
            A newer attempt owns the job.
        """
        return self._chain.finish(self)

    def upload(self) -> Manifest:
        """Upload what is not in the storage yet; for a checkpoint of several stores, which `complete_parts` completes.

        Raises
        ------
        UnavailableError, CorruptionError
            As `finish`.
        """
        return self._chain.upload(self._segments, self._manifest)

    def cancel(self) -> bool:
        """Prevent completion; False when it is too late."""
        return self.decide()

    def decide(self) -> bool:
        """Whoever gets True first, canceller or completer, has its way."""
        with self._lock:
            first, self._decided = not self._decided, True
        return first


class SnapshotChain:
    """What the next checkpoint builds on."""

    def __init__(
        self,
        *,
        checkpoints: CheckpointStorage,
        log: Log,
        backend: Backend,
        metrics: StoreMetrics,
        clock: Clock,
        attempt: Attempt,
        run: str,
        settings: StoreSettings,
        max_parallelism: int,
        key_groups: range,
        recovered: Recovered,
        claimed: Claim | None,
        sweep: Sweep,
    ):
        self._checkpoints, self._log, self._backend = checkpoints, log, backend
        self._metrics, self._clock, self._attempt, self._run = metrics, clock, attempt, run
        self._settings, self._max_parallelism, self._key_groups = settings, max_parallelism, key_groups
        self._sweep, self._claimed = sweep, claimed
        self._base: Base | None = recovered.base
        self._deltas = recovered.deltas
        self._uploaded_sequence = recovered.uploaded_sequence
        self.newest_id = recovered.newest_id
        """Number of the newest checkpoint in the storage, 0 when there is none."""
        self.covered_epoch = recovered.checkpoint_epoch if recovered.base or recovered.deltas else Epoch(0)
        """Epoch of the last complete checkpoint that the next one continues, 0 when there is none."""
        self._base_maker = ThreadPoolExecutor(1, thread_name_prefix="statestore-base")
        self._making_base: Future[BaseEntry] | None = None

    def begin(
        self, epoch: Epoch, meta: dict[str, Any], times: Times, states: list[StateDescriptor], *, final: bool
    ) -> PendingCheckpoint:
        """Fix what the checkpoint at `epoch` will consist of."""
        self._adopt_base()
        segments = [segment for segment in self._log.sealed if segment.sequence > self._uploaded_sequence]
        last = self._log.sealed[-1]
        part = Part(
            first_key_group=self._key_groups.start,
            last_key_group=self._key_groups.stop - 1,
            epoch=epoch,
            base=self._base,
            deltas=self._deltas,
            log_sequence=last.sequence,
            log_sha256=last.sha256,
            uploaded_bytes=0,
        )
        manifest = Manifest(
            job=self._checkpoints.job,
            checkpoint_id=CheckpointId(self.newest_id + 1),
            attempt=self._attempt,
            created=self._clock.time(),
            kind="final" if final else "checkpoint",
            run=self._run,
            max_parallelism=self._max_parallelism,
            states=states,
            parts=[part],
            meta=meta,
            times=times,
            claimed=self._claimed,
        )
        return PendingCheckpoint(self, epoch, segments, manifest, self._clock.monotonic())

    def _adopt_base(self) -> None:
        if self._making_base is not None and self._making_base.done() and self._making_base.exception() is None:
            self._use_base(self._making_base.result())
            self._making_base = None

    def _use_base(self, base: BaseEntry) -> None:
        self._base = base
        self._deltas = [delta for delta in self._deltas if delta.last_epoch > base.epoch]

    def upload(self, segments: list[SealedSegment], manifest: Manifest) -> Manifest:
        """See `PendingCheckpoint.upload`."""
        with self._metrics.time("checkpoint"):
            (part,) = manifest.parts
            base, deltas = part.base, part.deltas
            new = upload_deltas(self._checkpoints, self._log, segments)
            uploaded = sum(delta.size for delta in new)
            deltas = [*deltas, *new]
            if deltas[0].first_epoch > part.base_epoch + 1:  # the log's beginning is gone: only a base can stand for it
                base = self._make_base()
                deltas = [delta for delta in deltas if delta.last_epoch > base.epoch]
                uploaded += base.size
            crashpoints.reach("checkpoint.uploaded")
            part = replace(part, base=base, deltas=deltas, uploaded_bytes=uploaded)
            return replace(manifest, parts=[part])

    def finish(self, pending: PendingCheckpoint) -> CheckpointInfo:
        """See `PendingCheckpoint.finish`."""
        manifest = pending.upload()
        with self._metrics.time("checkpoint"):
            if not pending.decide():
                raise UnavailableError("checkpoint", self._checkpoints.url, "it was given up")
            manifest = self._checkpoints.complete_next(manifest)
            claimed = manifest.claimed
            if not is_hydrating(self._backend):  # or files that are still to be read could go
                self._checkpoints.collect_quietly(self._settings.num_retained)
                claimed = settle_claim(manifest, self._settings.num_retained, self._checkpoints)
        return CheckpointInfo.of(manifest, self._checkpoints, self._clock.monotonic() - pending.begun, claimed)

    def completed(self, info: CheckpointInfo) -> Epoch:
        """Build on this checkpoint from now on; returns the epoch that it has of this store."""
        part = info.manifest.part_of(self._key_groups)
        assert part is not None, "a checkpoint of this store has a part of it"
        self.newest_id, self.covered_epoch, self._claimed = info.checkpoint_id, part.epoch, info.claimed
        self._base, self._deltas, self._uploaded_sequence = part.base, part.deltas, part.log_sequence
        self._metrics.state_bytes = sum(file.size for file in part.files())
        self._metrics.uploaded_bytes += part.uploaded_bytes
        return part.epoch

    # Bases

    @property
    def wants_base(self) -> bool:
        """Whether the deltas have outgrown the base."""
        if self._making_base is not None or is_hydrating(self._backend):
            return False
        if isinstance(self._base, InheritedBase):
            return True  # so that what other stores have left can go
        base_bytes = self._base.size if self._base else 0
        delta_bytes = sum(delta.size for delta in self._deltas)
        return delta_bytes > max(self._settings.base_ratio * base_bytes, self._settings.base_min_bytes)

    def start_base(self, applied: Future[None]) -> None:
        """Make a new base in the background, once `applied` is done."""

        def make() -> BaseEntry:
            applied.result()
            with self._metrics.time("base"):
                return self._make_base()

        self._making_base = self._base_maker.submit(make)

    def _make_base(self) -> BaseEntry:
        epoch = self._backend.applied_epoch()
        return upload_base(self._checkpoints, self._entries(), epoch, self._attempt)

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        is_expired = self._sweep.is_expired
        return (item for item in self._backend.scan(b"", None) if not is_stamp(item[0]) and not is_expired(*item))

    def raise_failure(self) -> None:
        """Raise what ended the making of a base, if it was damage."""
        if self._making_base is not None and self._making_base.done():
            error = self._making_base.exception()
            if isinstance(error, StateStoreError) and not isinstance(error, UnavailableError):
                raise error
            if error is not None:
                logger.warning("a new base was not made, it is tried again after the next checkpoint: %s", error)
                self._making_base = None

    def close(self) -> None:
        """Wait for the base that is being made, if any."""
        self._base_maker.shutdown(wait=True)
