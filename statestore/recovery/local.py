"""What has survived here: the local log, and the backend's own state."""

from __future__ import annotations

import logging

from statestore.backend import Backend
from statestore.errors import CorruptionError, UnavailableError
from statestore.recovery.recovered import Recovered
from statestore.stamp import decode_stamp, encode_stamp
from statestore.types import Epoch
from statestore.wal.log import Log

logger = logging.getLogger("statestore.recovery")

ENTRIES_PER_APPLY = 200_000


class Local:
    """The local log and the backend as they were found."""

    def __init__(self, backend: Backend, log: Log, stamp_key: bytes):
        self._backend, self._log, self._stamp_key = backend, log, stamp_key

    def read_log(self, *, may_be_lost: bool) -> None:
        """Find out what the log holds; give a damaged one up if that is allowed. Raises CorruptionError, IncompatibleStateError."""
        try:
            self._log.recover()
        except CorruptionError as error:
            if not may_be_lost:
                raise
            logger.error("the local log is damaged and not used: %s", error)
            self._log.reset()

    def continues(self, sha256: str) -> bool:
        """Whether the log holds, or goes on behind, the segment with this hash."""
        return any(sha256 in (segment.sha256, segment.previous) for segment in self._log.sealed)

    def surviving_epoch(self) -> Epoch | None:
        """The epoch of the log that the backend holds, so that replaying from there is enough; None when it has to be filled anew."""
        if not self._backend.durable or not self._log.sealed:
            return None
        marker = self._backend.applied_epoch()
        if not 0 < marker <= self._log.sealed[-1].last_epoch:
            return None
        stored = self.note(self._stamp_key)
        if stored is None:
            return None
        stamp = decode_stamp(stored)
        is_known = stamp.epoch == marker and any(
            segment.attempt == stamp.attempt and segment.first_epoch <= marker <= segment.last_epoch
            for segment in self._log.sealed
        )
        return marker if is_known else None

    def note(self, key: bytes) -> bytes | None:
        """A reserved entry of the backend, None when it is not there or can't be read."""
        try:
            (stored,) = self._backend.get_many([key])
        except (UnavailableError, CorruptionError) as error:
            logger.error("the backend's state is not used: %s", error)
            return None
        return stored

    def replay(self, applied: Epoch, recovered: Recovered) -> None:
        """Bring the backend from epoch `applied`, and what is recovered from its own epoch, to the end of the log."""
        batch: dict[bytes, bytes | None] = {}
        epoch = applied
        for group in self._log.groups(min(applied, recovered.epoch)):
            if group.epoch > recovered.epoch:
                recovered.epoch, recovered.meta, recovered.times = group.epoch, group.commit.meta, group.commit.times
                recovered.states = group.commit.states or recovered.states
            if group.epoch > applied:
                for entries in group.entries():
                    batch.update(entries)
                epoch = group.epoch
                if len(batch) >= ENTRIES_PER_APPLY:
                    self._apply(recovered.backend, batch, epoch)
                    batch = {}
        if epoch > applied:
            self._apply(recovered.backend, batch, epoch)
        last = self._log.sealed[-1] if self._log.sealed else None
        if last is not None and last.last_epoch >= recovered.epoch:
            recovered.log_sequence, recovered.log_sha256 = last.sequence, last.sha256

    def _apply(self, backend: Backend, batch: dict[bytes, bytes | None], epoch: Epoch) -> None:
        owner = next(s.attempt for s in self._log.sealed if s.first_epoch <= epoch <= s.last_epoch)
        batch[self._stamp_key] = encode_stamp(owner, epoch)
        backend.apply(batch, epoch)
