"""The store: binds handles, log, backend and checkpoints together.

The life of a change: a handle keeps the object; `commit` encodes it and logs it durably; once its epoch is complete (at once for an
embedded store, with the checkpoint for a job) a background thread applies it to the backend, together with others, when enough has come
together; a checkpoint uploads the log's sealed segments.

One thread uses a store and its handles; only `PendingCheckpoint.finish` may run in another.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from statestore import crashpoints
from statestore.applying import Applier
from statestore.backend import Backend, SupportsMetrics
from statestore.checkpoint.claim import claim
from statestore.checkpoint.collector import CLOSING_SECONDS
from statestore.checkpoint.manifest import Claim
from statestore.checkpoint.renewal import RenewalSettings
from statestore.checkpoint.savepoint import PendingSavepoint, SavepointInfo
from statestore.checkpoint.snapshot import CheckpointInfo, PendingCheckpoint, SnapshotChain
from statestore.checkpoint.storage import CheckpointStorage
from statestore.clock import Clock
from statestore.committed import Committed
from statestore.counting import distinct_keys
from statestore.errors import ClosedError
from statestore.hydration import Hydrating
from statestore.io import FolderLock
from statestore.keyed import KeyedState, StateFactory
from statestore.metrics import StoreMetrics
from statestore.pending import ENTRY_OVERHEAD_BYTES, EpochBatch, Pending
from statestore.progress import OnRestoreProgress, RestoreProgress
from statestore.recovery import Loader, Recovered, Recovery
from statestore.registry import Registry
from statestore.stamp import STAMP_STATE_ID, stamp_key
from statestore.state import State
from statestore.sweep import Sweep
from statestore.timers import Timers
from statestore.ttl import StateClock, TimeToLive
from statestore.types import Attempt, CheckpointId, Epoch, KeyGroup
from statestore.wal.log import Log
from statestore.wal.record import CommitRecord

logger = logging.getLogger("statestore.store")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a store found when it was opened."""

    epoch: Epoch
    checkpoint_id: CheckpointId | None
    """The checkpoint it was restored from, None when local state alone was enough."""
    meta: dict[str, Any]
    """What was given to the last commit."""
    is_newest: bool = True
    """Whether "latest" means just this, until there is another checkpoint."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The numbers a store works by."""

    cache_bytes: int
    pending_bytes: int
    num_retained: int
    claims: bool
    """Whether a checkpoint or savepoint of elsewhere belongs to the store once it is restored."""
    orphan_age: float
    """Seconds, 0 for ever."""
    ttl: TimeToLive
    """Of the states that declare none."""
    allow_pickle: bool
    """Whether states may be declared with codec="pickle"."""
    renewal: RenewalSettings


class StateStore(StateFactory):
    """Keyed state on a backend, with a log and checkpoints. Made by `statestore.open`.

    Guarantees
    ----------
    - When `commit` has returned, the epoch survives the death of process and machine.
    - Epochs are atomic: after a crash all of an epoch is there or nothing.
    - After any error in `commit` the store takes no more commits: close it, and open it again to go on from the last durable epoch.
    """

    def __init__(
        self,
        *,
        job: str,
        backend: Backend,
        backend_name: str,
        log: Log,
        checkpoints: CheckpointStorage,
        attempt: Attempt,
        max_parallelism: int,
        key_groups: range,
        settings: StoreSettings,
        clock: Clock,
        place: str,
        folder: str | None,
        lock: FolderLock | None,
        key_type: Any,
        auto_complete: bool,
        run: str,
    ):
        self.job, self.backend_name, self.attempt = job, backend_name, attempt
        self.max_parallelism, self.key_groups, self._stamp_key = max_parallelism, key_groups, stamp_key(key_groups)
        self.checkpoints, self.metrics, self.place = checkpoints, StoreMetrics(clock), place
        self.restored: Restored | None = None
        self.finished_meta: dict[str, Any] = {}
        """Meta of the final checkpoint of the run before, when this one starts afresh after it."""
        self._backend, self._log, self._clock, self._settings = backend, log, clock, settings
        self._folder, self._lock, self._auto_complete, self._run = folder, lock, auto_complete, run
        self._pending = Pending()
        self.times = StateClock(clock)
        self.registry = Registry(max_parallelism, key_groups, self._pending, self.times, settings.ttl)
        self._epoch = Epoch(0)
        self.holds_entries = False
        """Whether anything has ever been committed; until then there is no need to look for it."""
        self._meta: dict[str, Any] = {}
        self._scopes: list[KeyedState] = []
        self._failure: BaseException | None = None
        self._closed = False
        self._work_on(backend)
        self._snapshots: SnapshotChain | None = None
        self._default = self.keyed("", key_type)

    # Opening

    def _work_on(self, backend: Backend) -> None:
        self._backend, self.committed = backend, Committed(self._pending, backend)
        self._sweep = Sweep(backend, self.key_groups, self._clock)
        self._applier = Applier(
            backend,
            self._pending,
            self._sweep,
            self.metrics,
            self._clock,
            stamp_key=self._stamp_key,
            attempt=self.attempt,
            pending_bytes=self._settings.pending_bytes,
            retries=self._auto_complete,
        )

    def recover(
        self, restore: str | None, *, lazy: bool, parallelism: int, on_progress: OnRestoreProgress | None
    ) -> None:
        """Bring the store to the state that `restore` asks for; called once, by `statestore.open`. Raises as `Recovery.run` does."""
        loader = Loader(
            self._backend,
            self.key_groups,
            self._clock,
            lazy=lazy,
            parallelism=parallelism,
            on_progress=on_progress,
            folder=self._folder,
        )
        with self.metrics.time("recovery"):
            recovered = Recovery(
                self._backend,
                self._log,
                self.checkpoints,
                loader,
                max_parallelism=self.max_parallelism,
                key_groups=self.key_groups,
                restore=restore,
                run=self._run,
                tail_counts=self._auto_complete,
            ).run()
        claimed = recovered.checkpoint.claimed if recovered.checkpoint else None
        if recovered.is_foreign:
            since = CheckpointId(recovered.newest_id + 1)
            claimed = claim(str(restore), since, self.checkpoints) if self._settings.claims else None
        self._begin(recovered, claimed)
        if isinstance(recovered.backend, Hydrating):
            recovered.backend.start()
        if recovered.is_foreign and self._auto_complete:
            self.checkpoint()  # what is committed from here on builds on state that must be found again from here

    def _begin(self, recovered: Recovered, claimed: Claim | None) -> None:
        if recovered.backend is not self._backend:
            self._applier.close()
            self._work_on(recovered.backend)
        self._epoch, self._meta, self.holds_entries = recovered.epoch, recovered.meta, recovered.epoch > 0
        self.registry.restore(recovered.states, self._backend.scan, self._sweep)
        self.times.go_on_from(recovered.times)
        self.finished_meta = recovered.finished_meta
        checkpoint_id = recovered.checkpoint.checkpoint_id if recovered.checkpoint else None
        if recovered.epoch:
            is_newest = checkpoint_id == (recovered.newest_id or None) and not recovered.is_foreign
            self.restored = Restored(recovered.epoch, checkpoint_id, recovered.meta, is_newest)
        if recovered.checkpoint:
            self.metrics.state_bytes = recovered.checkpoint.total_bytes
        self._log.begin(
            attempt=self.attempt,
            epoch=recovered.epoch,
            sequence=recovered.log_sequence + 1,
            previous=recovered.log_sha256,
        )
        self._snapshots = SnapshotChain(
            checkpoints=self.checkpoints,
            log=self._log,
            backend=self._backend,
            backend_name=self.backend_name,
            apply=self._applier.then,
            metrics=self.metrics,
            clock=self._clock,
            attempt=self.attempt,
            run=self._run,
            settings=self._settings,
            max_parallelism=self.max_parallelism,
            key_groups=self.key_groups,
            recovered=recovered,
            claimed=claimed,
            sweep=self._sweep,
            folder=self._folder,
        )

    @property
    def allow_pickle(self) -> bool:
        """Whether states may be declared with codec="pickle"."""
        return self._settings.allow_pickle

    @property
    def _chain(self) -> SnapshotChain:
        assert self._snapshots is not None, "recover() comes first"
        return self._snapshots

    # States

    def keyed(self, prefix: str, key_type: Any) -> KeyedState:
        """A scope with its own key type and current key; its states are named `<prefix>/<name>`."""
        scope = KeyedState(self, prefix, key_type)
        self._scopes.append(scope)
        return scope

    def set_current_key(self, key: Any) -> None:
        """Make `key` the one that all handles work on. Raises UsageError when it is not of the store's key type."""
        self._default.set_current_key(key)

    def key(self, key: Any) -> AbstractContextManager[None]:
        """Work on `key` within a `with` block."""
        return self._default.at(key)

    def key_group(self, key: Any) -> KeyGroup:
        """Key group of a key of the store's key type, which decides the store that keeps its state. Raises UsageError."""
        return self._default.key_group(key)

    def _keyed(self) -> KeyedState:
        return self._default

    def advance_event_time(self, seconds: float) -> None:
        """Tell how far event time has come, for states whose time-out goes by it: Unix time in seconds. It never goes back."""
        self.times.advance_event_ms(round(seconds * 1000))
        self.registry.note_event_time()

    def share_cache(self) -> None:
        """Divide the cache between the registered states; handles call this when they are made."""
        handles = self._handles()
        for handle in handles:
            handle.set_capacity(self._settings.cache_bytes // len(handles))

    def count_keys(self) -> int:
        """Number of distinct keys with state of any kind, by reading all of it; uncommitted changes don't count."""
        self._applier.finish()
        timers = {state.id for state in self.registry.descriptors() if state.kind.startswith(Timers.kind)}
        return distinct_keys(self._sweep.without_expired(self._backend.scan(b"", None)), {STAMP_STATE_ID, *timers})

    def backend_metrics(self) -> dict[str, int]:
        """Figures of the backend's own, by name; none where it has none."""
        self._check_open()
        return self._backend.metrics() if isinstance(self._backend, SupportsMetrics) else {}

    # Committing

    @property
    def needs_checkpoint(self) -> bool:
        """Whether so much is uncommitted that a checkpoint (or commit) should come before more is processed."""
        dirty = sum(handle.dirty_bytes for handle in self._handles())
        draft = self._pending.draft
        if draft is not None:
            dirty += ENTRY_OVERHEAD_BYTES * draft.count
        return dirty > self._settings.cache_bytes

    def commit(self, meta: dict[str, Any] | None = None) -> Epoch:
        """Make all changes since the last commit durable, as one epoch.

        Parameters
        ----------
        meta
            Stored with the epoch and given back in `restored.meta`; without it, that of the last commit goes on.

        Raises
        ------
        UsageError
            A value can't be encoded as its state's type.
        UnavailableError
            The log could not be written. Whether the epoch counts is unknown until the store is opened again: `restored.meta` tells.
        ClosedError
            The store is closed, or a commit failed before.
        """
        self._end_epoch(meta, is_deferred=False)
        crashpoints.reach("commit.logged")
        if self._auto_complete:
            self._complete(self._epoch)
        return self._epoch

    def encode_changes(self) -> EpochBatch:
        """All changes since the last `mark` or commit, for `mark`; without it, only `rollback` may follow.

        Raises
        ------
        UsageError
            A value can't be encoded as its state's type.
        ClosedError
            The store is closed, or a commit failed before.
        """
        self._check_open()
        changes = EpochBatch()
        for handle in self._handles():
            handle.flush(changes)
        return changes

    def mark(self, changes: EpochBatch | None = None) -> None:
        """Have `rollback` come back to this state. Nothing becomes durable before the commit.

        Parameters
        ----------
        changes
            What `encode_changes` has just returned; by default it is called. Raises as it does.
        """
        changes = changes or self.encode_changes()
        if self._pending.draft is None:
            self._pending.draft = EpochBatch()
        self._pending.draft.merge(changes)
        for handle in self._handles():
            handle.flushed()
        self.holds_entries = self.holds_entries or changes.count > 0

    def rollback(self) -> None:
        """Drop all changes since the last `mark` or, where there was none, since the last commit. Handles read everything anew.

        Raises
        ------
        ClosedError
            The store is closed, or a commit failed before.
        """
        self._check_open()
        for handle in self._handles():
            handle.forget()

    def _handles(self) -> list[State[Any] | Timers]:
        return [state for scope in self._scopes for state in scope.states.values()]

    def _end_epoch(self, meta: dict[str, Any] | None, *, is_deferred: bool) -> None:
        self._check_open()
        self._raise_background_failure()
        try:
            with self.metrics.time("wal"):
                self._log_epoch(self._meta if meta is None else meta, is_deferred=is_deferred)
        except BaseException as error:
            self._failure = error
            raise

    def _log_epoch(self, meta: dict[str, Any], *, is_deferred: bool) -> None:
        self.metrics.wal_bytes += self._log.settle()
        batch = self._pending.draft or EpochBatch()
        before = batch.count
        self._remove_expired(batch)  # before the changes: what was touched since stays
        swept = batch.count - before
        handles = self._handles()
        for handle in handles:
            handle.flush(batch)

        def flushed() -> None:
            for handle in handles:
                handle.flushed()

        states = None
        if self.registry.has_changed or self._log.needs_states:
            states = self.registry.descriptors()
        batch.epoch = Epoch(self._epoch + 1)
        record = CommitRecord(meta, self.times.times(), states)
        if is_deferred:
            self._log.defer(batch.columns, batch.epoch, record)
            flushed()
        else:
            self.metrics.wal_bytes += self._log.append(batch.columns(), batch.epoch, record, flushed)
            self._measure_log()
        self._sweep.owe(batch.count - swept)
        self._epoch, self._meta, self.registry.has_changed = batch.epoch, meta, False
        self._pending.add(batch)
        self.holds_entries = self.holds_entries or batch.count > 0

    def _remove_expired(self, batch: EpochBatch) -> None:
        found = dict(self._sweep.take())
        waiting = self._pending.find(list(found))
        for entry_key, size in found.items():
            newest = waiting.get(entry_key)
            if entry_key not in waiting or (newest is not None and self._sweep.is_expired(entry_key, newest)):
                batch.put_entry(entry_key, None)
                self.metrics.expired_entries += 1
                self.metrics.expired_bytes += size

    def _raise_background_failure(self) -> None:
        self._applier.raise_failure()
        self._chain.raise_failure()
        if isinstance(self._backend, Hydrating):
            self._backend.raise_failure()

    def _complete(self, epoch: Epoch) -> None:
        self._applier.complete(epoch)
        self._trim_log()

    def _trim_log(self) -> None:
        """Drop the log segments that neither the backend nor a checkpoint needs any more.

        Both must be past it: a lost backend is made again from the checkpoint and the log, a lost tail of the backend from the log. Before
        the first checkpoint a durable backend alone counts, or the log of a store that makes none would grow without end.
        """
        # A log that ends with the process serves nothing but the next checkpoint, which can begin with a base of what is applied.
        survives = self._backend.durable or not self._log.durable
        needed = self._applier.persisted if survives else self._epoch
        if self._chain.covered_epoch or not survives:
            needed = min(needed, self._chain.covered_epoch)
        self._log.drop_before(needed)
        self._measure_log()

    def _measure_log(self) -> None:
        self.metrics.wal_disk_bytes, self.metrics.wal_begun = self._log.size_bytes, self._log.begun

    # Checkpointing

    def checkpoint(self, meta: dict[str, Any] | None = None, *, base: bool = False) -> CheckpointInfo:
        """Commit, and bring what changed since the last checkpoint to the checkpoint directory.

        Parameters
        ----------
        meta
            As in `commit`.
        base
            Store all the state anew, in files that no checkpoint before has, and wait for it.

        Raises
        ------
        FencedError
            Another process has opened this state since.
        UnavailableError, CorruptionError
            The checkpoint failed; the commit stands, and what was not uploaded goes with the next checkpoint.
        """
        pending = self.begin_checkpoint(meta, base=base)
        info = pending.finish()
        self.complete(info)
        return info

    def savepoint(self, dir: str, meta: dict[str, Any] | None = None) -> SavepointInfo:
        """Make a checkpoint, and copy it whole into a folder that is the caller's own: path or fsspec URL.

        The folder can be moved, and any backend restores it. Nobody but the caller removes it.

        Raises
        ------
        AlreadyExistsError
            A savepoint is there already.
        FencedError, UnavailableError, CorruptionError
            As `checkpoint` does; what is in the folder is no savepoint then, and the next one made there replaces it.
        """
        return self.begin_savepoint(self.checkpoint(meta), dir).finish()

    def begin_savepoint(self, info: CheckpointInfo, dir: str) -> PendingSavepoint:
        """A savepoint of a complete checkpoint of this store, to be finished while the store goes on.

        Until `finish` has ended, which must be called, that checkpoint is not removed.
        """
        return PendingSavepoint(self.checkpoints, info.manifest, dir, self._clock)

    def begin_checkpoint(
        self, meta: dict[str, Any] | None = None, *, final: bool = False, base: bool = False
    ) -> PendingCheckpoint:
        """First part of a checkpoint, which stops processing: end the epoch. Raises as `commit` does.

        `finish` logs it first of all, unless there is another commit before; so it is durable when either has returned.

        Parameters
        ----------
        final
            Whether the job has finished: a new run of it then starts afresh.
        base
            Whether `finish` makes a new base of all that is complete, of which nothing was stored before.
        """
        if base and self._auto_complete:  # a base holds what is complete, and here that is to be everything
            self.commit(meta)
            self._log.seal()
        else:
            self._end_epoch(meta, is_deferred=True)
        with self.metrics.time("checkpoint"):
            states = self.registry.descriptors()
            return self._chain.begin(self._epoch, self._meta, self.times.times(), states, final=final, base=base)

    def complete(self, info: CheckpointInfo) -> None:
        """Last part of a checkpoint: its epochs can't be rolled back any more, and may reach the backend."""
        self._check_open()
        self._complete(self._chain.completed(info))
        self._chain.renew()
        crashpoints.reach("checkpoint.completed")

    def collected(self, seconds: float = CLOSING_SECONDS) -> bool:
        """Wait until no old checkpoints are being removed in the background; False when it takes longer than this."""
        return self._chain.collector.wait(seconds)

    def abort(self, pending: PendingCheckpoint) -> bool:
        """Give a pending checkpoint up: it will never complete. False when it is completing already, so wait for it instead."""
        return pending.cancel()

    # The rest

    @property
    def hydration(self) -> RestoreProgress | None:
        """How far the filling of the backend is, in a store that was restored lazily and is not complete yet; else None."""
        return self._backend.progress() if isinstance(self._backend, Hydrating) and not self._backend.is_done else None

    def wait_hydrated(self, timeout: float | None = None) -> bool:
        """Wait until the backend holds everything; False when that takes more than `timeout` seconds.

        Raises
        ------
        CorruptionError, UnavailableError
            The checkpoint could not be read to its end. Every later commit, and every read that needs the backend, raises it as well.
        """
        return self._backend.wait(timeout) if isinstance(self._backend, Hydrating) else True

    def describe(self) -> tuple[str, str]:
        """Where the state and where the checkpoints are, without secrets."""
        return self.place, self.checkpoints.url

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the store is closed")
        if self._failure is not None:
            raise ClosedError(
                f"the store takes nothing more since a commit failed ({self._failure}): close it and open it again"
            )

    def close(self) -> None:
        """Apply what is complete to a durable backend and release everything; idempotent. Uncommitted changes are dropped."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._failure is None:
                self._log.settle()
            if self._backend.durable and self._failure is None:
                self._applier.finish()
                self._trim_log()  # so that the next opening has little to read
            self.collected()
        finally:
            self.release()

    def release(self) -> None:
        """Let go of everything without applying anything, as after a failure; idempotent."""
        self._closed = True
        if self._snapshots is not None:
            self._snapshots.close()
        self._applier.close()
        self._log.close()
        self._backend.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
