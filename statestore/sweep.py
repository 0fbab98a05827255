"""Removes what has expired and is not asked for any more.

A background thread looks through a bounded piece of the backend at a time, going round and round; what it finds expired is removed by the
next commit, as any other change, unless it was written again meanwhile. Each commit pays for twice as many looks as it has
entries, so what is expired never outgrows what is alive.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from statestore.backend import Backend
from statestore.clock import Clock
from statestore.keys import group_start, prefix_end
from statestore.ttl import Expiry

LOOKS_AT_LEAST = 1000
LOOKS_PER_ENTRY = 2
WAIT_SECONDS = 10.0
"""After which it is time to look, however few entries there were."""
RANGES_AT_MOST = 16
"""Of (key group, state), in one go: each may cost the backend a request."""


class Sweep:
    """Where the looking stands, and what it has found. `look` and `applied` belong to the thread that applies, the rest to the store's."""

    def __init__(self, backend: Backend, key_groups: range, clock: Clock):
        self._backend, self._key_groups, self._clock = backend, key_groups, clock
        self._looked_seconds = clock.monotonic()
        self._expiries: dict[int, Expiry] = {}
        self._range = 0
        self._start: bytes | None = None  # within the range, behind what was looked at
        self._owed = 0
        self._lock = threading.Lock()
        self._found: dict[bytes, int] = {}

    def watch(self, state_id: int, expiry: Expiry) -> None:
        """Sweep a state."""
        self._expiries[state_id] = expiry

    def is_expired(self, entry_key: bytes, stored: bytes) -> bool:
        """Whether an entry is of a state that is swept, and expired."""
        expiry = self._expiries.get(int.from_bytes(entry_key[2:4], "big"))
        return expiry is not None and expiry.is_expired(stored)

    def without_expired(self, entries: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """Those entries that are not expired; as they come when no state is swept."""
        return (entry for entry in entries if not self.is_expired(*entry)) if self._expiries else entries

    def owe(self, entries: int) -> None:
        """Count the entries of a commit."""
        self._owed += entries

    def is_due(self) -> bool:
        """Whether it is time to look."""
        return bool(self._expiries) and (self._owed * LOOKS_PER_ENTRY >= LOOKS_AT_LEAST or self.has_waited())

    def has_waited(self) -> bool:
        """Whether nobody has looked for a while."""
        return self._clock.monotonic() >= self._looked_seconds + WAIT_SECONDS

    def look(self) -> None:
        """Look at as many entries as are owed, at least `LOOKS_AT_LEAST`."""
        looks, self._owed = max(LOOKS_AT_LEAST, self._owed * LOOKS_PER_ENTRY), 0
        self._looked_seconds = self._clock.monotonic()
        states = sorted(self._expiries)
        ranges = len(states) * len(self._key_groups)
        for _ in range(min(RANGES_AT_MOST, ranges)):
            position, index = divmod(self._range % ranges, len(states))
            group = self._key_groups[position]
            looks -= self._look_at(group_start(group) + states[index].to_bytes(2, "big"), looks)
            if looks <= 0:
                return
            self._range, self._start = self._range + 1, None

    def _look_at(self, prefix: bytes, looks: int) -> int:
        found, count = {}, 0
        for key, stored in self._backend.scan(self._start or prefix, prefix_end(prefix)):
            count += 1
            if self.is_expired(key, stored):
                found[key] = len(key) + len(stored)
            if count >= looks:
                self._start = key + b"\0"
                break
        with self._lock:
            self._found.update(found)
        return count

    def applied(self, entry_keys: Iterable[bytes]) -> None:
        """These entries are not any more what was found."""
        with self._lock:
            if self._found:
                for key in entry_keys:
                    self._found.pop(key, None)

    def take(self) -> Iterator[tuple[bytes, int]]:
        """Entry keys and sizes of what was found, once."""
        with self._lock:
            found, self._found = self._found, {}
        return iter(found.items())
