"""Reads what is committed: from what waits for the backend, then from the backend."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import filterfalse, islice

from statestore.backend import Backend
from statestore.keys import prefix_end
from statestore.pending import Pending


class Committed:
    """The committed entries of a store, as its handles see them."""

    def __init__(self, pending: Pending, backend: Backend):
        self._pending, self._backend = pending, backend

    def read_many(self, entry_keys: list[bytes]) -> list[bytes | None]:
        """Values of entries."""
        waiting = self._pending.find(entry_keys)
        if not waiting:
            return self._backend.get_many(entry_keys)
        missing = list(filterfalse(waiting.__contains__, entry_keys))
        if missing:
            waiting.update(zip(missing, self._backend.get_many(missing), strict=True))
        return list(map(waiting.__getitem__, entry_keys))

    def read_collection(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Entries whose key starts with `prefix`, ascending."""
        # What waits is looked up first: an apply that ends in between moves entries to where the scan sees them.
        changed = self._pending.collection(prefix)
        merged: dict[bytes, bytes | None] = dict(self._backend.scan(prefix, prefix_end(prefix)))
        merged.update(changed)
        return iter(sorted((key, value) for key, value in merged.items() if value is not None))

    def read_first(self, prefix: bytes, start: bytes, limit: int, changes: dict[bytes, bytes | None]) -> list[bytes]:
        """First keys from `start` on with this prefix, with `changes` on top of what is committed."""
        changed = {**self._pending.collection(prefix), **changes}
        added = sorted(key for key, value in changed.items() if value is not None and key >= start)
        stored = (key for key, _ in self._backend.scan(start, prefix_end(prefix)) if key not in changed)
        return list(islice(heapq.merge(stored, added), limit))
