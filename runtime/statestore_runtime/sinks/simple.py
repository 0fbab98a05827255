"""Sinks without files: a list, a function, standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from statestore.errors import UsageError
from statestore_runtime.sinks.base import Sink, SinkContext


class CollectSink(Sink):
    """Keeps events in a list: for tests and notebooks.

    `results` holds those of completed checkpoints, each exactly once, as long as the job is restarted with the same object.
    """

    def __init__(self) -> None:
        self.results: list[Any] = []
        self._written: list[Any] = []
        self._prepared: dict[tuple[int, int], list[Any]] = {}
        self._attempt = self._count = 0

    def open(self, context: SinkContext) -> None:
        """Go back to what the restored checkpoint knows of."""
        for transaction in context.transactions:
            self.commit(transaction)
        del self.results[0 if context.fresh else context.snapshot :]
        self._prepared.clear()
        self._written = []
        self._attempt, self._count = context.attempt, 0

    def write(self, batch: list[Any]) -> None:
        """Keep the events, not visible yet."""
        self._written += batch

    def prepare(self) -> list[int] | None:
        """Put the events written aside."""
        if not self._written:
            return None
        self._count += 1
        self._prepared[self._attempt, self._count] = self._written
        self._written = []
        return [self._attempt, self._count]

    def snapshot(self) -> int:
        """Number of results when all that is prepared is committed."""
        return len(self.results) + sum(map(len, self._prepared.values()))

    def commit(self, transaction: Any) -> None:
        """Add the events to `results`. What another process collected stays unknown."""
        self.results += self._prepared.pop(tuple(transaction), [])


class CallableSink(Sink):
    """Calls a function with each event, at once: at least once per event when the job is restarted.

    Parameters
    ----------
    function
        Its result is ignored.
    batch
        Whether it takes lists of events, which costs less.
    """

    def __init__(self, function: Callable[[Any], object], *, batch: bool = False):
        if not callable(function):
            raise UsageError(f"CallableSink takes a function, not {type(function).__name__}")
        self._function, self._batch = function, batch

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self._function, "__name__", type(self._function).__name__)

    def open(self, context: SinkContext) -> None:
        """Nothing to do."""

    def write(self, batch: list[Any]) -> None:
        """Call the function."""
        if self._batch:
            self._function(batch)
            return
        function = self._function
        for event in batch:
            function(event)


class PrintSink(CallableSink):
    """Prints each event on a line of standard output, at once: at least once per event when the job is restarted."""

    def __init__(self) -> None:
        super().__init__(self._print, batch=True)

    @staticmethod
    def _print(batch: list[Any]) -> None:
        sys.stdout.write("".join([f"{event}\n" for event in batch]))
        sys.stdout.flush()
