"""Sorted segment: an immutable file of entries in key order, readable by range reads.

Invariants:
- keys ascend strictly over the whole file; a value of nil marks a deleted key;
- every byte is under a checksum that is checked before the byte is believed;
- readers need the footer and then only the blocks they look into.

Grammar (integers little-endian; crc is CRC-32C):

    file   = "SSTSEG" · 00 · version u8 · block* · footer · length of footer u32 · crc of footer u32 · "SSTSEGND"
    block  = zstd frame of a MessagePack array [keys, values]; its crc stands in the footer
    footer = MessagePack map {blocks: [[first key, offset, length, crc, entries], ...], last_key, raw_bytes, groups: [least, greatest],
             filter}; its key groups are the first two bytes of the first and last key
    filter = fingerprint u16 of each key, in order within each block

A fingerprint is the low 16 bits of a key's xxh3_64. So few keys are in a block that hardly any other key has one of their fingerprints;
and unlike a Bloom filter's, all of a block's bits are found by built-in functions alone.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import accumulate, chain, islice, pairwise
from operator import lt
from typing import TypeVar

import google_crc32c
import msgspec
import zstandard
from xxhash import xxh3_64_intdigest

from statestore.errors import CorruptionError, UsageError
from statestore.io import Storage

MAGIC = b"SSTSEG\x00\x02"
END_MAGIC = b"SSTSEGND"
BLOCK_BYTES = 64 << 10
BLOCK_ENTRIES_MAX = 1024
"""So that a look-up of a key that is not there reads a block once in 64 times at most."""
BLOCK_RAW_MAX_BYTES = 320 << 20
ENTRY_OVERHEAD_BYTES = 6
PIECE_ENTRIES_MIN, PIECE_ENTRIES_MAX = 4, 256
PIECE_BYTES = 256 << 10

_tail = struct.Struct("<II8s")
_block_type = tuple[list[bytes], list[bytes | None]]
_pack = msgspec.msgpack.Encoder().encode
_unpack_block = msgspec.msgpack.Decoder(_block_type).decode

Block = tuple[list[bytes], list[bytes | None]]

V = TypeVar("V", bound=bytes | None)


class _Footer(msgspec.Struct):
    blocks: list[tuple[bytes, int, int, int, int]]
    last_key: bytes
    raw_bytes: int
    groups: tuple[int, int]
    filter: bytes


_unpack_footer = msgspec.msgpack.Decoder(_Footer).decode


def _fingerprint(key: bytes) -> int:
    return xxh3_64_intdigest(key) & 0xFFFF


def _stored(fingerprints: array[int]) -> array[int]:
    """Fingerprints as they stand in a file, or the other way round."""
    if sys.byteorder == "big":
        fingerprints.byteswap()
    return fingerprints


def _raw_size(keys: Sequence[bytes], values: Sequence[bytes | None]) -> int:
    return sum(map(len, keys)) + sum(map(len, filter(None, values))) + ENTRY_OVERHEAD_BYTES * len(keys)


class SegmentWriter:
    """Builds a segment in memory from entries in ascending key order."""

    def __init__(self, *, block_bytes: int = BLOCK_BYTES, level: int = 1):
        self._block_bytes = block_bytes
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._parts: list[bytes] = [MAGIC]
        self._size = len(MAGIC)
        self._keys: list[bytes] = []
        self._values: list[bytes | None] = []
        self._pending_bytes = 0
        self._block_entries = 0  # about how many fill a block
        self._index: list[tuple[bytes, int, int, int, int]] = []
        self._filter = array("H")
        self.first_key = self.last_key = b""
        self._raw_bytes = 0
        self.entries = 0
        """Number of entries added."""

    @property
    def size_bytes(self) -> int:
        """About how large the file is so far."""
        return self._size + self._pending_bytes

    def add(self, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Append entries, whose keys ascend; None marks a key as deleted.

        Raises
        ------
        UsageError
            An entry is larger than a block may be.
        """
        if not entries:
            return
        keys, values = zip(*entries, strict=True)
        assert not self.entries or keys[0] > self.last_key, "keys must ascend"
        assert all(map(lt, keys, islice(keys, 1, None))), "keys must ascend"
        if not self.entries:
            self.first_key = keys[0]
        size = _raw_size(keys, values)
        self._keys += keys
        self._values += values
        self._pending_bytes += size
        self._raw_bytes += size
        self.entries += len(keys)
        self.last_key = keys[-1]
        while self._pending_bytes > self._block_bytes or len(self._keys) > BLOCK_ENTRIES_MAX:
            self._end_block()

    def _end_block(self) -> None:
        """Write a block of those that wait: as many as fill one, if they are like those of the block before."""
        count = self._block_entries or len(self._keys) * self._block_bytes // self._pending_bytes or 1
        keys, values = self._keys[:count], self._values[:count]
        while (size := _raw_size(keys, values)) > 2 * self._block_bytes and len(keys) > 1:
            keys, values = keys[: len(keys) // 2], values[: len(values) // 2]
        if size > BLOCK_RAW_MAX_BYTES:
            raise UsageError(f"an entry of {size} bytes is over the limit of {BLOCK_RAW_MAX_BYTES} bytes")
        del self._keys[: len(keys)], self._values[: len(keys)]
        self._pending_bytes -= size
        self._block_entries = min(len(keys) * self._block_bytes // size or 1, BLOCK_ENTRIES_MAX)
        self._write_block(keys, values)

    def _write_block(self, keys: list[bytes], values: list[bytes | None]) -> None:
        data = self._compressor.compress(_pack((keys, values)))
        self._index.append((keys[0], self._size, len(data), google_crc32c.value(data), len(keys)))
        self._filter.extend(sorted(map(_fingerprint, keys)))
        self._parts.append(data)
        self._size += len(data)

    def finish(self) -> bytes:
        """The whole file. The writer is used up."""
        while self._keys:
            self._end_block()
        groups = (int.from_bytes(self.first_key[:2], "big"), int.from_bytes(self.last_key[:2], "big"))
        fingerprints = _stored(self._filter).tobytes()
        footer = _pack(_Footer(self._index, self.last_key, self._raw_bytes, groups, fingerprints))
        self._parts += [footer, _tail.pack(len(footer), google_crc32c.value(footer), END_MAGIC)]
        return b"".join(self._parts)


def in_pieces(entries: Iterable[tuple[bytes, V]]) -> Iterator[list[tuple[bytes, V]]]:
    """Entries in lists that are worth a call each, and take little memory where values are large."""
    waiting, count = iter(entries), PIECE_ENTRIES_MIN
    while piece := list(islice(waiting, count)):
        value = piece[-1][1]
        fitting = PIECE_BYTES // (1 if value is None else 1 + len(value))
        count = max(PIECE_ENTRIES_MIN, min(fitting, PIECE_ENTRIES_MAX))
        yield piece


class BlockCache:
    """Decoded blocks of several segments, least recently used out first. Thread-safe."""

    def __init__(self, capacity_bytes: int):
        self._capacity_bytes = capacity_bytes
        self._blocks: OrderedDict[tuple[str, int], tuple[Block, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, name: str, index: int) -> Block | None:
        """The block, if it is held."""
        with self._lock:
            found = self._blocks.get((name, index))
            if found is None:
                return None
            self._blocks.move_to_end((name, index))
            return found[0]

    def put(self, name: str, index: int, block: Block, size: int) -> None:
        """Hold the block, which takes about `size` bytes."""
        with self._lock:
            if (name, index) in self._blocks:
                return
            self._blocks[name, index] = (block, size)
            self._size += size
            while self._size > self._capacity_bytes and len(self._blocks) > 1:
                self._size -= self._blocks.popitem(last=False)[1][1]


class SegmentReader:
    """Reads a segment from a storage. Thread-safe.

    Raises
    ------
    CorruptionError
        From the constructor or any read: the bytes needed are missing or do not match their checksum.
    """

    def __init__(self, storage: Storage, name: str, *, size: int | None = None, cache: BlockCache | None = None):
        self._storage, self.name, self._cache = storage, name, cache
        self._file = f"{storage.url}/{name}"
        self.size_bytes = self._actual_size() if size is None else size
        footer = self._read_footer()
        self._blocks = footer.blocks
        self._first_keys = [block[0] for block in footer.blocks]
        self._ends = list(accumulate(block[4] for block in footer.blocks))
        self._filter = _stored(array("H", footer.filter))
        self.entries, self.raw_bytes, self.key_groups = len(self._filter), footer.raw_bytes, footer.groups
        self.first_key = self._first_keys[0] if self._first_keys else b""
        self.last_key = footer.last_key

    def _actual_size(self) -> int:
        try:
            return self._storage.size(self.name)
        except FileNotFoundError:
            raise CorruptionError(self._file, "the file is missing") from None

    def _read(self, offset: int, length: int) -> bytes:
        try:
            data = self._storage.read(self.name, offset, length)
        except FileNotFoundError:
            raise CorruptionError(self._file, "the file is missing") from None
        if len(data) != length:
            raise CorruptionError(self._file, f"the file ends at byte {offset + len(data)}", offset=offset)
        return data

    def _read_footer(self) -> _Footer:
        if self.size_bytes < len(MAGIC) + _tail.size:
            raise CorruptionError(self._file, f"{self.size_bytes} bytes are too few for a segment", offset=0)
        if self._read(0, len(MAGIC)) != MAGIC:
            raise CorruptionError(self._file, "not a segment of a version known here", offset=0)
        tail_offset = self.size_bytes - _tail.size
        length, crc, magic = _tail.unpack(self._read(tail_offset, _tail.size))
        if magic != END_MAGIC or length > tail_offset - len(MAGIC):
            raise CorruptionError(self._file, "the file does not end like a segment", offset=tail_offset)
        footer = self._read(tail_offset - length, length)
        if google_crc32c.value(footer) != crc:
            raise CorruptionError(self._file, "the footer does not match its checksum", offset=tail_offset - length)
        try:
            found = _unpack_footer(footer)
            if 2 * sum(block[4] for block in found.blocks) != len(found.filter):
                raise ValueError("its filter is of another size")
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(
                self._file, f"the footer can't be read: {error}", offset=tail_offset - length
            ) from error
        return found

    def _block(self, index: int, *, keep: bool = True) -> Block:
        cached = self._cache.get(self.name, index) if self._cache else None
        if cached is not None:
            return cached
        _, offset, length, crc, _ = self._blocks[index]
        data = self._read(offset, length)
        if google_crc32c.value(data) != crc:
            raise CorruptionError(self._file, "a block does not match its checksum", offset=offset)
        try:
            declared = zstandard.frame_content_size(data)
            if not 0 < declared <= BLOCK_RAW_MAX_BYTES + 64:
                raise CorruptionError(self._file, f"a block declares {declared} bytes of content", offset=offset)
            block: Block = _unpack_block(zstandard.ZstdDecompressor().decompress(data, max_output_size=declared))
        except (zstandard.ZstdError, msgspec.MsgspecError) as error:
            raise CorruptionError(self._file, f"a block can't be read: {error}", offset=offset) from error
        if self._cache is not None and keep:
            self._cache.put(self.name, index, block, declared + 100 * len(block[0]))
        return block

    def flaws(self) -> Iterator[tuple[CorruptionError, range]]:
        """Read every block, and yield what is wrong with each, with the key groups that it holds by the index."""
        position, last, is_sound = len(MAGIC), b"", True
        for index, (first, offset, length, _, _) in enumerate(self._blocks):
            after = self._first_keys[index + 1] if index + 1 < len(self._blocks) else self.last_key
            groups = range(int.from_bytes(first[:2], "big"), int.from_bytes(after[:2], "big") + 1)
            try:
                if offset != position:
                    raise CorruptionError(self._file, f"a block begins where byte {position} is due", offset=offset)
                keys, values = self._block(index, keep=False)
                self._check_block(index, last, keys, values)
                last = keys[-1]
            except CorruptionError as error:
                yield error, groups
                last, is_sound = first, False
            position = offset + length
        if is_sound and last != self.last_key:
            problem = f"it ends with key {last.hex()}, its footer says {self.last_key.hex()}"
            yield CorruptionError(self._file, problem), range(self.key_groups[0], self.key_groups[1] + 1)

    def _check_block(self, index: int, last: bytes, keys: list[bytes], values: list[bytes | None]) -> None:
        first, offset, _, _, count = self._blocks[index]
        if not keys or not len(keys) == len(values) == count:
            problem = f"a block has {len(keys)} keys and {len(values)} values, the footer says {count}"
            raise CorruptionError(self._file, problem, offset=offset)
        if keys[0] != first or first <= last or any(a >= b for a, b in pairwise(keys)):
            raise CorruptionError(self._file, "the keys of a block are out of order", offset=offset)
        if list(self._fingerprints(index)) != sorted(map(_fingerprint, keys)):
            raise CorruptionError(self._file, "the filter does not fit the keys of a block", offset=offset)

    def _fingerprints(self, index: int) -> array[int]:
        end = self._ends[index]
        return self._filter[end - self._blocks[index][4] : end]

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Those of `keys` that the segment knows: their values, None for deleted ones."""
        found: dict[bytes, bytes | None] = {}
        for index, candidates in self._blocks_with(keys).items():
            block_keys, values = self._block(index)
            for key in candidates:
                position = bisect_left(block_keys, key)
                if position < len(block_keys) and block_keys[position] == key:
                    found[key] = values[position]
        return found

    def _blocks_with(self, keys: Iterable[bytes]) -> dict[int, list[bytes]]:
        """Which of `keys` may be in which block."""
        wanted: dict[int, list[bytes]] = {}
        first_keys, ends, fingerprints = self._first_keys, self._ends, self._filter
        first, last = self.first_key, self.last_key
        for key in keys:
            if first <= key <= last:
                index = bisect_right(first_keys, key) - 1
                end, fingerprint = ends[index], xxh3_64_intdigest(key) & 0xFFFF
                position = bisect_left(fingerprints, fingerprint, ends[index - 1] if index else 0, end)
                if position < end and fingerprints[position] == fingerprint:
                    wanted.setdefault(index, []).append(key)
        return wanted

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes | None]]:
        """Entries with start <= key < stop (None: to the end), ascending, deleted ones included."""
        return chain.from_iterable(self._scan_blocks(start, stop))  # an entry passes no line of ours

    def _scan_blocks(self, start: bytes, stop: bytes | None) -> Iterator[Iterator[tuple[bytes, bytes | None]]]:
        index = max(0, bisect_right(self._first_keys, start) - 1)
        while index < len(self._blocks) and (stop is None or self._first_keys[index] < stop):
            keys, values = self._block(index, keep=self._is_edge(index, start, stop))
            first = bisect_left(keys, start)
            last = len(keys) if stop is None else bisect_left(keys, stop)
            yield zip(keys[first:last], values[first:last], strict=True)
            index += 1

    def _is_edge(self, index: int, start: bytes, stop: bytes | None) -> bool:
        """Whether a scan enters or leaves with this block: a scan of what is before or behind needs it again."""
        is_last = index + 1 == len(self._blocks) or (stop is not None and self._first_keys[index + 1] >= stop)
        return self._first_keys[index] < start or (is_last and stop is not None)


def merged(scans: Sequence[Iterator[tuple[bytes, V]]]) -> Iterator[tuple[bytes, V]]:
    """Entries of several scans in key order; of equal keys the one from the first scan."""
    # The last scan is as a rule by far the longest (the oldest layer of a state), and its entries pass one step only.
    return reduce(_over, scans) if scans else iter(())


def _over(newer: Iterator[tuple[bytes, V]], older: Iterator[tuple[bytes, V]]) -> Iterator[tuple[bytes, V]]:
    waiting = next(newer, None)
    if waiting is None:
        yield from older
        return
    for entry in older:
        key = entry[0]
        while waiting is not None and waiting[0] < key:
            yield waiting
            waiting = next(newer, None)
        if waiting is None:
            yield entry
            yield from older
            return
        if waiting[0] == key:
            yield waiting
            waiting = next(newer, None)
        else:
            yield entry
    if waiting is not None:
        yield waiting
        yield from newer
