"""What users write: functions with state, the contexts they are given, and what happens when they fail."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from pathlib import Path
from typing import Any, Generic, TypeVar

from statestore.errors import StateStoreError
from statestore.keyed import KeyedState, StateFactory
from statestore.ttl import TimeDomain
from statestore_runtime.timers import SideOutputs, TimerService

K = TypeVar("K")
E = TypeVar("E")
E2 = TypeVar("E2")
R = TypeVar("R")

_PACKAGE_FOLDER = str(Path(__file__).parent)


class UserCodeError(StateStoreError, RuntimeError):
    """A function of the job failed, mostly on an event; what it raised is the `__cause__`. Mend the function.

    Attributes
    ----------
    operator : str
        Uid of the operator whose function it was.
    event
        The event that the function was called with, None when it was not called with one, or nobody knows.
    index : int or None
        Which event of the batch led to it that was pushed to the operator that raises this, which need not be the one that failed:
        operators that raise what their consumers raised translate it. None when that is not known, or no event has led to it.
    """

    exit_code = 10

    def __init__(self, operator: str, problem: str, place: str | None, *, event: Any = None, index: int | None = None):
        self.operator, self.problem, self.place = operator, problem, place
        self.event, self.index = event, index
        on_what = "" if index is None else " on an event"
        super().__init__(f"operator '{operator}' failed{on_what}: {problem}{f' ({place})' if place else ''}")

    @classmethod
    def of(cls, operator: str, error: Exception, *, event: Any = None, index: int | None = None) -> UserCodeError:
        """The error that an operator's function raised, with the place in the user's file where it did."""
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not frame.filename.startswith(_PACKAGE_FOLDER)]
        place = None
        if theirs:  # the deepest place in their file says more than one in a library called from there
            last = [frame for frame in theirs if frame.filename == theirs[0].filename][-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
        return cls(operator, f"{type(error).__name__}: {error}", place, event=event, index=index)

    @classmethod
    def at(cls, operator: str, error: Exception, batch: list[Any], events: Iterator[Any]) -> UserCodeError:
        """The same, of a function that was called with the last event taken from `events`, an iterator of the list `batch`."""
        index = len(batch) - length_hint(events) - 1
        return cls.of(operator, error) if index < 0 else cls.of(operator, error, event=batch[index], index=index)


class RuntimeContext(StateFactory):
    """What a function is opened with: the way to its state (`value_state`, `list_state`, `map_state`, ...).

    Attributes
    ----------
    job : str
        Name of the job.
    operator : str
        The operator's uid.
    attempt : int
        How often the job's state has been opened, this time included.
    subtask, parallelism : int
        Which of how many instances of the operator this one is, from 0.
    """

    def __init__(
        self, job: str, operator: str, attempt: int, scope: KeyedState, subtask: int = 0, parallelism: int = 1
    ):
        self.job, self.operator, self.attempt = job, operator, attempt
        self.subtask, self.parallelism = subtask, parallelism
        self._scope = scope

    def _keyed(self) -> KeyedState:
        return self._scope


class KeyContext(Generic[K]):
    """What a function is given with each event or timer; the same object every time.

    Attributes
    ----------
    key
        The event's or timer's key, which all state handles work on.
    timestamp : int or None
        The event's time in milliseconds, None when it has none; in `on_timer` the time of an event-time timer. What the function returns
        has the same.
    timers : TimerService
        Sets timers for the key.
    """

    __slots__ = ("_side", "key", "timers", "timestamp")

    key: K

    def __init__(self, timers: TimerService, side: SideOutputs):
        self.timers, self._side = timers, side
        self.timestamp: int | None = None

    @property
    def current_watermark(self) -> int | None:
        """How far event time has come, in milliseconds; None while that is not known."""
        return self.timers.current_watermark

    def output(self, tag: str, value: Any) -> None:
        """Send `value` to the side output `tag`, which `stream.side_output(tag)` takes; it goes nowhere when nobody does."""
        self._side.add(tag, value, self.timestamp)


class TimerContext(KeyContext[K]):
    """What `on_timer` is given.

    Attributes
    ----------
    time_domain : {"event-time", "processing-time"}
        Which of the two the timer went by.
    """

    __slots__ = ("time_domain",)

    def __init__(self, timers: TimerService, side: SideOutputs):
        super().__init__(timers, side)
        self.time_domain: TimeDomain = "event-time"


class BroadcastContext:
    """What `process_broadcast` is given.

    Attributes
    ----------
    state : dict
        The broadcast state, to change. Every worker has a copy: do the same to it everywhere, and nothing that depends on anything else.
    timestamp : int or None
        The event's time in milliseconds, None when it has none.
    """

    def __init__(self, state: dict[Any, Any], timers: TimerService, side: SideOutputs):
        self.state, self._timers, self._side = state, timers, side
        self.timestamp: int | None = None

    @property
    def current_watermark(self) -> int | None:
        """How far event time has come, in milliseconds; None while that is not known."""
        return self._timers.current_watermark

    def output(self, tag: str, value: Any) -> None:
        """Send `value` to the side output `tag`. Every worker does."""
        self._side.add(tag, value, self.timestamp)


class CheckpointListener:
    """What a function may want to know of the job's checkpoints; to override."""

    def on_restore(self, checkpoint_id: int) -> None:
        """Called after `open` when the job goes on from a checkpoint."""

    def on_checkpoint_complete(self, checkpoint_id: int) -> None:
        """Called when a checkpoint can be restored from."""

    def on_checkpoint_failed(self, checkpoint_id: int, reason: str) -> None:
        """Called when a checkpoint was given up; what it would have held goes with the next one.

        Such a checkpoint has no id in its storage: `checkpoint_id` says which one since the job's last start it was.
        """


class KeyedFunction(CheckpointListener, Generic[K, R]):
    """What all functions with state per key share.

    Each worker works with a copy of its own, made by `copy.deepcopy` before `open`: make what can't be copied, such as a connection, in
    `open`. A function that sets timers has a method `on_timer`.
    """

    def open(self, ctx: RuntimeContext) -> None:
        """Called once before the first event of a run: register states here."""

    def on_timer(self, timestamp: int, ctx: TimerContext[K]) -> Iterable[R] | None:
        """Called when a timer is due, with the time it was set for in milliseconds; what is returned goes where results of events go."""

    def close(self) -> None:
        """Called once at the end of a run, also of a failed one."""


class KeyedProcessFunction(KeyedFunction[K, R], ABC, Generic[K, E, R]):
    """A function with state per key: the general stateful operator."""

    @abstractmethod
    def process(self, event: E, ctx: KeyContext[K]) -> Iterable[R] | None:
        """Called with each event; what is returned, or yielded, goes to the operator's consumers."""


class KeyedCoProcessFunction(KeyedFunction[K, R], ABC, Generic[K, E, E2, R]):
    """A function of two keyed streams, whose events with the same key share the state."""

    @abstractmethod
    def process1(self, event: E, ctx: KeyContext[K]) -> Iterable[R] | None:
        """Called with each event of the first stream."""

    @abstractmethod
    def process2(self, event: E2, ctx: KeyContext[K]) -> Iterable[R] | None:
        """Called with each event of the second stream."""


class BroadcastKeyContext(KeyContext[K]):
    """What a function of a keyed and a broadcast stream is given with each keyed event.

    Attributes
    ----------
    state : Mapping
        The broadcast state, to read only.
    """

    __slots__ = ("state",)

    def __init__(self, timers: TimerService, side: SideOutputs, state: Mapping[Any, Any]):
        super().__init__(timers, side)
        self.state = state


class KeyedBroadcastProcessFunction(KeyedFunction[K, R], ABC, Generic[K, E, E2, R]):
    """A function of a keyed stream and of a broadcast one, which fills a map that all keys read."""

    @abstractmethod
    def process(self, event: E, ctx: BroadcastKeyContext[K]) -> Iterable[R] | None:
        """Called with each event of the keyed stream."""

    @abstractmethod
    def process_broadcast(self, event: E2, ctx: BroadcastContext) -> Iterable[R] | None:
        """Called with each event of the broadcast stream, in every worker; what is returned goes on as many times."""
