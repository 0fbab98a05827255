"""The write-ahead log alone: epochs appended and synced."""

from __future__ import annotations

import random

from benchmarks.timing import VALUE_BYTES, key, timed
from statestore.clock import SystemClock
from statestore.io import LocalStorage
from statestore.ttl import Times
from statestore.types import Attempt, Epoch
from statestore.wal.log import Log
from statestore.wal.record import Columns, CommitRecord, StateDescriptor

WORDS = [b"departure", b"arrival", b"delayed", b"on time", b"cancelled", b"gate", b"runway", b"weather", b"crew"]


def text(randomness: random.Random) -> bytes:
    """Words and numbers, which compress about as well as records do."""
    parts = []
    size = 0
    while size < VALUE_BYTES:
        part = randomness.choice(WORDS) if randomness.random() < 0.7 else str(randomness.randrange(10**6)).encode()
        parts.append(part)
        size += len(part) + 1
    return b" ".join(parts)[:VALUE_BYTES]


def appended(folder: str, content: str, entries: int, per_sync: int) -> dict[str, object]:
    """Entries logged in epochs, with their bytes as they are and as they are written."""
    randomness = random.Random(5)
    make = text if content == "text" else (lambda randomness: randomness.randbytes(VALUE_BYTES))
    batch = {key(number).encode(): make(randomness) for number in range(per_sync)}
    times = max(1, entries // per_sync)
    log = Log(LocalStorage(folder), "bench", 128, SystemClock())
    log.recover()
    log.begin(attempt=Attempt(1), epoch=Epoch(0), sequence=1, previous="")
    written = 0

    def work() -> None:
        nonlocal written
        for number in range(times):
            states: list[StateDescriptor] | None = [] if log.needs_states else None
            written += log.append(Columns.of(batch), Epoch(number + 1), CommitRecord({}, Times(), states))

    _, seconds = timed(times, work)
    log.close()
    entry_bytes = len(key(0)) + VALUE_BYTES
    return {"bytes": times * per_sync * entry_bytes, "seconds": seconds, "written": written}
