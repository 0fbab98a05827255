"""Byte grammar of a log segment, which is also a checkpoint's delta file.

Invariants:
- a segment is a header and then groups; a group is BATCH records closed by one COMMIT record, all of one epoch;
- epochs increase by one from the header's first epoch; a group counts only when its COMMIT is whole;
- `previous` in the header is the SHA-256 of the whole segment before, so that a missing, reordered or foreign one is noticed.

Grammar (integers little-endian; crc is CRC-32C):

    segment = "SSTWAL" · 00 · version u8 · length u32 · crc of header u32 · crc of the 16 bytes before u32 · header as MessagePack map
    record  = length u32 · type u8 · epoch u64 · crc of payload u32 · crc of the 17 bytes before u32 · payload
    payload = zstd frame of: BATCH  MessagePack array [entry keys, values], nil deletes
                             COMMIT MessagePack map {meta, times, states}

Heads have a checksum of their own, so that a flipped length can't pass for a torn tail.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import google_crc32c
import msgspec
import zstandard

from statestore.backend import Batch
from statestore.errors import CorruptionError, UsageError
from statestore.io.base import ends_in_zeros
from statestore.schema import Schema
from statestore.ttl import StoredTtl, Times
from statestore.types import Attempt, Epoch

MAGIC = b"SSTWAL\x00\x02"
BATCH, COMMIT = 1, 2
ENTRIES_PER_RECORD = 8192
"""The disk writes one record while the next is made."""
RECORD_RAW_MAX_BYTES = 256 << 20
COPIED_MAX_BYTES = 64 << 10
"""Less is written together with what comes before and behind it, so that a small group takes one write."""
BUFFER_MAX_BYTES = 4 << 20
"""A larger one is not kept."""
SAMPLED_MIN_BYTES = 128 << 10
SAMPLE_PARTS, SAMPLE_PART_BYTES = 8, 2 << 10
WORTHWHILE = 0.75
"""A payload whose sample does not shrink to this share is compressed hastily: level 1 would take as long as encoding and writing it."""
HASTY_LEVEL = -1
"""Of zstd: three times as fast as level 1 where there is little to find, and nearly as small."""

_head = struct.Struct("<IBQI")
_u32 = struct.Struct("<I")
HEAD_BYTES = _head.size + _u32.size
_start = struct.Struct(f"<{len(MAGIC)}sII")
PREFIX_BYTES = _start.size + _u32.size


class StateDescriptor(msgspec.Struct, frozen=True):
    """What is stored about a registered state, so that it is found again and its type can be checked."""

    id: int
    name: str
    kind: str
    key_type: str
    schemas: list[Schema | None]
    """What values may be stored with, by schema version; None where no value is, any more."""
    version: int
    """Of the schema that values are written with."""
    ttl: StoredTtl | None = None
    """None when it never had a time-out."""

    @property
    def type(self) -> str:
        """Readable name of the value type."""
        schema = self.schemas[self.version]
        assert schema is not None, "it is the one in use"
        return schema.name


class SegmentHeader(msgspec.Struct, frozen=True):
    """First thing in a segment."""

    job: str
    attempt: Attempt
    sequence: int
    first_epoch: Epoch
    previous: str
    """SHA-256 (hex) of the segment before, empty for the first of a history."""
    max_parallelism: int
    """Number of key groups that the entries' keys were made with."""
    key_groups: tuple[int, int]
    """First and last key group of the store, so that no two stores' segments are the same bytes."""


class CommitRecord(msgspec.Struct, frozen=True):
    """Closes an epoch."""

    meta: dict[str, Any]
    times: Times
    states: list[StateDescriptor] | None = None
    """All registered states, where they changed since the last COMMIT of the segment."""


_encoder = msgspec.msgpack.Encoder()
_pack = _encoder.encode
_batch_type = tuple[list[bytes], list[bytes | None]]
_unpack_batch = msgspec.msgpack.Decoder(_batch_type).decode
_unpack_commit = msgspec.msgpack.Decoder(CommitRecord).decode
_unpack_header = msgspec.msgpack.Decoder(SegmentHeader).decode


def encode_header(header: SegmentHeader) -> bytes:
    """Bytes a segment starts with."""
    body = _pack(header)
    start = _start.pack(MAGIC, len(body), google_crc32c.value(body))
    return start + _u32.pack(google_crc32c.value(start)) + body


def header_is_torn(data: bytes) -> bool:
    """Whether a segment's file ends before its header does."""
    if len(data) < PREFIX_BYTES or not data.strip(b"\0"):
        return True
    _, length, _ = _start.unpack_from(data)
    return _prefix_is_whole(data) and len(data) < PREFIX_BYTES + length


def _prefix_is_whole(data: bytes) -> bool:
    (crc,) = _u32.unpack_from(data, _start.size)
    return bool(google_crc32c.value(data[: _start.size]) == crc)


def decode_header(data: bytes, file: str) -> tuple[SegmentHeader, int]:
    """Header of a segment and the offset behind it.

    Raises
    ------
    CorruptionError
        It is not a segment, or of another version, or damaged.
    """
    if data[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise CorruptionError(file, "not a log segment", offset=0)
    if data[: len(MAGIC)] != MAGIC:
        raise CorruptionError(
            file, f"log format version {data[len(MAGIC) - 1]} is not supported", offset=len(MAGIC) - 1
        )
    if len(data) < PREFIX_BYTES or not _prefix_is_whole(data):
        raise CorruptionError(file, "the segment's first bytes do not match their checksum", offset=len(MAGIC))
    _, length, crc = _start.unpack_from(data)
    body = data[PREFIX_BYTES : PREFIX_BYTES + length]
    if len(body) != length or google_crc32c.value(body) != crc:
        raise CorruptionError(file, "the segment header does not match its checksum", offset=PREFIX_BYTES)
    try:
        return _unpack_header(body), PREFIX_BYTES + length
    except msgspec.MsgspecError as error:
        raise CorruptionError(file, f"the segment header can't be read: {error}", offset=PREFIX_BYTES) from error


class Columns(NamedTuple):
    """Entries: their keys and, parallel to them, their values; `None` deletes."""

    keys: Sequence[bytes]
    values: Sequence[bytes | None]

    @classmethod
    def of(cls, batch: Batch) -> Columns:
        """Those of a mapping."""
        return cls(list(batch), list(batch.values()))


class Compressor:
    """Makes the payloads: zstd frames, of a faster level where a sample shows that there is little to save."""

    def __init__(self) -> None:
        self._usual = zstandard.ZstdCompressor(level=1)
        self._hasty = zstandard.ZstdCompressor(level=HASTY_LEVEL)
        self._buffer = bytearray()

    def packed(self, content: Any) -> bytearray:
        """Content as MessagePack, in a buffer that the next call takes again: fresh memory costs as much time as filling it."""
        if len(self._buffer) > BUFFER_MAX_BYTES:
            self._buffer = bytearray()
        _encoder.encode_into(content, self._buffer)
        return self._buffer

    def compress(self, raw: bytearray) -> bytes:
        """Payload with this content."""
        if len(raw) >= SAMPLED_MIN_BYTES:
            starts = range(0, len(raw), len(raw) // SAMPLE_PARTS)
            sample = b"".join([raw[start : start + SAMPLE_PART_BYTES] for start in starts])
            if len(self._usual.compress(sample)) > WORTHWHILE * len(sample):
                return self._hasty.compress(raw)
        return self._usual.compress(raw)


def _record(kind: int, epoch: Epoch, raw: bytearray, compressor: Compressor) -> tuple[bytes, bytes]:
    """Head and payload."""
    payload = compressor.compress(raw)
    head = _head.pack(len(payload), kind, epoch, google_crc32c.value(payload))
    return head + _u32.pack(google_crc32c.value(head)), payload


def _batch_records(
    keys: Sequence[bytes], values: Sequence[bytes | None], epoch: Epoch, compressor: Compressor
) -> Iterator[tuple[bytes, bytes]]:
    raw = compressor.packed((keys, values))
    if len(raw) <= RECORD_RAW_MAX_BYTES:
        yield _record(BATCH, epoch, raw, compressor)
        return
    if len(keys) == 1:
        raise UsageError(f"a single value of {len(raw)} bytes is over the limit of {RECORD_RAW_MAX_BYTES} bytes")
    half = len(keys) // 2
    for some in (slice(half), slice(half, None)):
        yield from _batch_records(keys[some], values[some], epoch, compressor)


def encode_group(batch: Columns, epoch: Epoch, commit: CommitRecord, compressor: Compressor) -> Iterator[bytes]:
    """Bytes of one epoch, to be appended in pieces, each of which is made when it is asked for.

    Raises
    ------
    UsageError
        While it is iterated: a value is larger than a record may be.
    """
    keys, values = batch
    waiting = b""
    for first in range(0, len(keys), ENTRIES_PER_RECORD):
        some = slice(first, first + ENTRIES_PER_RECORD)
        for head, payload in _batch_records(keys[some], values[some], epoch, compressor):
            if len(payload) < COPIED_MAX_BYTES:
                waiting += head + payload
            else:
                yield waiting + head
                yield payload
                waiting = b""
    yield b"".join((waiting, *_record(COMMIT, epoch, compressor.packed(commit), compressor)))


def decode_payload(payload: bytes, file: str, offset: int) -> bytes:
    """Decompressed payload, bounded by the size it declares, which is itself bounded.

    Raises
    ------
    CorruptionError
        It declares no size or too great a one, or is no zstd frame.
    """
    try:
        declared = zstandard.frame_content_size(payload)
        if not 0 <= declared <= RECORD_RAW_MAX_BYTES:
            raise CorruptionError(file, f"a record declares {declared} bytes of content", offset=offset)
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=declared) if declared else b""
    except zstandard.ZstdError as error:
        raise CorruptionError(file, f"a record can't be decompressed: {error}", offset=offset) from error


class Record(msgspec.Struct, frozen=True):
    """A whole record as it stands in a segment."""

    kind: int
    epoch: Epoch
    payload: bytes
    offset: int
    end: int


def next_record(data: bytes, offset: int, file: str) -> Record | None:
    """Record at `offset`, or None when what is there is the torn tail of an interrupted write.

    Torn is: the file ends within the record, or nothing but zeros follows from some point in it (a file system may have grown
    the file before its data). Anything else that does not match a checksum was written whole once, and is damage.

    Raises
    ------
    CorruptionError
        The record is damaged.
    """
    if offset + HEAD_BYTES > len(data):
        return None
    length, kind, epoch, crc = _head.unpack_from(data, offset)
    (head_crc,) = _u32.unpack_from(data, offset + _head.size)
    if google_crc32c.value(data[offset : offset + _head.size]) != head_crc:
        if ends_in_zeros(data, offset):
            return None
        raise CorruptionError(file, "a record head does not match its checksum", offset=offset)
    end = offset + HEAD_BYTES + length
    if end > len(data):
        return None
    payload = data[offset + HEAD_BYTES : end]
    if google_crc32c.value(payload) != crc:
        if ends_in_zeros(data, offset):
            return None
        raise CorruptionError(file, "a record does not match its checksum", offset=offset)
    if kind not in (BATCH, COMMIT):
        raise CorruptionError(file, f"unknown record type {kind}", offset=offset)
    return Record(kind, Epoch(epoch), payload, offset, end)


def next_offset(data: bytes, offset: int) -> tuple[int, Epoch] | None:
    """Where the record behind the damaged one at `offset` begins, and the epoch due there; None when the head itself is damaged."""
    head = data[offset : offset + HEAD_BYTES]
    if len(head) < HEAD_BYTES or google_crc32c.value(head[: _head.size]) != _u32.unpack_from(head, _head.size)[0]:
        return None
    length, kind, epoch, _ = _head.unpack_from(head)
    end = offset + HEAD_BYTES + length
    return (end, Epoch(epoch + (kind == COMMIT))) if end < len(data) else None


def batch_of(record: Record, file: str) -> dict[bytes, bytes | None]:
    """Entries of a BATCH record. Raises CorruptionError."""
    try:
        keys, values = _unpack_batch(decode_payload(record.payload, file, record.offset))
        return dict(zip(keys, values, strict=True))
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(file, f"a batch can't be read: {error}", offset=record.offset) from error


def commit_of(record: Record, file: str) -> CommitRecord:
    """Content of a COMMIT record. Raises CorruptionError."""
    try:
        return _unpack_commit(decode_payload(record.payload, file, record.offset))
    except msgspec.MsgspecError as error:
        raise CorruptionError(file, f"a commit record can't be read: {error}", offset=record.offset) from error
