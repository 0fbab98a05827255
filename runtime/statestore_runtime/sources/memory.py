"""Sources without files: a collection, and anything that can be iterated again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from statestore.errors import UsageError
from statestore_runtime.sources.base import Source, SourceContext

DEFAULT_BATCH_SIZE = 256
"""A batch, with all that is made of it, should stay in the processor's cache: more costs a fifth of the speed."""


def checked_batch_size(batch_size: int) -> int:
    """`batch_size` itself. Raises UsageError unless it is positive."""
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}, it must be at least 1")
    return batch_size


class CollectionSource(Source):
    """The elements of a sequence; the position is an index.

    Parameters
    ----------
    events
        Must hold the same elements when the job is restored.
    batch_size
        Events that are processed between two looks at the clock.
    """

    def __init__(self, events: Sequence[Any], *, batch_size: int = DEFAULT_BATCH_SIZE):
        if not isinstance(events, Sequence) or isinstance(events, str | bytes):
            raise UsageError(f"CollectionSource takes a list or tuple of events, not {type(events).__name__}")
        self._events, self._batch_size = events, checked_batch_size(batch_size)
        self._index = 0

    def open(self, position: Any | None, context: SourceContext) -> None:
        """Go to an index. Raises UsageError when the collection has become shorter than that."""
        self._index = position or 0
        if self._index > len(self._events):
            raise UsageError(
                f"the collection has {len(self._events)} events, the checkpoint was made after {self._index}: "
                "give the job the same events"
            )

    def next_batch(self) -> list[Any] | None:
        """Up to `batch_size` events."""
        begin = self._index
        if begin >= len(self._events):
            return None
        self._index = min(begin + self._batch_size, len(self._events))
        return list(self._events[begin : self._index])

    def position(self) -> int:
        """Index of the next event."""
        return self._index


class IterableSource(Source):
    """What a function's iterables yield, such as a generator; the position is a count, and restoring skips that many.

    Parameters
    ----------
    make
        Called at each opening; must give the same events each time, in the same order.
    batch_size
        Events that are processed between two looks at the clock.
    """

    def __init__(self, make: Callable[[], Iterable[Any]], *, batch_size: int = DEFAULT_BATCH_SIZE):
        if not callable(make):
            raise UsageError("IterableSource takes a function that returns an iterable, so that it can be read again")
        self._make, self._batch_size = make, checked_batch_size(batch_size)
        self._events: Iterator[Any] = iter(())
        self._count = 0

    def open(self, position: Any | None, context: SourceContext) -> None:
        """Begin again and skip what was read. Raises UsageError when there is less than that."""
        self._events, self._count = iter(self._make()), position or 0
        skipped = sum(1 for _ in itertools.islice(self._events, self._count))
        if skipped < self._count:
            raise UsageError(f"the source ended after {skipped} events, the checkpoint was made after {self._count}")

    def next_batch(self) -> list[Any] | None:
        """Up to `batch_size` events."""
        batch = list(itertools.islice(self._events, self._batch_size))
        self._count += len(batch)
        return batch or None

    def position(self) -> int:
        """Number of events read."""
        return self._count

    def close(self) -> None:
        """Let go of the iterator, closing a generator."""
        close = getattr(self._events, "close", None)
        self._events = iter(())
        if close is not None:
            close()
