"""The chain of a store's checkpoints: each adds the log segments sealed since the one before; at times a base is made, or deltas packed.

Invariants:
- base epoch + deltas always cover every epoch up to the last one begun;
- a base that was made in the background is used only by a manifest begun after it was finished, so all that its scan may have seen too
  early is covered by that manifest's deltas;
- what stops processing (`begin`, `completed`) costs the same however large the state is.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from statestore import crashpoints
from statestore.backend import Backend
from statestore.checkpoint.collector import Collector
from statestore.checkpoint.manifest import INLINE_MAX_BYTES, Base, Claim, Manifest, Part
from statestore.checkpoint.native import Apply
from statestore.checkpoint.renewal import Renewal
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.upload import Uploader, upload_deltas
from statestore.clock import Clock
from statestore.errors import UnavailableError
from statestore.hydration import is_hydrating
from statestore.metrics import StoreMetrics
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

    @classmethod
    def of(cls, manifest: Manifest, checkpoints: CheckpointStorage, seconds: float) -> CheckpointInfo:
        """What there is to know of a checkpoint that was just completed."""
        return cls(
            checkpoint_id=manifest.checkpoint_id,
            epoch=manifest.epoch,
            uploaded_bytes=manifest.uploaded_bytes,
            total_bytes=manifest.total_bytes,
            seconds=seconds,
            path=checkpoints.path_of(manifest.checkpoint_id),
            manifest=manifest,
        )


class PendingCheckpoint:
    """A checkpoint that has been begun. `finish` and `upload` may run in another thread."""

    def __init__(self, chain: SnapshotChain, manifest: Manifest, uploaded_sequence: int, begun: float, *, base: bool):
        self._chain, self._manifest, self._uploaded_sequence = chain, manifest, uploaded_sequence
        self.begun, self._base = begun, base
        self.epoch = manifest.epoch
        self._lock = threading.Lock()
        self._decided = False

    def finish(self) -> CheckpointInfo:
        """Log the epoch and seal the log, upload what is not in the storage yet, write the manifest.

        Raises
        ------
        UnavailableError
            The log's storage or that of the checkpoints does not answer, or the checkpoint was cancelled.
        CorruptionError
            A log segment on the local disk is damaged: nothing refers to it.
        FencedError
            A newer attempt owns the job.
        """
        return self._chain.finish(self)

    def upload(self) -> Manifest:
        """All of `finish` but the manifest; for a checkpoint of several stores, which `complete_parts` completes.

        Raises
        ------
        UnavailableError, CorruptionError
            As `finish`.
        """
        return self._chain.upload(self._manifest, self._uploaded_sequence, base=self._base)

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
        backend_name: str,
        apply: Apply,
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
        folder: str | None,
    ):
        self._checkpoints, self._log, self._backend = checkpoints, log, backend
        self._metrics, self._clock, self._attempt, self._run = metrics, clock, attempt, run
        self._settings, self._max_parallelism, self._key_groups = settings, max_parallelism, key_groups
        self._uploader = Uploader(checkpoints, settings.renewal.inline_bytes)
        self._base: Base | None = recovered.base
        self._deltas = recovered.deltas
        self._uploaded_sequence = recovered.uploaded_sequence
        self._has_completed = False
        self.newest_id = recovered.newest_id
        """Number of the newest checkpoint in the storage, 0 when there is none."""
        self.covered_epoch = recovered.checkpoint_epoch if recovered.base or recovered.deltas else Epoch(0)
        """Epoch of the last complete checkpoint that the next one continues, 0 when there is none."""
        self.collector = Collector(
            checkpoints, attempt, settings=settings, clock=clock, metrics=metrics, claimed=claimed
        )
        """Removes old checkpoints and orphans in the background."""
        self._adopted_bytes = 0
        """Stored in the background, and not part of a complete checkpoint yet."""
        self._renewal = Renewal(
            checkpoints=checkpoints,
            backend=backend,
            backend_name=backend_name,
            apply=apply,
            sweep=sweep,
            metrics=metrics,
            clock=clock,
            attempt=attempt,
            key_groups=key_groups,
            settings=settings.renewal,
            folder=folder,
        )

    def begin(
        self,
        epoch: Epoch,
        meta: dict[str, Any],
        times: Times,
        states: list[StateDescriptor],
        *,
        final: bool,
        base: bool,
    ) -> PendingCheckpoint:
        """Fix what the checkpoint at `epoch` will consist of; with `base`, of a new base and what may come behind it."""
        self._adopt()
        part = Part(
            first_key_group=self._key_groups.start,
            last_key_group=self._key_groups.stop - 1,
            epoch=epoch,
            base=self._base,
            deltas=self._deltas,
            log_sequence=0,  # these two are known when it is logged
            log_sha256="",
            uploaded_bytes=self._adopted_bytes,
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
            claimed=self.collector.claimed,
        )
        return PendingCheckpoint(self, manifest, self._uploaded_sequence, self._clock.monotonic(), base=base)

    def _adopt(self) -> None:
        """Build on what was made in the background."""
        made = self._renewal.take()
        if made is not None:
            self._base, self._deltas = made.applied_to(self._base, self._deltas)
            self._adopted_bytes += made.uploaded

    def upload(self, manifest: Manifest, uploaded_sequence: int, *, base: bool) -> Manifest:
        """See `PendingCheckpoint.upload`. What is not in the storage are the log's segments behind `uploaded_sequence`."""
        with self._metrics.time("wal"):
            self._metrics.wal_bytes += self._log.settle()
        crashpoints.reach("commit.logged")
        crashpoints.reach("checkpoint.sealed")
        with self._metrics.time("checkpoint"):
            (part,) = manifest.parts
            segments = self._sealed(uploaded_sequence, part.epoch)
            part = replace(part, log_sequence=segments[-1].sequence, log_sha256=segments[-1].sha256)
            first = (part.deltas or segments)[0].first_epoch
            # The log's beginning is gone, or files that were there at the opening are: only a base can stand for them.
            if base or first > part.base_epoch + 1 or self._has_lost(manifest):
                part = self._with_new_base(part)
            room = INLINE_MAX_BYTES - sum(len(file.data or b"") for delta in part.deltas for file in delta.files())
            after_base = [segment for segment in segments if segment.last_epoch > part.base_epoch]
            new = upload_deltas(self._uploader, self._log, after_base, room)
            crashpoints.reach("checkpoint.uploaded")
            uploaded = part.uploaded_bytes + sum(delta.size for delta in new)
            part = replace(part, deltas=[*part.deltas, *new], uploaded_bytes=uploaded)
            return replace(manifest, parts=[part])

    def _sealed(self, after: int, epoch: Epoch) -> list[SealedSegment]:
        """The log's segments behind number `after` and up to `epoch`."""
        segments = [segment for segment in tuple(self._log.sealed) if segment.sequence > after]
        segments = [segment for segment in segments if segment.last_epoch <= epoch]
        if not segments or segments[-1].last_epoch != epoch:
            raise UnavailableError("checkpoint", self._checkpoints.url, "it was given up, and its log has been dropped")
        return segments

    def _with_new_base(self, part: Part) -> Part:
        made = self._renewal.base_now(part.base)
        if self._backend.applied_epoch() > part.epoch:
            problem = "commits that came after it were applied while its base was made"
            raise UnavailableError("checkpoint", self._checkpoints.url, problem, hint="take it again")
        base, deltas = made.applied_to(part.base, part.deltas)
        return replace(part, base=base, deltas=deltas, uploaded_bytes=part.uploaded_bytes + made.uploaded)

    def finish(self, pending: PendingCheckpoint) -> CheckpointInfo:
        """See `PendingCheckpoint.finish`."""
        manifest = pending.upload()
        with self._metrics.time("checkpoint"):
            if not pending.decide():
                raise UnavailableError("checkpoint", self._checkpoints.url, "it was given up")
            manifest = self._checkpoints.complete_next(manifest)
        return CheckpointInfo.of(manifest, self._checkpoints, self._clock.monotonic() - pending.begun)

    def _has_lost(self, inherited: Manifest) -> bool:
        """Whether files that this attempt builds on have gone before its first checkpoint names them; nothing removes them afterwards."""
        if self._has_completed:
            return False
        names = [self._checkpoints.object_name(path) for path in self._checkpoints.stored_files(inherited)]
        missing = [name for name in names if not self._checkpoints.storage.exists(name)]
        for name in missing:
            logger.warning("%s/%s is gone: a new base is made in its place", self._checkpoints.storage.url, name)
        return bool(missing)

    def completed(self, info: CheckpointInfo) -> Epoch:
        """Build on this checkpoint from now on; returns the epoch that it has of this store."""
        part = info.manifest.part_of(self._key_groups)
        assert part is not None, "a checkpoint of this store has a part of it"
        self.newest_id, self.covered_epoch, self._has_completed = info.checkpoint_id, part.epoch, True
        self._base, self._deltas, self._uploaded_sequence = part.base, part.deltas, part.log_sequence
        self._adopted_bytes = 0
        self._metrics.state_bytes = sum(file.size for file in part.files())
        self._metrics.uploaded_bytes += part.uploaded_bytes
        if self._key_groups.start == 0 and not is_hydrating(self._backend):  # one of a job's stores does it for all
            self.collector.start(info.manifest)  # while the backend is filled, files that are still to be read could go
        return part.epoch

    def renew(self) -> None:
        """Begin to make in the background what is due, if anything: a new base, or packed deltas."""
        self._renewal.start(self._base, self._deltas)

    def wait(self) -> None:
        """Until nothing is being made in the background."""
        self._renewal.wait()

    def raise_failure(self) -> None:
        """Raise what ended the making of something, if it was damage of the local state."""
        self._renewal.raise_failure()

    def close(self) -> None:
        """Stop collecting, and give up what is being made in the background, if anything."""
        self.collector.close()
        self._renewal.close()
