"""The log of one store: its segments in order, the one being written, and what may be dropped.

Invariants:
- segments are named by sequence number and chained by hash; at most the last may have a torn tail;
- `append` returns only when the epoch is whole and synced; so does `settle` for the one that was deferred, before which nothing else is
  written; after a failed write or sync the log is poisoned and takes nothing more, since the kernel may have thrown away what it could
  not write;
- a sealed segment is never written again, so that its bytes can serve as a checkpoint's delta.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from statestore import crashpoints
from statestore.clock import Clock
from statestore.errors import ClosedError, CorruptionError, IncompatibleStateError
from statestore.io import Appender, AppendStorage
from statestore.types import Attempt, Epoch
from statestore.wal.reader import Group, SegmentContent, read_segment
from statestore.wal.record import (
    Columns,
    CommitRecord,
    Compressor,
    SegmentHeader,
    decode_header,
    encode_group,
    encode_header,
    header_is_torn,
)

SUFFIX = ".log"
SEGMENT_MAX_BYTES = 64 << 20
RECOVERED_MAX_BYTES = 256 << 20
HEADER_MAX_BYTES = 64 << 10


def segment_name(sequence: int) -> str:
    """Name of a segment in the log's folder."""
    return f"{sequence:012d}{SUFFIX}"


def stored_header(storage: AppendStorage) -> SegmentHeader | None:
    """Header of the first segment in a log's folder, None when there is none. Raises CorruptionError."""
    for name in storage.list():
        if name.endswith(SUFFIX):
            data = storage.read(name, 0, HEADER_MAX_BYTES)
            return None if header_is_torn(data) else decode_header(data, f"{storage.url}/{name}")[0]
    return None


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """A segment that is complete: what a checkpoint needs to know of it."""

    sequence: int
    attempt: Attempt
    first_epoch: Epoch
    last_epoch: Epoch
    size: int
    sha256: str
    previous: str


class Log:
    """Segments of one history in an `AppendStorage`.

    Call `recover` once, then `keep_to` or `reset`, then `begin`; then `append` and `seal`, or `defer` and `settle`. Any thread may call
    `settle`; all else is for one.
    """

    def __init__(
        self, storage: AppendStorage, job: str, max_parallelism: int, clock: Clock, key_groups: range | None = None
    ):
        self._storage, self._job, self._max_parallelism, self._clock = storage, job, max_parallelism, clock
        own = range(max_parallelism) if key_groups is None else key_groups
        self._key_groups = own.start, own.stop - 1
        self.sealed: list[SealedSegment] = []
        self._begun: dict[int, float] = {}
        self._compressor = Compressor()
        self._appender: Appender | None = None
        self._failure: BaseException | None = None
        self._settling = threading.Lock()
        self._deferred: tuple[Callable[[], Columns], Epoch, CommitRecord] | None = None
        self._header: SegmentHeader | None = None
        self._digest = hashlib.sha256()
        self._size = 0
        self._last_epoch = Epoch(0)
        self._recovered: dict[int, SegmentContent] = {}
        """What `recover` has read, by sequence, so that `groups` need not read it again."""

    @property
    def durable(self) -> bool:
        """Whether it outlives the process."""
        return self._storage.durable

    # Recovery

    def recover(self) -> None:
        """Read what is there into `sealed`, cutting a torn tail off the last segment.

        Raises
        ------
        CorruptionError
            A segment is damaged, missing, out of order or of another job.
        IncompatibleStateError
            It was written with another number of key groups, or is of others.
        """
        names = [name for name in self._storage.list() if name.endswith(SUFFIX)]
        for index, name in enumerate(names):
            last = index == len(names) - 1
            data = self._storage.read(name)
            content = read_segment(data, self._file(name), tail_may_be_torn=last)
            if content is None or (last and not content.groups):
                self._storage.delete(name)
                continue
            self._check_chain(name, content)
            self._begun[content.header.sequence] = self._storage.modified(name)
            if last:
                # Also when nothing is cut off: what was read may not have reached the disk yet, and the next segment will build on it.
                self._storage.truncate(name, content.valid_size)
            self.sealed.append(_sealed(content))
            self._remember(content)

    def _remember(self, content: SegmentContent) -> None:
        """Keep the newest segments' contents, which are those that are asked for, within `RECOVERED_MAX_BYTES`."""
        self._recovered[content.header.sequence] = content
        total = sum(kept.valid_size for kept in self._recovered.values())
        while total > RECOVERED_MAX_BYTES and len(self._recovered) > 1:
            total -= self._recovered.pop(next(iter(self._recovered))).valid_size

    def _check_chain(self, name: str, content: SegmentContent) -> None:
        header = content.header
        if header.job != self._job or segment_name(header.sequence) != name:
            problem = f"it is segment {header.sequence} of job '{header.job}'"
            raise CorruptionError(self._file(name), problem, offset=0)
        if header.max_parallelism != self._max_parallelism:
            raise IncompatibleStateError(
                f"the log {self._file(name)} was written with max parallelism {header.max_parallelism}, the configuration says "
                f"{self._max_parallelism}: set state.max-parallelism = {header.max_parallelism}"
            )
        if header.key_groups != self._key_groups:
            (first, last), (own_first, own_last) = header.key_groups, self._key_groups
            raise IncompatibleStateError(
                f"the log {self._file(name)} is of the key groups {first} to {last}, this store keeps {own_first} to {own_last}: "
                "give each range of key groups a folder of its own"
            )
        if not self.sealed:
            return
        before = self.sealed[-1]
        if header.sequence != before.sequence + 1:
            missing = self._file(segment_name(before.sequence + 1))
            raise CorruptionError(missing, f"the log goes on at segment {header.sequence}, this one is missing")
        if header.previous != before.sha256 or header.first_epoch != before.last_epoch + 1:
            raise CorruptionError(self._file(name), f"it does not continue segment {before.sequence}", offset=0)

    def groups(self, after: Epoch) -> Iterator[Group]:
        """Committed epochs greater than `after` in the sealed segments, ascending. Raises CorruptionError."""
        for segment in self.sealed:
            if segment.last_epoch > after:
                content = self._recovered.pop(segment.sequence, None)
                if content is None:
                    name = segment_name(segment.sequence)
                    content = read_segment(self._storage.read(name), self._file(name), tail_may_be_torn=False)
                    assert content is not None
                yield from (group for group in content.groups if group.epoch > after)

    def keep_to(self, sequence: int) -> None:
        """Drop the sealed segments behind `sequence`, newest first: they were rolled back."""
        while self.sealed and self.sealed[-1].sequence > sequence:
            self._storage.delete(segment_name(self.sealed.pop().sequence))

    def reset(self) -> None:
        """Drop everything, newest first, so that what an interrupted reset leaves is still a history."""
        for name in reversed([name for name in self._storage.list() if name.endswith(SUFFIX)]):
            self._storage.delete(name)
        self.sealed = []

    def is_empty(self) -> bool:
        """Whether the folder holds no segment, whole or not."""
        return not any(name.endswith(SUFFIX) for name in self._storage.list())

    def begin(self, *, attempt: Attempt, epoch: Epoch, sequence: int, previous: str) -> None:
        """Go on behind `epoch`: the next segment will be number `sequence` and name `previous` as the one before."""
        self._attempt, self._last_epoch = attempt, epoch
        self._next = (sequence, previous)
        self._recovered.clear()

    # Writing

    def append(
        self, batch: Columns, epoch: Epoch, commit: CommitRecord, meanwhile: Callable[[], None] = lambda: None
    ) -> int:
        """Log one epoch durably; returns the bytes written.

        Parameters
        ----------
        commit
            With the registered states, where `needs_states`.
        meanwhile
            What there is to do while the disk is writing.

        Raises
        ------
        UnavailableError
            The storage failed; the log is poisoned, what was logged before is safe.
        ClosedError
            The log was poisoned or closed before.
        """
        self._check()
        assert self._deferred is None, "settle it first"
        return self._append(batch, epoch, commit, meanwhile)

    def defer(self, batch: Callable[[], Columns], epoch: Epoch, commit: CommitRecord) -> None:
        """Take over an epoch and do nothing yet: `settle` logs it and seals its segment.

        Parameters
        ----------
        batch
            Gives the entries, always the same, in the thread that settles.

        Raises
        ------
        ClosedError
            As `append`.
        """
        self._check()
        assert self._deferred is None, "settle it first"
        self._deferred = batch, epoch, commit

    def settle(self) -> int:
        """Log what was deferred, if anything was, durably, and seal its segment; returns the bytes written.

        Raises as `append` does, and as what gives the entries.
        """
        with self._settling:
            self._check()
            if self._deferred is None:
                return 0
            batch, epoch, commit = self._deferred
            size = self._append(batch(), epoch, commit, lambda: None)
            self._deferred = None
            self.seal()
            return size

    def _check(self) -> None:
        if self._failure is not None:
            raise ClosedError(f"the log at {self._storage.url} failed before and takes nothing more: {self._failure}")

    def _append(self, batch: Columns, epoch: Epoch, commit: CommitRecord, meanwhile: Callable[[], None]) -> int:
        assert epoch == self._last_epoch + 1, (epoch, self._last_epoch)
        pieces = encode_group(batch, epoch, commit, self._compressor)
        crashpoints.reach("commit.before-log")
        try:
            appender = self._ensure_segment(epoch)
            before = self._size
            for piece in pieces:
                appender.write(piece)
                self._digest.update(piece)
                self._size += len(piece)
            meanwhile()
            appender.sync()
        except BaseException as error:
            self._failure = error
            raise
        self._last_epoch = epoch
        if self._size >= SEGMENT_MAX_BYTES:
            self.seal()
        return self._size - before

    def _ensure_segment(self, first_epoch: Epoch) -> Appender:
        if self._appender is None:
            sequence, previous = self._next
            self._header = SegmentHeader(
                self._job, self._attempt, sequence, first_epoch, previous, self._max_parallelism, self._key_groups
            )
            head = encode_header(self._header)
            self._begun[sequence] = self._clock.time()
            self._appender = self._storage.appender(segment_name(sequence))
            self._appender.write(head)
            self._digest, self._size = hashlib.sha256(head), len(head)
        return self._appender

    @property
    def needs_states(self) -> bool:
        """Whether the next epoch opens a segment, and so has to list the registered states."""
        return self._appender is None

    def seal(self) -> None:
        """Close the segment being written, if any; the next `append` begins another."""
        if self._appender is None or self._failure is not None:
            return
        assert self._header is not None
        self._appender.close()
        self._appender = None
        header, digest = self._header, self._digest.hexdigest()
        self.sealed.append(
            SealedSegment(
                header.sequence,
                header.attempt,
                header.first_epoch,
                self._last_epoch,
                self._size,
                digest,
                header.previous,
            )
        )
        self._next = (header.sequence + 1, digest)

    def read_sealed(self, segment: SealedSegment) -> bytes:
        """Bytes of a sealed segment, as a checkpoint uploads them.

        Raises
        ------
        CorruptionError
            They are not what was written.
        """
        name = segment_name(segment.sequence)
        data = self._storage.read(name)
        if hashlib.sha256(data).hexdigest() != segment.sha256:
            raise CorruptionError(self._file(name), "the segment changed since it was written")
        return data

    def drop_before(self, epoch: Epoch) -> None:
        """Delete segments that hold only epochs less than `epoch`, oldest first."""
        while self.sealed and self.sealed[0].last_epoch < epoch:
            dropped = self.sealed.pop(0).sequence
            self._begun.pop(dropped, None)
            self._storage.delete(segment_name(dropped))

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments that are kept."""
        return sum(segment.size for segment in self.sealed) + (self._size if self._appender is not None else 0)

    @property
    def begun(self) -> float | None:
        """When the oldest segment was begun, in seconds since the Unix epoch; of one that was recovered, when it was written last."""
        if self.sealed:
            return self._begun.get(self.sealed[0].sequence)
        return self._begun.get(self._header.sequence) if self._appender is not None and self._header else None

    def close(self) -> None:
        """Release the segment being written; idempotent. What is deferred still is dropped."""
        with self._settling:
            self.seal()
            if self._appender is not None:
                self._appender.close()
                self._appender = None
            self._failure = self._failure or ClosedError("closed")

    def _file(self, name: str) -> str:
        return f"{self._storage.url}/{name}"


def _sealed(content: SegmentContent) -> SealedSegment:
    header = content.header
    return SealedSegment(
        header.sequence,
        header.attempt,
        header.first_epoch,
        content.last_epoch,
        content.valid_size,
        content.sha256,
        header.previous,
    )
