"""What a measured function returns, and how a run of operations is timed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

BATCH = 1000
COLLECTION_SIZE = 10
"""Elements of a list, entries of a map."""
VALUE_BYTES = 100
COLD_OPERATIONS = 3_000
"""One at a time, on state that is not in a cache."""

Timed = tuple[int, float]
"""Operations, and the seconds they took."""


def timed(count: int, work: Callable[[], object]) -> Timed:
    """`count` operations done by `work`."""
    begun = time.perf_counter()
    work()
    return count, time.perf_counter() - begun


def for_each(keys: Sequence[str], operation: Callable[[str], object]) -> Timed:
    """One operation for each key."""

    def work() -> None:
        for key in keys:
            operation(key)

    return timed(len(keys), work)


def batches(items: Sequence[Any], size: int = BATCH) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def key(number: int) -> str:
    return f"key-{number:010}"


def value(seed: int) -> bytes:
    return random.Random(seed).randbytes(VALUE_BYTES)


class Keys:
    """Keys in an order in which no cache helps, the same ones for every system."""

    def __init__(self, count: int):
        self.all = [key(number) for number in range(count)]
        self._randomness = random.Random(1)
        self._randomness.shuffle(self.all)

    def collections(self) -> list[str]:
        """Those that have a list or a map: a tenth, so that there are as many elements as values."""
        return self.all[: max(1, len(self.all) // COLLECTION_SIZE)]

    def sample(self, keys: list[str], count: int) -> list[str]:
        """Other ones at each call, as far as there are enough."""
        return self._randomness.sample(keys, min(count, max(1, len(keys) // 3)))
