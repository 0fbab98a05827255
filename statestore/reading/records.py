"""Records: what is stored under one key of one state, put together from its entries.

Keys come in an order of their own (by key group, then by the length and the bytes of their encoding); timers by key group and time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from statestore.collection_state import CHUNK_ELEMENTS, split_chunk
from statestore.envelope import open_envelope
from statestore.errors import CorruptionError
from statestore.keys import KeyCodec, read_varint
from statestore.reading.values import ValueReader
from statestore.state import ABSENT
from statestore.timers import split_timer
from statestore.ttl import Expiry
from statestore.wal.record import StateDescriptor

Entry = tuple[bytes, bytes]


class Record(NamedTuple):
    """All entries of one key; of timers, one."""

    order: bytes
    """Records of a key group ascend by it, whatever number the state has."""
    key: bytes
    entries: list[Entry]
    """Sub-keys and stored values."""


def records_of(entries: Iterable[Entry]) -> Iterator[Record]:
    """Records of entries of one state, in their order."""
    record: Record | None = None
    for entry_key, stored in entries:
        length, offset = read_varint(entry_key, 4)
        key, sub_key = entry_key[offset : offset + length], entry_key[offset + length :]
        if record is None or record.key != key:
            if record is not None:
                yield record
            record = Record(entry_key[4 : offset + length], key, [])
        record.entries.append((sub_key, stored))
    if record is not None:
        yield record


class RecordReader(ABC):
    """What the records of one kind of state mean."""

    def __init__(self, state: StateDescriptor, values: ValueReader, expiry: Expiry | None):
        self._name, self._values, self._expiry = state.name, values, expiry
        self._may_lack_chunks = state.ttl is not None

    @property
    def expires(self) -> bool:
        """Whether anything may be expired."""
        return self._expiry is not None

    def records(self, entries: Iterable[Entry]) -> Iterator[Record]:
        """Records of the state's entries in a key group."""
        return records_of(entries)

    @abstractmethod
    def value(self, record: Record) -> Any:
        """What a program's handle would give for the key; ABSENT when all has expired. Raises StateMigrationError or CorruptionError."""

    @abstractmethod
    def is_live(self, record: Record) -> bool:
        """Whether anything has not expired."""

    def _is_expired(self, stored: bytes) -> bool:
        return self._expiry is not None and self._expiry.is_expired(stored)


class SingleReader(RecordReader):
    """Of value, reducing and aggregating state: one entry a key."""

    def records(self, entries: Iterable[Entry]) -> Iterator[Record]:
        """A record for each entry."""
        for entry_key, stored in entries:
            yield Record(entry_key[4:], entry_key[read_varint(entry_key, 4)[1] :], [(b"", stored)])

    def value(self, record: Record) -> Any:
        """The value, or the accumulator."""
        ((_, stored),) = record.entries
        return ABSENT if self._is_expired(stored) else self._values.one(stored)

    def is_live(self, record: Record) -> bool:
        """Whether the value has not expired."""
        return not self._is_expired(record.entries[0][1])


class ListReader(RecordReader):
    """Of list state: a head, and chunks."""

    def is_live(self, record: Record) -> bool:
        """Whether the newest element has not expired, whose time is the head's."""
        return not self._is_expired(record.entries[0][1])

    def value(self, record: Record) -> Any:
        """The list of what has not expired."""
        if not self.is_live(record):
            return ABSENT
        self._check_chunks(record)
        items: list[Any] = []
        for _, stored in record.entries[1:]:
            items += self._live(stored)
        return items

    def _live(self, stored: bytes) -> list[Any]:
        ages, version, payload = split_chunk(stored, self._name)
        elements, expiry = self._values.many(version, payload), self._expiry
        if expiry is None:
            return elements
        times, now = expiry.touched_each(stored, ages, len(elements)), expiry.now()
        return [
            element for element, touched in zip(elements, times, strict=True) if not expiry.has_passed(touched, now)
        ]

    def _check_chunks(self, record: Record) -> None:
        (sub_key, head), *chunks = record.entries
        try:
            length = _unpack_length(open_envelope(head, self._name)[1])
        except msgspec.MsgspecError:
            length = -1
        count = -(-length // CHUNK_ELEMENTS)
        first = count - len(chunks)
        numbers = [int.from_bytes(chunk, "big") for chunk, _ in chunks]
        if sub_key or length < 1 or numbers != list(range(first, count)) or (first and not self._may_lack_chunks):
            raise CorruptionError(f"state '{self._name}'", f"chunks of the list of key {record.key!r} are missing")


class MapReader(RecordReader):
    """Of map state: an entry for each map key."""

    def __init__(self, state: StateDescriptor, values: ValueReader, expiry: Expiry | None, map_keys: KeyCodec):
        super().__init__(state, values, expiry)
        self._map_keys = map_keys

    def is_live(self, record: Record) -> bool:
        """Whether any entry has not expired."""
        return not all(self._is_expired(stored) for _, stored in record.entries)

    def value(self, record: Record) -> Any:
        """The dict of what has not expired."""
        decode, value_of = self._map_keys.decode, self._values.one
        entries = {
            decode(sub_key[1:]): value_of(stored) for sub_key, stored in record.entries if not self._is_expired(stored)
        }
        return entries or ABSENT


class TimerReader(RecordReader):
    """Of timers: each entry is one."""

    def records(self, entries: Iterable[Entry]) -> Iterator[Record]:
        """A record for each timer."""
        for entry_key, stored in entries:
            timer = entry_key[_BEFORE_TIMER:]
            yield Record(timer, split_timer(timer)[1], [(timer, stored)])

    def is_live(self, record: Record) -> bool:
        """Always: timers don't expire."""
        return True

    def value(self, record: Record) -> Any:
        """The time, in seconds."""
        return split_timer(record.entries[0][0])[0] / 1000


_BEFORE_TIMER = 6  # key group, state id, no key, 00
_unpack_length = msgspec.msgpack.Decoder(int).decode
