"""Brings a store to a consistent epoch when it is opened.

Where state can come from, in the order of preference:

1. the backend as it survived, and the local log from its marker on: costs what was not yet applied;
2. a checkpoint's base and deltas into an emptied backend, and then the local log if it continues that checkpoint.

Invariants:
- a surviving backend is used only when its stamp (attempt and epoch, written in the same batch as the data) names an epoch that
  the local log holds from the same attempt: an epoch number alone could belong to a history that was given up;
- what was committed after the checkpoint counts only if `tail_counts`: an embedded store's own commits do, a job's do not, since its
  sources and sinks go back to the checkpoint with it;
- nothing starts empty where something was expected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from statestore import crashpoints
from statestore.backend import Backend
from statestore.checkpoint.manifest import Base, Delta, Manifest, Part
from statestore.checkpoint.parts import part_for
from statestore.checkpoint.storage import CheckpointStorage, locate_checkpoint
from statestore.checkpoint.view import CheckpointView
from statestore.errors import (
    CheckpointNotFoundError,
    CorruptionError,
    IncompatibleStateError,
    UnavailableError,
    UsageError,
)
from statestore.keys import group_start
from statestore.stamp import decode_stamp, encode_stamp, stamp_key, unfinished_key
from statestore.ttl import Times
from statestore.types import Epoch
from statestore.wal.log import Log, SealedSegment
from statestore.wal.record import StateDescriptor

logger = logging.getLogger("statestore.recovery")

ENTRIES_PER_APPLY = 200_000
BYTES_PER_APPLY = 32 << 20
NOTHING = Epoch(0)
START = Times()


@dataclass(slots=True)
class Recovered:
    """Where the store stands, and what its next checkpoint builds on."""

    epoch: Epoch = NOTHING
    meta: dict[str, Any] = field(default_factory=dict)
    times: Times = START
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


class Recovery:
    """One opening of a store.

    Parameters
    ----------
    key_groups
        Those that the store keeps.
    restore
        None, "latest", "none" or a checkpoint's path; see `statestore.open`.
    run
        Name of the job's run: a newest checkpoint of the same run is restored whatever `restore` says.
    tail_counts
        Whether commits after the last checkpoint are part of the state.
    """

    def __init__(
        self,
        backend: Backend,
        log: Log,
        checkpoints: CheckpointStorage,
        *,
        max_parallelism: int,
        key_groups: range,
        restore: str | None,
        run: str,
        tail_counts: bool,
    ):
        self._backend, self._log, self._checkpoints = backend, log, checkpoints
        self._max_parallelism, self._key_groups = max_parallelism, key_groups
        self._stamp_key = stamp_key(key_groups)
        self._restore, self._run, self._tail_counts = restore, run, tail_counts

    def run(self) -> Recovered:
        """Recover.

        Raises
        ------
        CheckpointNotFoundError
            There is nothing of what `restore` asks for.
        CorruptionError
            What is needed is damaged, and no older checkpoint can be read either.
        IncompatibleStateError
            The checkpoint was made with another number of key groups.
        UsageError
            State is there and `restore` does not say what to do with it.
        """
        crashpoints.reach("recovery.begun")
        newest = self._newest()
        if newest is not None and self._run and newest.run == self._run:
            return self._from_newest()
        if self._restore not in (None, "latest", "none"):
            return self._from_path(self._restore)
        if self._restore == "none":
            return self._empty(newest)
        self._read_log(may_be_lost=not self._tail_counts)
        if self._restore is None:
            self._refuse_unfinished()
            self._refuse_to_guess(newest)
            if newest is not None and not self._tail_counts:
                return self._empty(newest)
        if newest is not None or self._checkpoints.latest() is not None:
            return self._from_newest(log_was_read=True)
        if self._tail_counts and self._log.sealed:
            return self._from_log_alone()
        if self._restore == "latest":
            raise CheckpointNotFoundError(
                self._checkpoints.url, "there is no checkpoint", hint="start without --restore"
            )
        return self._empty()

    def _refuse_to_guess(self, newest: Manifest | None) -> None:
        if newest is None:
            if self._backend.durable and not self._log.sealed and (epoch := self._backend.applied_epoch()):
                raise UsageError(
                    f"the backend holds state (epoch {epoch}) of '{self._checkpoints.job}' that neither the local log nor a checkpoint at "
                    f"{self._checkpoints.url} knows of: open it where it was made, or start over with restore 'none' (--restore none)"
                )
            return
        place = self._checkpoints.path_of(newest.checkpoint_id)
        if not self._tail_counts and newest.kind != "final":
            raise UsageError(
                f"job '{newest.job}' did not finish, its last checkpoint is {place}: "
                "go on from it with --restore latest, or start over with --restore none"
            )
        if self._tail_counts and not self._log.sealed:
            raise UsageError(
                f"there is no local state, but a checkpoint at {place}: open with restore='latest' to load it, "
                "or with restore='none' to start empty"
            )

    def _refuse_unfinished(self) -> None:
        if self._backend.durable and self._note(unfinished_key(self._key_groups)) is not None:
            raise UsageError(
                f"a migration into the state of '{self._checkpoints.job}' was interrupted: run it again, and it goes on; "
                "or start over with restore 'none' (--restore none)"
            )

    def _part(self, manifest: Manifest) -> Part:
        return part_for(manifest, self._key_groups)

    # Choosing

    def _newest(self) -> Manifest | None:
        return next(self._manifests(), None)

    def _manifests(self) -> Iterator[Manifest]:
        """Readable manifests, newest first."""
        for number in reversed(self._checkpoints.retained()):
            try:
                yield self._checkpoints.load(number)
            except CorruptionError as error:
                logger.error("checkpoint %d can't be used, trying an older one: %s", number, error)

    def _read_log(self, *, may_be_lost: bool) -> None:
        try:
            self._log.recover()
        except CorruptionError as error:
            if not may_be_lost:
                raise
            logger.error("the local log is damaged and not used: %s", error)
            self._log.reset()

    def _from_path(self, path: str) -> Recovered:
        checkpoints, number = locate_checkpoint(path, self._checkpoints)
        manifest = checkpoints.load(number)
        self._check_restorable(manifest, checkpoints)  # before anything that is there is given up for it
        try:
            self._read_log(may_be_lost=True)
        except IncompatibleStateError as error:
            logger.warning("the local log is given up for %s: %s", path, error)
            self._log.reset()
        if checkpoints is not self._checkpoints:
            self._log.reset()
        elif self._log.sealed:
            self._log.keep_to(self._part(manifest).log_sequence)
        recovered = self._restore_checkpoint(manifest, checkpoints)
        if checkpoints is not self._checkpoints:
            # Its files can't be referred to from here: the next checkpoint begins with a base of our own.
            recovered.base, recovered.deltas, recovered.is_foreign = None, [], True
        return recovered

    def _from_newest(self, *, log_was_read: bool = False) -> Recovered:
        if not log_was_read:
            self._read_log(may_be_lost=not self._tail_counts)
        manifests = list(self._manifests())
        if self._tail_counts and self._log.sealed:
            last = self._log.sealed[-1]
            if not manifests or last.attempt > manifests[0].attempt:
                return self._from_local_history(manifests)
            self._check_no_fork(manifests[0])
        failure: CorruptionError | None = None
        for manifest in manifests:
            try:
                return self._restore_checkpoint(manifest, self._checkpoints)
            except CorruptionError as error:
                failure = error
                logger.error("checkpoint %d can't be restored, trying an older one: %s", manifest.checkpoint_id, error)
        if failure is not None:
            raise failure
        raise CorruptionError(self._checkpoints.url, "no checkpoint has a readable manifest")

    def _from_local_history(self, manifests: list[Manifest]) -> Recovered:
        """What was committed here after the newest checkpoint was made counts, also when it began from an older one, or from nothing."""
        for manifest in manifests:
            if self._log_continues(self._part(manifest).log_sha256):
                return self._restore_checkpoint(manifest, self._checkpoints)
        return self._from_log_alone()

    # Restoring

    def _empty(self, newest: Manifest | None = None) -> Recovered:
        self._log.reset()
        self._backend.clear(self._key_groups)
        return Recovered(finished_meta=newest.meta if newest is not None and newest.kind == "final" else {})

    def _from_log_alone(self) -> Recovered:
        last = self._log.sealed[-1].last_epoch
        recovered = Recovered(log_sequence=self._log.sealed[-1].sequence, log_sha256=self._log.sealed[-1].sha256)
        if self._backend_survived(last):
            self._apply_log(self._backend.applied_epoch())
        elif self._log.sealed[0].first_epoch == 1 and not self._log.sealed[0].previous:
            self._backend.clear(self._key_groups)
            self._apply_log(Epoch(0))
        else:
            raise CorruptionError(
                "state",
                f"the backend lost its state, and the log begins only at epoch {self._log.sealed[0].first_epoch}",
            )
        self._note_log(Epoch(0), recovered)
        return recovered

    def _check_restorable(self, manifest: Manifest, checkpoints: CheckpointStorage) -> None:
        """Raise when a checkpoint does not fit, or lacks a file."""
        self._check_parallelism(manifest, checkpoints)
        for entry in manifest.files():
            name = checkpoints.object_name(entry.path)
            try:
                size = checkpoints.storage.size(name)
            except FileNotFoundError:
                raise CorruptionError(f"{checkpoints.storage.url}/{name}", "the file is missing") from None
            if size != entry.size:
                problem = f"it has {size} bytes instead of {entry.size}"
                raise CorruptionError(f"{checkpoints.storage.url}/{name}", problem)

    def _check_parallelism(self, manifest: Manifest, checkpoints: CheckpointStorage) -> None:
        if manifest.max_parallelism != self._max_parallelism:
            raise IncompatibleStateError(
                f"checkpoint {checkpoints.path_of(manifest.checkpoint_id)} has max parallelism {manifest.max_parallelism}, "
                f"the configuration says {self._max_parallelism}: set state.max-parallelism = {manifest.max_parallelism}"
            )

    def _restore_checkpoint(self, manifest: Manifest, checkpoints: CheckpointStorage) -> Recovered:
        self._check_parallelism(manifest, checkpoints)
        part = self._part(manifest)
        recovered = Recovered(
            epoch=part.epoch,
            meta=manifest.meta,
            times=manifest.times,
            states=list(manifest.states),
            checkpoint=manifest,
            checkpoint_epoch=part.epoch,
            base=part.base,
            deltas=list(part.deltas),
            log_sequence=part.log_sequence,
            log_sha256=part.log_sha256,
            uploaded_sequence=part.log_sequence,
        )
        continued = self._log_continues(part.log_sha256)
        if continued and not self._tail_counts:
            self._log.keep_to(part.log_sequence)
        if continued and self._log.sealed and self._backend_survived(self._log.sealed[-1].last_epoch):
            self._apply_log(self._backend.applied_epoch())
        else:
            self._load(manifest, checkpoints)
            if continued:
                self._apply_log(part.epoch)
            else:
                self._log.reset()
        if continued:
            self._note_log(part.epoch, recovered)
        crashpoints.reach("recovery.loaded")
        return recovered

    def _log_continues(self, sha256: str) -> bool:
        return any(sha256 in (segment.sha256, segment.previous) for segment in self._log.sealed)

    def _check_no_fork(self, newest: Manifest) -> None:
        last, part = self._log.sealed[-1], self._part(newest)
        if last.last_epoch > part.epoch and not self._log_continues(part.log_sha256):
            raise UsageError(
                f"the local log (epoch {last.last_epoch}) does not continue checkpoint {newest.checkpoint_id} (epoch "
                f"{part.epoch}): they are of different histories; name the checkpoint in restore= to give up the local one"
            )

    def _backend_survived(self, last_epoch: Epoch) -> bool:
        """Whether the backend holds an epoch of the local log, so that replaying from there is enough."""
        if not self._backend.durable:
            return False
        marker = self._backend.applied_epoch()
        if marker == 0 or marker > last_epoch:
            return False
        stored = self._note(self._stamp_key)
        if stored is None:
            return False
        stamp = decode_stamp(stored)
        return stamp.epoch == marker and any(
            segment.attempt == stamp.attempt and segment.first_epoch <= marker <= segment.last_epoch
            for segment in self._log.sealed
        )

    def _note(self, key: bytes) -> bytes | None:
        """A reserved entry of the backend, None when it is not there or can't be read."""
        try:
            (stored,) = self._backend.get_many([key])
        except (UnavailableError, CorruptionError) as error:
            logger.error("the backend's state is not used: %s", error)
            return None
        return stored

    def _load(self, manifest: Manifest, checkpoints: CheckpointStorage) -> None:
        """Empty the backend and fill it from a checkpoint; the marker is set by the last step only."""
        self._backend.clear(self._key_groups)
        epoch, own = self._part(manifest).epoch, self._key_groups
        entries = CheckpointView(checkpoints, manifest).scan(group_start(own.start), group_start(own.stop))
        self._apply_in_pieces(entries)
        self._backend.apply({self._stamp_key: encode_stamp(manifest.attempt, epoch)}, epoch)

    def _apply_in_pieces(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        batch: dict[bytes, bytes | None] = {}
        size = 0
        for key, value in items:
            batch[key] = value
            size += len(key) + len(value)
            if len(batch) >= ENTRIES_PER_APPLY or size >= BYTES_PER_APPLY:
                self._backend.apply(batch, Epoch(0))
                batch, size = {}, 0
        if batch:
            self._backend.apply(batch, Epoch(0))

    def _apply_log(self, after: Epoch) -> None:
        """Bring the backend from epoch `after` to the end of the local log."""
        batch: dict[bytes, bytes | None] = {}
        epoch = after
        for group in self._log.groups(after):
            for entries in group.entries():
                batch.update(entries)
            epoch = group.epoch
            if len(batch) >= ENTRIES_PER_APPLY:
                self._apply_epoch(batch, epoch)
                batch = {}
        if epoch > after:
            self._apply_epoch(batch, epoch)

    def _apply_epoch(self, batch: dict[bytes, bytes | None], epoch: Epoch) -> None:
        owner = next(s.attempt for s in self._log.sealed if s.first_epoch <= epoch <= s.last_epoch)
        batch[self._stamp_key] = encode_stamp(owner, epoch)
        self._backend.apply(batch, epoch)

    def _note_log(self, after: Epoch, recovered: Recovered) -> None:
        """Take epoch, meta, states and chain end from the local log's commits behind `after`."""
        for group in self._log.groups(after):
            recovered.epoch, recovered.meta = group.epoch, group.commit.meta
            recovered.states = group.commit.states or recovered.states
            recovered.times = group.commit.times
        last: SealedSegment | None = self._log.sealed[-1] if self._log.sealed else None
        if last is not None and last.last_epoch >= recovered.epoch:
            recovered.log_sequence, recovered.log_sha256 = last.sequence, last.sha256
