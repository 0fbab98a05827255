"""Committed epochs on their way to the backend.

Invariants:
- a batch moves from `waiting` (its epoch may yet be rolled back) to `ready` (its epoch is complete) to `applying` (with all that was
  ready merged into one, the last value wins), and disappears when the backend has it;
- a look-up goes from the newest to the oldest of these, and only then to the backend, so a reader never sees half of an `apply`;
- nothing is merged where processing stands still, in `add` and `complete`.

The main thread adds, completes and looks up; one background thread takes and finishes. Each moves whole batches under a lock. A batch is
merged into an older one while both can be seen: whoever looks finds the same in either.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import filterfalse
from typing import Any

from statestore.keys import split_entry
from statestore.types import Epoch
from statestore.wal.record import Columns

ENTRY_OVERHEAD_BYTES = 200
LAYERS_MAX = 3
"""More batches than this are not looked up one by one."""

EncodeKeys = Callable[[list[Any]], list[bytes]]
"""From keys of a state to their entry keys."""


class EpochBatch:
    """Encoded entries of an epoch or of several; `None` deletes."""

    __slots__ = ("_columns", "_entries", "_later", "_lock", "collections", "epoch", "value_bytes")

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes | None] = {}
        self._later: list[tuple[list[Any], EncodeKeys, Sequence[bytes | None]]] = []
        self._columns: list[Columns] = []  # what was to be encoded later, and is encoded, but not in `_entries` yet
        self._lock = threading.Lock()
        self.collections: dict[bytes, set[bytes]] = {}
        """Entry keys by the prefix of the map they belong to, so that a map can be read without searching the whole batch."""
        self.value_bytes = 0
        """Of the encoded values, as far as those who put them have added them up."""
        self.epoch = Epoch(0)

    @property
    def memory_bytes(self) -> int:
        """About how much it takes."""
        return self.value_bytes + ENTRY_OVERHEAD_BYTES * self.count

    @property
    def count(self) -> int:
        """Number of entries, or a little more."""
        later = sum(len(keys) for keys, _, _ in self._later) + sum(len(keys) for keys, _ in self._columns)
        return len(self._entries) + later

    @property
    def entries(self) -> dict[bytes, bytes | None]:
        """Values by entry key. Any thread may be the first to ask for them. Raises what `put_later` was told to encode keys with."""
        if self._later or self._columns:
            with self._lock:
                self._encode_later()
                for keys, values in self._columns:
                    self._entries.update(zip(keys, values, strict=True))
                self._columns = []  # only now: whoever finds nothing left here finds all of it there
        return self._entries

    def columns(self) -> Columns:
        """What `entries` has, for less: nothing can be looked up in it."""
        with self._lock:
            self._encode_later()
            keys, values = list(self._entries), list(self._entries.values())
            for more_keys, more_values in self._columns:
                keys += more_keys
                values += more_values
        return Columns(keys, values)

    def _encode_later(self) -> None:
        columns = [Columns(encode(keys), values) for keys, encode, values in self._later]
        self._columns, self._later = [*self._columns, *columns], []

    def put(self, entry_key: bytes, value: bytes | None) -> None:
        """Set one entry."""
        self._entries[entry_key] = value

    def put_later(self, keys: list[Any], encode: EncodeKeys, values: Sequence[bytes | None]) -> None:
        """Set several entries, under which nothing is put after this. Keys can't change, so they are encoded when somebody needs them."""
        self._later.append((keys, encode, values))

    def put_collection(self, prefix: bytes, entry_key: bytes, value: bytes | None) -> None:
        """Set one entry of the map with this prefix."""
        self._entries[entry_key] = value
        self.collections.setdefault(prefix, set()).add(entry_key)

    def put_collection_many(self, prefix: bytes, entries: dict[bytes, bytes | None]) -> None:
        """Set several entries of the map with this prefix."""
        self._entries.update(entries)
        self.collections.setdefault(prefix, set()).update(entries)

    def put_entry(self, entry_key: bytes, value: bytes | None) -> None:
        """Set one entry of whatever state."""
        _, _, _, sub_key = split_entry(entry_key)
        if sub_key[:1] == b"\0":
            self.put_collection(entry_key[: len(entry_key) - len(sub_key) + 1], entry_key, value)
        else:
            self.put(entry_key, value)

    def merge(self, later: EpochBatch) -> None:
        """Take in the batch of a later epoch."""
        self.entries.update(zip(*later.columns(), strict=True))
        for prefix, entry_keys in later.collections.items():
            self.collections.setdefault(prefix, set()).update(entry_keys)
        self.value_bytes += later.value_bytes
        self.epoch = later.epoch


class Pending:
    """The batches between the log and the backend."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.draft: EpochBatch | None = None
        """What is encoded of the epoch that is not committed yet: the newest layer of all."""
        self._waiting: deque[EpochBatch] = deque()
        self._ready: list[EpochBatch] = []
        self._ready_bytes = 0
        self._applying: list[EpochBatch] = []

    @property
    def ready_bytes(self) -> int:
        """Estimated memory of what could be applied now."""
        return self._ready_bytes

    def add(self, batch: EpochBatch) -> None:
        """Take over the batch of an epoch; if that was the draft, there is none any more."""
        self.draft = None
        self._waiting.append(batch)

    def complete(self, epoch: Epoch) -> None:
        """The epochs up to `epoch` can't be rolled back any more."""
        with self._lock:
            while self._waiting and self._waiting[0].epoch <= epoch:
                batch = self._waiting.popleft()
                self._ready_bytes += batch.memory_bytes
                self._ready.append(batch)

    def take(self) -> EpochBatch | None:
        """Start applying all that is ready; None when nothing is. What failed before is given again first."""
        with self._lock:
            if not self._applying:
                self._applying, self._ready, self._ready_bytes = self._ready, [], 0
        merged = _merged(self._applying)
        with self._lock:
            self._applying = merged
        return merged[0] if merged else None

    def finish(self) -> None:
        """The backend has what was taken."""
        with self._lock:
            self._applying = []

    def _layers(self) -> list[EpochBatch]:
        """What waits, the newest first."""
        with self._lock:
            if len(self._ready) > LAYERS_MAX:
                self._ready = _merged(self._ready)
            committed = [*reversed(self._waiting), *reversed(self._ready), *reversed(self._applying)]
        return committed if self.draft is None else [self.draft, *committed]

    def find(self, entry_keys: list[bytes]) -> dict[bytes, bytes | None]:
        """Those of `entry_keys` that wait, with their values; None deletes."""
        found: dict[bytes, bytes | None] = {}
        for layer in self._layers():
            entries = layer.entries
            here = list(filter(entries.__contains__, entry_keys))
            if here:
                found.update(zip(here, map(entries.__getitem__, here), strict=True))
                entry_keys = list(filterfalse(entries.__contains__, entry_keys))
        return found

    def everything(self) -> dict[bytes, bytes | None]:
        """All that waits; None deletes."""
        merged: dict[bytes, bytes | None] = {}
        for layer in reversed(self._layers()):
            merged.update(layer.entries)
        return merged

    def collection(self, prefix: bytes) -> dict[bytes, bytes | None]:
        """Entries of the map with this prefix."""
        merged: dict[bytes, bytes | None] = {}
        for layer in reversed(self._layers()):
            entry_keys = tuple(layer.collections.get(prefix, ()))  # more may be merged into it meanwhile
            merged.update({key: layer.entries[key] for key in entry_keys})
        return merged


def _merged(batches: list[EpochBatch]) -> list[EpochBatch]:
    """The first of some batches, which are in the order of their epochs, with all that the others hold."""
    for batch in batches[1:]:
        batches[0].merge(batch)
    return batches[:1]
