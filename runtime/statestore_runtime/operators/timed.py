"""What operators with state, timers and side outputs share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
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
    """Base of the operators with timers and side outputs."""

    def __init__(self, uid: str, key_type: Any):
        super().__init__(uid, key_type)
        self.timers = TimerService()
        self.side = SideOutputs()

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

    def rollback(self) -> None:
        """Forget what was sent to side outputs."""
        self.side.take()

    def advance(self, watermark: int) -> None:
        """Do what is due in event time."""
        super().advance(watermark)
        self.timers.current_watermark = watermark
        self._run(self.timers.due_in_event_time(watermark, is_end=watermark >= MAX_WATERMARK), "event-time")

    def on_processing_time(self, now_ms: int) -> None:
        """Do what is due by the machine's clock."""
        if self.timers.has_processing_time:
            self._run(self.timers.due_in_processing_time(now_ms), "processing-time")

    def _run(self, due: Iterator[tuple[int, Any]], domain: TimeDomain) -> None:
        is_all = False
        while not is_all:
            with Guard(self.uid):
                made, times, is_all = self._on_timers(due, domain)
            self.emit_anew(made, times)
            self._emit_side()

    @abstractmethod
    def _on_timers(self, due: Iterator[tuple[int, Any]], domain: TimeDomain) -> Fired:
        """Do what is due, up to about `RESULTS_TOGETHER` results."""

    def _emit_side(self) -> None:
        for tag, values, times in self.side.take():
            self.emit_aside(tag, values, times)
