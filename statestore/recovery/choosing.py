"""Decides what a store is recovered from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from statestore import crashpoints
from statestore.backend import Backend
from statestore.checkpoint.locating import locate_checkpoint
from statestore.checkpoint.manifest import FileEntry, Manifest, Part
from statestore.checkpoint.parts import part_for
from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import CheckpointNotFoundError, CorruptionError, IncompatibleStateError, UsageError
from statestore.recovery.loading import Loader
from statestore.recovery.local import Local
from statestore.recovery.recovered import Recovered
from statestore.stamp import stamp_key, unfinished_key
from statestore.types import CheckpointId, Epoch
from statestore.wal.log import Log

logger = logging.getLogger("statestore.recovery")


class _Manifests:
    """Readable manifests of the retained checkpoints, newest first; each is read once, when it is come to."""

    def __init__(self, checkpoints: CheckpointStorage):
        self._checkpoints = checkpoints
        self.numbers = list(reversed(checkpoints.retained()))
        self._read: dict[CheckpointId, Manifest | None] = {}

    def __iter__(self) -> Iterator[Manifest]:
        for number in self.numbers:
            if number not in self._read:
                self._read[number] = self._readable(number)
            manifest = self._read[number]
            if manifest is not None:
                yield manifest

    def _readable(self, number: CheckpointId) -> Manifest | None:
        try:
            return self._checkpoints.load(number)
        except CorruptionError as error:
            logger.error("checkpoint %d can't be used, trying an older one: %s", number, error)
            return None

    def newest(self) -> Manifest | None:
        """The first of them."""
        return next(iter(self), None)


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
        loader: Loader,
        *,
        max_parallelism: int,
        key_groups: range,
        restore: str | None,
        run: str,
        tail_counts: bool,
    ):
        self._backend, self._log, self._checkpoints, self._loader = backend, log, checkpoints, loader
        self._local = Local(backend, log, stamp_key(key_groups))
        self._max_parallelism, self._key_groups = max_parallelism, key_groups
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
        self._manifests = _Manifests(self._checkpoints)
        recovered = self._recover()
        recovered.newest_id = next(iter(self._manifests.numbers), CheckpointId(0))
        return recovered

    def _recover(self) -> Recovered:
        newest = self._manifests.newest()
        if newest is not None and self._run and newest.run == self._run:
            return self._from_newest()
        if self._restore not in (None, "latest", "none"):
            return self._from_path(self._restore)
        if self._restore == "none":
            return self._empty(newest)
        self._local.read_log(may_be_lost=not self._tail_counts)
        if self._restore is None:
            self._refuse_unfinished()
            self._refuse_to_guess(newest)
            if newest is not None and not self._tail_counts:
                return self._empty(newest)
        if self._manifests.numbers:
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
            self._refuse_to_forget()
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

    def _refuse_to_forget(self) -> None:
        """Raise UsageError when there is no checkpoint, and signs that there was one: of this job, or of this folder."""
        had_any = self._checkpoints.newest_told() > 0
        if (
            not self._tail_counts
        ):  # a job's backend holds nothing before its first checkpoint, and its log is of an attempt counted there
            had_any |= self._backend.durable and self._backend.applied_epoch() > 0
            had_any |= bool(self._log.sealed) and self._log.sealed[-1].attempt >= self._checkpoints.newest_attempt()
        elif self._log.sealed:  # which is all that an embedded store needs
            return
        if had_any and not self._manifests.numbers:
            raise UsageError(
                f"the checkpoints of '{self._checkpoints.job}' are gone from {self._checkpoints.url}: name the folder where they are "
                "(checkpointing.dir), or start over with restore 'none' (--restore none)"
            )

    def _refuse_unfinished(self) -> None:
        if self._backend.durable and self._local.note(unfinished_key(self._key_groups)) is not None:
            raise UsageError(
                f"a migration into the state of '{self._checkpoints.job}' was interrupted: run it again, and it goes on; "
                "or start over with restore 'none' (--restore none)"
            )

    def _from_path(self, path: str) -> Recovered:
        checkpoints, number = locate_checkpoint(path, self._checkpoints)
        manifest = checkpoints.load(number)
        self._check_restorable(manifest, checkpoints)  # before anything that is there is given up for it
        try:
            self._local.read_log(may_be_lost=True)
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
            self._local.read_log(may_be_lost=not self._tail_counts)
        newest = self._manifests.newest()
        if self._tail_counts and self._log.sealed:
            if newest is None or self._log.sealed[-1].attempt > newest.attempt:
                return self._from_local_history()
            self._check_no_fork(newest)
        failure: CorruptionError | None = None
        for manifest in self._manifests:
            try:
                return self._restore_checkpoint(manifest, self._checkpoints)
            except CorruptionError as error:
                failure = error
                logger.error("checkpoint %d can't be restored, trying an older one: %s", manifest.checkpoint_id, error)
        if failure is not None:
            raise failure
        raise CorruptionError(self._checkpoints.url, "no checkpoint has a readable manifest")

    def _from_local_history(self) -> Recovered:
        """What was committed here after the newest checkpoint was made counts, also when it began from an older one, or from nothing."""
        for manifest in self._manifests:
            if self._local.continues(self._part(manifest).log_sha256):
                return self._restore_checkpoint(manifest, self._checkpoints)
        return self._from_log_alone()

    def _part(self, manifest: Manifest) -> Part:
        return part_for(manifest, self._key_groups)

    # Restoring

    def _empty(self, newest: Manifest | None = None) -> Recovered:
        self._log.reset()
        self._backend.clear(self._key_groups)
        meta = newest.meta if newest is not None and newest.kind == "final" else {}
        return Recovered(self._backend, finished_meta=meta)

    def _from_log_alone(self) -> Recovered:
        first, last = self._log.sealed[0], self._log.sealed[-1]
        recovered = Recovered(self._backend, log_sequence=last.sequence, log_sha256=last.sha256)
        applied = self._local.surviving_epoch()
        if applied is None:
            if first.first_epoch > 1 or first.previous:
                raise CorruptionError(
                    "state", f"the backend lost its state, and the log begins only at epoch {first.first_epoch}"
                )
            self._backend.clear(self._key_groups)
            applied = Epoch(0)
        self._local.replay(applied, recovered)
        return recovered

    def _check_restorable(self, manifest: Manifest, checkpoints: CheckpointStorage) -> None:
        """Raise when a checkpoint does not fit, or lacks a file."""
        self._check_parallelism(manifest, checkpoints)

        def check(entry: FileEntry) -> None:
            name = checkpoints.object_name(entry.path)
            try:
                size = checkpoints.storage.size(name)
            except FileNotFoundError:
                raise CorruptionError(f"{checkpoints.storage.url}/{name}", "the file is missing") from None
            if size != entry.size:
                problem = f"it has {size} bytes instead of {entry.size}"
                raise CorruptionError(f"{checkpoints.storage.url}/{name}", problem)

        with ThreadPoolExecutor(self._loader.parallelism) as pool:
            list(pool.map(check, (entry for entry in manifest.files() if entry.data is None)))

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
            self._backend,
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
        continued = self._local.continues(part.log_sha256)
        if continued and not self._tail_counts:
            self._log.keep_to(part.log_sequence)
        applied = self._local.surviving_epoch() if continued else None
        if applied is None:
            recovered.backend, applied = self._loader.load(checkpoints, manifest, part), part.epoch
            if not continued:
                self._log.reset()
        if continued:
            self._local.replay(applied, recovered)
        crashpoints.reach("recovery.loaded")
        return recovered

    def _check_no_fork(self, newest: Manifest) -> None:
        last, part = self._log.sealed[-1], self._part(newest)
        if last.last_epoch > part.epoch and not self._local.continues(part.log_sha256):
            raise UsageError(
                f"the local log (epoch {last.last_epoch}) does not continue checkpoint {newest.checkpoint_id} (epoch "
                f"{part.epoch}): they are of different histories; name the checkpoint in restore= to give up the local one"
            )
