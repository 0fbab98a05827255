"""Memory backend: a dictionary. Also the specification of what the others do, read together with `statestore.backend`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from statestore.backend import Backend, BackendContext, Batch
from statestore.config import Section, parse_options
from statestore.errors import ClosedError
from statestore.keys import group_of_entry
from statestore.types import Epoch

KEYS_PER_LOOK = 1000
"""So many values are looked up at a time when all are read."""


class MemoryOptions(Section, frozen=True, kw_only=True):
    """`[state.memory]`: nothing to set."""


class MemoryBackend(Backend):
    """Keeps everything in this process's memory; recovery comes from checkpoints alone."""

    durable = False

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes] = {}
        self._version = 0  # counts the times that keys came or went
        self._sorted: tuple[int, list[bytes]] = (0, [])  # keys in order, as of a version
        self._epoch = Epoch(0)
        self._closed = False

    @classmethod
    def open(cls, context: BackendContext) -> MemoryBackend:
        """Open an empty backend."""
        parse_options(MemoryOptions, context.options, "state.memory")
        return cls()

    @classmethod
    def options_from_url(cls, url: str) -> dict[str, Any]:
        """`memory://` has no options."""
        return {}

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look each key up."""
        self._check_open()
        return list(map(self._entries.get, keys))

    def apply(self, batch: Batch, epoch: Epoch) -> None:
        """Set and delete, then move the marker; no reader can tell the order, since the engine looks here last."""
        self._check_open()
        before, deleted = len(self._entries), [key for key, value in batch.items() if value is None]
        gone = [key for key in deleted if self._entries.pop(key, None) is not None]
        written = {key: value for key, value in batch.items() if value is not None} if deleted else batch
        self._entries.update(written)  # type: ignore[arg-type]  # nothing is deleted in it
        if gone or len(self._entries) != before:
            self._version += 1
        self._epoch = epoch

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Walk the keys as they are now; an entry removed meanwhile is left out."""
        self._check_open()
        version, keys = self._sorted
        if version != self._version:
            version = self._version
            keys = sorted(self._entries)
            self._sorted = version, keys
        first, end = bisect_left(keys, start), len(keys) if stop is None else bisect_left(keys, stop)
        for position in range(first, end, KEYS_PER_LOOK):
            some = keys[position : min(position + KEYS_PER_LOOK, end)]
            values = list(map(self._entries.get, some))
            if None in values:
                yield from ((key, value) for key, value in zip(some, values, strict=True) if value is not None)
            else:
                yield from zip(some, values, strict=True)

    def bulk_load(self, entries: Iterator[tuple[bytes, bytes]]) -> None:
        """Take all in at once; what came in order need not be sorted."""
        self._check_open()
        self._entries.update(entries)
        self._version += 1
        self._sorted = self._version, list(self._entries)

    def applied_epoch(self) -> Epoch:
        """Return the marker."""
        self._check_open()
        return self._epoch

    def persist(self) -> Epoch:
        """Nothing survives, so there is nothing to do."""
        self._check_open()
        return self._epoch

    def clear(self, key_groups: range) -> None:
        """Forget the entries of the groups."""
        self._check_open()
        self._epoch = Epoch(0)
        self._entries = {key: value for key, value in self._entries.items() if group_of_entry(key) not in key_groups}
        self._version += 1

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._entries, self._sorted = {}, (self._version, [])

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the memory backend is closed")
