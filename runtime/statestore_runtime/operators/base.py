"""What all operators share: consumers, event time, the life of an operator within a task.

How an operator is used, all in one thread:

    open(context) · restore(states), if there are any · on_restore(id) · push / push_keyed / on_watermark / on_idle / on_processing_time,
    with snapshot(), on_checkpoint_complete(id) and on_checkpoint_failed(id, reason) in between · close(), also after a failure

Event times and watermarks are Unix times in milliseconds. A watermark w says: no more events up to w are to be expected, those that come
nevertheless are late.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from statestore.clock import Clock
from statestore.errors import StateStoreError
from statestore.store import StateStore
from statestore_runtime.functions import UserCodeError
from statestore_runtime.watermarks import MAX_WATERMARK, MIN_WATERMARK

Times = list[int] | None
"""Event times, parallel to a batch; None while its events have none."""


def repeated(times: list[int], ends: list[int]) -> list[int]:
    """Each time as often as events were made at it, when those of the n-th end before `ends[n]`."""
    made: list[int] = []
    for time, end in zip(times, ends, strict=True):
        count = end - len(made)
        if count == 1:
            made.append(time)
        elif count:
            made += [time] * count
    return made


class Guard:
    """Says whose fault it is when a function fails within a `with` block: UserCodeError of what it raised, a note at errors of ours.

    Parameters
    ----------
    batch, events
        The events that the function is called with, and the iterator of them that tells how far it has come.
    """

    __slots__ = ("_batch", "_events", "_uid")

    def __init__(self, uid: str, batch: list[Any] | None = None, events: Iterator[Any] | None = None):
        self._uid, self._batch, self._events = uid, batch, events

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, StateStoreError):
            error.add_note(f"in operator '{self._uid}'")
        elif isinstance(error, Exception):
            if self._batch is None or self._events is None:
                raise UserCodeError.of(self._uid, error) from error
            raise UserCodeError.at(self._uid, error, self._batch, self._events) from error


class EventTimes:
    """How far the operators of a task have come in event time; that of the store is the least of them."""

    def __init__(self, store: StateStore):
        self._store = store
        self._watermarks: dict[str, int] = {}

    def advance(self, uid: str, watermark: int) -> None:
        """An operator has come to this watermark; at `MAX_WATERMARK` it stands in nobody's way any more."""
        if watermark >= MAX_WATERMARK:
            self._watermarks.pop(uid, None)
        else:
            self._watermarks[uid] = watermark
        if self._watermarks:
            self._store.advance_event_time(min(self._watermarks.values()) / 1000)


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What the operators of one task are opened with: all get the same object."""

    store: StateStore
    clock: Clock
    job: str
    attempt: int
    subtask: int = 0
    parallelism: int = 1
    event_times: EventTimes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_times", EventTimes(self.store))


class Operator:
    """One vertex of the running graph; passes everything on.

    Attributes
    ----------
    uid : str
        By which checkpoints know it.
    consumers : list
        Who takes what it emits: operator and port, which tells an operator with several inputs them apart.
    side_consumers : dict
        The same for its side outputs, by tag.
    watermark : int or None
        How far event time has come here: the least of all inputs that are neither idle nor at their end.
    """

    def __init__(self, uid: str):
        self.uid = uid
        self.consumers: list[tuple[Operator, int]] = []
        self.side_consumers: dict[str, list[tuple[Operator, int]]] = {}
        self.watermark: int | None = None
        self._watermark_before_end: int | None = None
        self._watermarks: list[int | None] = []  # of each input
        self._idle: list[bool] = []
        self._ended: list[bool] = []
        self._is_idle = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} '{self.uid}'>"

    def connect(self, consumer: Operator, tag: str | None = None) -> None:
        """Let `consumer` take what this operator emits, or what it emits with a tag, by a new port."""
        consumers = self.consumers if tag is None else self.side_consumers.setdefault(tag, [])
        consumers.append((consumer, consumer.add_input()))

    def add_input(self) -> int:
        """Number of a new port."""
        self._watermarks.append(None)
        self._idle.append(False)
        self._ended.append(False)
        return len(self._watermarks) - 1

    # Life

    def open(self, context: TaskContext) -> None:
        """Get ready: register states, open functions. Raises as handles do, and UserCodeError."""

    def close(self) -> None:
        """Tell the functions that the run has ended, also when it has failed."""

    def snapshot(self) -> Any | None:
        """What `restore` needs beside the keyed state, small, JSON-able or with bytes; None when there is nothing."""
        return None

    def restore(self, states: list[Any]) -> None:
        """Go on from what `snapshot` of each subtask returned, those that had something; called after `open`, before any event."""

    def on_restore(self, checkpoint_id: int) -> None:
        """The job goes on from a checkpoint. Raises UserCodeError."""

    def on_checkpoint_complete(self, checkpoint_id: int) -> None:
        """A checkpoint can be restored from. Raises UserCodeError."""

    def on_checkpoint_failed(self, checkpoint_id: int, reason: str) -> None:
        """A checkpoint was given up. Raises UserCodeError."""

    # Batches that may fail

    def mark(self) -> None:
        """Have `rollback` come back to here; before each batch, where one that fails must leave no trace."""

    def rollback(self) -> None:
        """Forget what a batch that failed has left beside the state, which the store brings back itself."""

    def keep(self) -> None:
        """The batch since the mark is through."""

    # Events

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Process events that have no key.

        Raises
        ------
        UserCodeError
            A function failed; its `index` says at which event of the batch, where that is known.
        """
        self.emit(batch, times)

    def push_keyed(self, keys: list[Any], batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Process events with their keys. Raises as `push` does."""
        raise AssertionError(f"operator '{self.uid}' takes no keys")

    def emit(self, batch: list[Any], times: Times = None) -> None:
        """Push to the consumers."""
        if batch:
            for consumer, port in self.consumers:
                consumer.push(batch, times, port)

    def emit_made(self, batch: list[Any], times: Times, ends: list[int]) -> None:
        """The same; those that the n-th event of the batch before led to end before `ends[n]`."""
        try:
            self.emit(batch, times)
        except UserCodeError as error:
            if error.index is not None:
                error.index = bisect_right(ends, error.index)
            raise

    def emit_anew(self, batch: list[Any], times: Times = None) -> None:
        """The same for events of which nobody can say which one of the batch has led to them."""
        self._push_anew(self.consumers, batch, times)

    def emit_aside(self, tag: str, batch: list[Any], times: Times = None) -> None:
        """Push to the consumers of a side output."""
        self._push_anew(self.side_consumers.get(tag, []), batch, times)

    @staticmethod
    def _push_anew(consumers: list[tuple[Operator, int]], batch: list[Any], times: Times) -> None:
        try:
            if batch:
                for consumer, port in consumers:
                    consumer.push(batch, times, port)
        except UserCodeError as error:
            error.index = None
            raise

    # Time

    def on_watermark(self, watermark: int, port: int = 0) -> None:
        """Event time has come to `watermark` at an input, which is not idle any more; an earlier one than before changes nothing else.

        `MAX_WATERMARK` is the end of the input, `MIN_WATERMARK` says only that it is not idle.

        Raises
        ------
        UserCodeError
            A function that was due then failed.
        """
        before = self._watermarks[port]
        if watermark >= MAX_WATERMARK:
            self._ended[port] = True
        elif watermark > (MIN_WATERMARK if before is None else before):
            self._watermarks[port] = watermark
        self._idle[port] = False
        self._combine()

    def on_idle(self, port: int = 0) -> None:
        """An input has nothing to give for the time being: event time goes on without it until its next watermark."""
        self._idle[port] = True
        self._combine()

    def on_processing_time(self, now_ms: int) -> None:
        """Do what is due by the machine's clock; called now and then. Raises UserCodeError."""

    def _combine(self) -> None:
        if all(self._ended):
            if self.watermark != MAX_WATERMARK:
                self._advance(MAX_WATERMARK)
            return
        active = [
            watermark
            for watermark, idle, ended in zip(self._watermarks, self._idle, self._ended, strict=True)
            if not (idle or ended)
        ]
        # Once all are idle the order in which they became so makes no difference: event time is where the furthest has come.
        known = [watermark for watermark in active or self._watermarks if watermark is not None]
        watermark = None
        if known and (not active or len(known) == len(active)):
            watermark = min(known) if active else max(known)
        was_idle, self._is_idle = self._is_idle, not active
        if watermark is not None and (self.watermark is None or watermark > self.watermark):
            self._advance(watermark)
        elif was_idle and active:
            self.forward_watermark(MIN_WATERMARK if self.watermark is None else self.watermark)
        if self._is_idle and not was_idle:
            self.forward_idle()

    def _advance(self, watermark: int) -> None:
        if watermark < MAX_WATERMARK:
            self._watermark_before_end = watermark
        self.watermark = watermark
        self.advance(watermark)
        self.forward_watermark(watermark)

    def advance(self, watermark: int) -> None:
        """Do what is due at a watermark, before the consumers hear of it. Raises UserCodeError."""

    def forward_watermark(self, watermark: int) -> None:
        """Tell all consumers."""
        for consumer, port in self.all_consumers():
            consumer.on_watermark(watermark, port)

    def forward_idle(self) -> None:
        """Tell all consumers."""
        for consumer, port in self.all_consumers():
            consumer.on_idle(port)

    def all_consumers(self) -> list[tuple[Operator, int]]:
        """Operators and ports that take something of it, side outputs included."""
        return [*self.consumers, *(consumer for side in self.side_consumers.values() for consumer in side)]
