"""What operators with state, timers and side outputs share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

from statestore.errors import UsageError
from statestore.ttl import TimeDomain
from statestore_runtime.functions import CheckpointListener, RuntimeContext
from statestore_runtime.operators.base import Guard, Times
from statestore_runtime.operators.keyed import KeyedOperator
from statestore_runtime.timers import SideOutputs, TimerService
from statestore_runtime.watermarks import MAX_WATERMARK

RESULTS_TOGETHER = 1000
"""Results of timers after which they go on, so that those of a million timers do not wait in memory."""


class Fired(NamedTuple):
    """What timers have made."""

    made: list[Any]
    times: list[int] | None
    is_all: bool
    """Whether no timer is left that is due."""


def check_times(uid: str, times: Times) -> list[int]:
    """The times of a batch. Raises UsageError when there are none."""
    if times is None:
        raise UsageError(
            f"operator '{uid}' goes by event time, and an event has none: give the source watermarks=, or call assign_timestamps(...) "
            "before it"
        )
    return times


class TimedOperator(KeyedOperator):
    """Base of the operators with timers and side outputs.

    Attributes
    ----------
    fire_all
        Called with a time domain and how far it has come, fires all timers that are due. By default `fire_until_done`.
    """

    def __init__(self, uid: str, key_type: Any):
        super().__init__(uid, key_type)
        self.timers = TimerService()
        self.side = SideOutputs()
        self.fire_all: Callable[[TimeDomain, int], None] = self.fire_until_done

    @property
    @abstractmethod
    def listener(self) -> CheckpointListener:
        """What is told of checkpoints."""

    def runtime_context(self) -> RuntimeContext:
        """What a function is opened with."""
        task = self._context
        return RuntimeContext(task.job, self.uid, task.attempt, self.scope, task.subtask, task.parallelism)

    def on_restore(self, checkpoint_id: int) -> None:
        """Tell the function."""
        with Guard(self.uid):
            self.listener.on_restore(checkpoint_id)

    def on_checkpoint_complete(self, checkpoint_id: int) -> None:
        """Tell the function."""
        with Guard(self.uid):
            self.listener.on_checkpoint_complete(checkpoint_id)

    def on_checkpoint_failed(self, checkpoint_id: int, reason: str) -> None:
        """Tell the function."""
        with Guard(self.uid):
            self.listener.on_checkpoint_failed(checkpoint_id, reason)

    def restore(self, states: list[Any]) -> None:
        """As of `KeyedOperator`."""
        super().restore(states)
        self.timers.current_watermark = self.watermark

    def mark(self) -> None:
        """See `Operator.mark`."""
        self.timers.mark()

    def rollback(self) -> None:
        """Forget what was sent to side outputs."""
        self.timers.rollback()
        self.side.take()

    def keep(self) -> None:
        """See `Operator.keep`."""
        self.timers.keep()

    # Timers

    def advance(self, watermark: int) -> None:
        """Do what is due in event time."""
        super().advance(watermark)
        self.timers.current_watermark = watermark
        with self.timers.at_end() if watermark >= MAX_WATERMARK else nullcontext():
            self.fire_all("event-time", watermark)

    def on_processing_time(self, now_ms: int) -> None:
        """Do what is due by the machine's clock."""
        self.fire_all("processing-time", now_ms)

    def fire_until_done(self, domain: TimeDomain, until: int) -> None:
        """Fire all timers that are due, some at a time."""
        while not self.fire(self.timers.due(domain, until), domain):
            pass

    def fire(self, due: Iterator[tuple[int, Any]], domain: TimeDomain) -> bool:
        """Fire timers, up to about `RESULTS_TOGETHER` results, and emit these; whether these were all.

        Raises
        ------
        UserCodeError
            The function has failed on the last one that was taken from `due`, or an operator on what these timers have made.
        """
        with Guard(self.uid):
            made, times, is_all = self._on_timers(due, domain)
        self.emit_anew(made, times)
        self._emit_side()
        return is_all

    def pass_over(self, time: int, key: Any) -> None:
        """Do without a timer whose function fails. It has been taken out, and its key is the current one."""

    @abstractmethod
    def _on_timers(self, due: Iterator[tuple[int, Any]], domain: TimeDomain) -> Fired:
        """Do what is due, up to about `RESULTS_TOGETHER` results."""

    def _emit_side(self) -> None:
        for tag, values, times in self.side.take():
            self.emit_aside(tag, values, times)


class LateOperator(TimedOperator):
    """Base of the operators for which an event may come too late.

    Parameters
    ----------
    late_output
        Tag of the side output that takes such events, None to drop them.

    Attributes
    ----------
    late_dropped : int
        Events that were dropped. In a checkpoint; those of all workers before are the first one's to add.
    """

    def __init__(self, uid: str, key_type: Any, late_output: str | None):
        super().__init__(uid, key_type)
        self._late_output = late_output
        self.late_dropped = self._late_before = 0

    def _put_aside(self, late: list[int], batch: list[Any], times: list[int]) -> None:
        """Pass on, or drop, those events of a batch that were late."""
        if late and self._late_output is not None:
            self.emit_aside(self._late_output, [batch[place] for place in late], [times[place] for place in late])
        self.late_dropped += len(late) if self._late_output is None else 0

    def mark(self) -> None:
        """See `Operator.mark`."""
        super().mark()
        self._late_before = self.late_dropped

    def rollback(self) -> None:
        """Forget what was counted, too."""
        super().rollback()
        self.late_dropped = self._late_before

    def snapshot(self) -> Any | None:
        """How far event time has come, and how many events were dropped."""
        known = super().snapshot()
        return {**(known or {}), "late": self.late_dropped} if self.late_dropped else known

    def restore(self, states: list[Any]) -> None:
        """As of `KeyedOperator`."""
        super().restore(states)
        if self._context.subtask == 0:
            self.late_dropped = sum(state.get("late", 0) for state in states)
