"""Sources without anything outside: a collection, anything that can be iterated again, and a function of a number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from statestore.errors import UsageError
from statestore_runtime.sources.base import (
    DEFAULT_BATCH_SIZE,
    FixedSplitsSource,
    SourceContext,
    SplitReader,
    checked_batch_size,
)


class CollectionSource(FixedSplitsSource):
    """The elements of a sequence; the position is how many of the split's elements were read.

    Parameters
    ----------
    events
        Must hold the same elements when the job is restored; more may have come at its end.
    splits
        Parts that workers read at the same time. Of n parts, the first has the elements 0, n, 2n, ....
    batch_size
        Events that are processed between two looks at the clock.
    rate_limit
        Events per second and worker.

    Raises
    ------
    UsageError
        An argument can't be served.
    """

    def __init__(
        self,
        events: Sequence[Any],
        *,
        splits: int = 1,
        batch_size: int = DEFAULT_BATCH_SIZE,
        rate_limit: float | None = None,
    ):
        if not isinstance(events, Sequence) or isinstance(events, str | bytes):
            raise UsageError(f"CollectionSource takes a list or tuple of events, not {type(events).__name__}")
        super().__init__(splits)
        self._events, self._batch_size = events, checked_batch_size(batch_size)
        self._set_options(rate_limit=rate_limit)

    def read_part(self, part: int, position: Any | None, context: SourceContext) -> SplitReader:
        """Go to an index. Raises UsageError when the collection has become shorter than that."""
        events = self._events if self.splits == 1 else self._events[part :: self.splits]
        begin = position or 0
        if begin > len(events):
            of = "" if self.splits == 1 else f" in part {part} of {self.splits}"
            raise UsageError(
                f"the collection has {len(events)} events{of}, the checkpoint was made after {begin}: "
                "give the job the same events"
            )
        return _SequenceReader(events, begin, self._batch_size)


class _SequenceReader(SplitReader):
    def __init__(self, events: Sequence[Any], begin: int, batch_size: int):
        self._events, self._index, self._batch_size = events, begin, batch_size

    def next_batch(self) -> list[Any] | None:
        begin = self._index
        if begin >= len(self._events):
            return None
        self._index = min(begin + self._batch_size, len(self._events))
        return list(self._events[begin : self._index])

    def position(self) -> int:
        return self._index


class IterableSource(FixedSplitsSource):
    """What a function's iterables yield, such as a generator; the position is a count, and restoring skips that many.

    Parameters
    ----------
    make
        Called at each start; must give the same events each time, in the same order.
    batch_size
        Events that are processed between two looks at the clock.
    rate_limit
        Events per second.

    Raises
    ------
    UsageError
        An argument can't be served.
    """

    def __init__(
        self,
        make: Callable[[], Iterable[Any]],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        rate_limit: float | None = None,
    ):
        if not callable(make):
            raise UsageError("IterableSource takes a function that returns an iterable, so that it can be read again")
        super().__init__()
        self._make, self._batch_size = make, checked_batch_size(batch_size)
        self._set_options(rate_limit=rate_limit)

    def read_part(self, part: int, position: Any | None, context: SourceContext) -> SplitReader:
        """Begin again and skip what was read. Raises UsageError when there is less than that."""
        return _IteratorReader(iter(self._make()), position or 0, self._batch_size)


class _IteratorReader(SplitReader):
    def __init__(self, events: Iterator[Any], count: int, batch_size: int):
        self._events, self._count, self._batch_size = events, count, batch_size
        skipped = sum(1 for _ in itertools.islice(events, count))
        if skipped < count:
            self.close()
            raise UsageError(f"the source ended after {skipped} events, the checkpoint was made after {count}")

    def next_batch(self) -> list[Any] | None:
        batch = list(itertools.islice(self._events, self._batch_size))
        self._count += len(batch)
        return batch or None

    def position(self) -> int:
        return self._count

    def close(self) -> None:
        """Let go of the iterator, closing a generator."""
        close = getattr(self._events, "close", None)
        self._events = iter(())
        if close is not None:
            close()


class GeneratorSource(FixedSplitsSource):
    """Events made by a function from their numbers 0, 1, 2, ...: for load tests and examples; the position is a number.

    Parameters
    ----------
    function
        Gives the event of a number, the same one each time.
    count
        How many there are; None: no end.
    splits
        Parts that workers read at the same time. Of n parts, the first has the numbers 0, n, 2n, ....
    batch_size
        Events that are processed between two looks at the clock.
    rate_limit
        Events per second and worker.

    Raises
    ------
    UsageError
        An argument can't be served.
    """

    def __init__(
        self,
        function: Callable[[int], Any],
        count: int | None = None,
        *,
        splits: int = 1,
        batch_size: int = DEFAULT_BATCH_SIZE,
        rate_limit: float | None = None,
    ):
        if not callable(function):
            raise UsageError(
                f"GeneratorSource takes a function that makes an event of a number, not {type(function).__name__}"
            )
        if count is not None and count < 0:
            raise UsageError(f"count is {count}, it must be at least 0, or None for no end")
        super().__init__(splits)
        self._function, self._count, self._batch_size = function, count, checked_batch_size(batch_size)
        self._set_options(rate_limit=rate_limit)

    def read_part(self, part: int, position: Any | None, context: SourceContext) -> SplitReader:
        """Go to a number."""
        begin = part if position is None else position
        return _NumberReader(self._function, begin, self._count, self.splits, self._batch_size)


class _NumberReader(SplitReader):
    def __init__(self, function: Callable[[int], Any], begin: int, end: int | None, step: int, batch_size: int):
        self._function, self._next, self._end, self._step = function, begin, end, step
        self._span = step * batch_size

    def next_batch(self) -> list[Any] | None:
        begin, stop = self._next, self._next + self._span
        if self._end is not None:
            stop = min(stop, self._end)
        if begin >= stop:
            return None
        function = self._function
        numbers = range(begin, stop, self._step)
        batch = [function(number) for number in numbers]
        self._next = begin + len(numbers) * self._step
        return batch

    def position(self) -> int:
        return self._next
