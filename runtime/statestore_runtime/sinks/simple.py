"""Sinks without files: a list, a function, standard output."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from statestore.errors import UsageError
from statestore_runtime.sinks.base import Sink, SinkContext


class CollectSink(Sink):
    """Keeps events in a list: for tests and notebooks.

    `results` holds those of completed checkpoints, each exactly once, as long as the job runs in this process and is restarted with the
    same object. All subtasks share it: those of one checkpoint come subtask by subtask.
    """

    def __init__(self) -> None:
        self.results: list[Any] = []
        self._shared = _Collected(self.results)
        self._written: list[Any] = []
        self._context = SinkContext("", 0)
        self._count = 0

    def open(self, context: SinkContext) -> None:
        """Go back to what the restored checkpoint knows of."""
        self._context, self._written, self._count = context, [], 0
        if context.is_first:
            self._shared.keep({} if context.fresh else context.snapshots)
        self.commit_restored(context)

    def write(self, batch: list[Any]) -> None:
        """Keep the events, not visible yet."""
        self._written += batch

    def prepare(self) -> list[int] | None:
        """Put the events written aside."""
        if not self._written:
            return None
        self._count += 1
        part = self._context.attempt, self._context.subtask, self._count
        self._shared.prepared[part] = self._written
        self._written = []
        return list(part)

    def snapshot(self) -> list[int]:
        """The attempt, and how many transactions it has had."""
        return [self._context.attempt, self._count]

    def is_own(self, transaction: Any) -> bool:
        """See `Sink.is_own`."""
        return isinstance(transaction, list | tuple)

    def commit(self, transaction: Any) -> None:
        """Add the events to `results`. What another process collected stays unknown."""
        self._shared.commit(tuple(transaction))


_collecting = threading.Lock()  # not in the object, which can be copied and pickled so


class _Collected:
    """What the subtasks of a CollectSink have in common: parts by attempt, subtask and number."""

    def __init__(self, results: list[Any]):
        self._results = results
        self.prepared: dict[tuple[int, ...], list[Any]] = {}
        self._lengths: dict[tuple[int, ...], int] = {}

    def commit(self, part: tuple[int, ...]) -> None:
        """Show a part, once."""
        with _collecting:
            events = self.prepared.pop(part, None)
            if events is not None:
                self._results += events
                self._lengths[part] = len(events)

    def keep(self, snapshots: Mapping[int, Any]) -> None:
        """Forget all parts that a checkpoint does not know."""
        with _collecting:
            begin = 0
            for part, length in list(self._lengths.items()):
                if _is_known(part, snapshots):
                    begin += length
                else:
                    del self._results[begin : begin + length], self._lengths[part]
            for part in [part for part in self.prepared if not _is_known(part, snapshots)]:
                del self.prepared[part]


def _is_known(part: tuple[int, ...], snapshots: Mapping[int, Any]) -> bool:
    attempt, subtask, number = part
    newest = max((snapshot[0] for snapshot in snapshots.values()), default=0)
    if attempt != newest:
        return attempt < newest
    return subtask in snapshots and number <= snapshots[subtask][1]


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
        """Nothing to do, unless another sink has left output that it was to make visible."""
        self.commit_restored(context)

    def is_own(self, transaction: Any) -> bool:
        """It prepares nothing."""
        return False

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

    @property
    def name(self) -> str:
        """Standard output."""
        return "standard output"

    @staticmethod
    def _print(batch: list[Any]) -> None:
        sys.stdout.write("".join([f"{event}\n" for event in batch]))
        sys.stdout.flush()
