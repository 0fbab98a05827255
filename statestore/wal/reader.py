"""Reads a log segment: which epochs it holds, and what is in them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from statestore.errors import CorruptionError
from statestore.types import Epoch
from statestore.wal.record import (
    BATCH,
    CommitRecord,
    Record,
    SegmentHeader,
    batch_of,
    commit_of,
    decode_header,
    header_is_torn,
    next_offset,
    next_record,
)

logger = logging.getLogger("statestore.wal")


@dataclass(frozen=True, slots=True)
class Group:
    """One committed epoch of a segment."""

    epoch: Epoch
    batches: list[Record]
    commit: CommitRecord
    file: str

    def entries(self) -> Iterator[dict[bytes, bytes | None]]:
        """The epoch's entries, in the pieces they were logged in. Raises CorruptionError."""
        for record in self.batches:
            yield batch_of(record, self.file)


@dataclass(frozen=True, slots=True)
class SegmentContent:
    """A segment's whole groups, and where they end."""

    header: SegmentHeader
    groups: list[Group]
    valid_size: int
    """Bytes up to the end of the last whole group."""
    sha256: str
    """Of the valid bytes."""

    @property
    def last_epoch(self) -> Epoch:
        """Last epoch in it; the one before its first when it holds none."""
        return self.groups[-1].epoch if self.groups else Epoch(self.header.first_epoch - 1)


def read_segment(data: bytes, file: str, *, tail_may_be_torn: bool) -> SegmentContent | None:
    """Content of a segment; None when even its header was not written whole (allowed only with a torn tail).

    Parameters
    ----------
    tail_may_be_torn
        Whether this is the segment that was being written when the process ended. Then what follows the last whole group is
        dropped, and its size logged; in any other segment it is damage.

    Raises
    ------
    CorruptionError
        Names the file and the offset. A damaged segment is never read as a shorter one.
    """
    if tail_may_be_torn and header_is_torn(data):
        logger.warning("log segment %s ends within its header (%d bytes): nothing was committed in it", file, len(data))
        return None
    header, offset = decode_header(data, file)
    groups: list[Group] = []
    batches: list[Record] = []
    valid = offset
    expected = header.first_epoch
    while offset < len(data):
        record = next_record(data, offset, file)
        if record is None:
            break
        if record.epoch != expected:
            raise CorruptionError(file, f"epoch {record.epoch} where {expected} is due", offset=offset)
        offset = record.end
        if record.kind == BATCH:
            batches.append(record)
        else:
            groups.append(Group(record.epoch, batches, commit_of(record, file), file))
            batches, valid, expected = [], offset, Epoch(expected + 1)
    if valid < len(data):
        if not tail_may_be_torn:
            raise CorruptionError(file, f"the last {len(data) - valid} bytes are not a whole commit", offset=valid)
        logger.warning(
            "log segment %s: dropped an unfinished commit of %d bytes at byte %d", file, len(data) - valid, valid
        )
    return SegmentContent(header, groups, valid, hashlib.sha256(memoryview(data)[:valid]).hexdigest())


def flaws_of_log(data: bytes, file: str, key_groups: range, epochs: range) -> Iterator[tuple[CorruptionError, range]]:
    """Read every record of a sealed segment, and yield what is wrong with each, with the key groups that it may hold.

    Parameters
    ----------
    key_groups, epochs
        What the segment may hold.
    """
    try:
        header, offset = decode_header(data, file)
    except CorruptionError as error:
        yield error, key_groups
        return
    if header.first_epoch != epochs.start:
        yield CorruptionError(file, f"it begins with epoch {header.first_epoch}, not {epochs.start}"), key_groups
    expected, is_whole = header.first_epoch, True
    while offset < len(data):
        try:
            record = next_record(data, offset, file)
            if record is None:
                raise CorruptionError(file, f"the last {len(data) - offset} bytes are no whole record", offset=offset)
            if record.epoch != expected:
                raise CorruptionError(file, f"epoch {record.epoch} where {expected} is due", offset=offset)
            if record.kind == BATCH:
                _check_groups(batch_of(record, file), key_groups, file, offset)
            else:
                commit_of(record, file)
                expected = Epoch(expected + 1)
            offset = record.end
        except CorruptionError as error:
            is_whole = False
            yield error, key_groups
            found = next_offset(data, offset)
            if found is None:
                return
            offset, expected = found
    if is_whole and expected != epochs.stop:
        yield CorruptionError(file, f"it ends with epoch {expected - 1}, not {epochs.stop - 1}"), key_groups


def _check_groups(batch: dict[bytes, bytes | None], key_groups: range, file: str, offset: int) -> None:
    for key in batch:
        if (group := int.from_bytes(key[:2], "big")) not in key_groups:
            raise CorruptionError(file, f"a record holds an entry of key group {group}", offset=offset)
