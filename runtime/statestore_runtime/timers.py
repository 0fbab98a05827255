"""Timers and side outputs of the functions of a job.

Times are Unix times in milliseconds, as everywhere in a job; the state keeps seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from statestore.errors import UsageError
from statestore.keyed import KeyedState
from statestore.timers import Timers
from statestore.ttl import TimeDomain

EVENT_TIMERS = "event-time-timers"
PROCESSING_TIMERS = "processing-time-timers"


class TimerService:
    """Sets timers for the current key; the same time of the same domain counts once.

    An event-time timer is due when the watermark has come to its time, a processing-time timer when the machine's clock has. One that is
    past is due with the next watermark, or the next look at the clock. Timers are state: they survive crashes and move with their key.

    Attributes
    ----------
    current_watermark : int or None
        How far event time has come; None while that is not known.
    """

    def __init__(self) -> None:
        self.current_watermark: int | None = None
        self._scope: KeyedState
        self._event: Timers | None = None
        self._processing: Timers | None = None
        self._set_at_end: dict[tuple[Any, int], None] | None = None
        self._undone: list[tuple[tuple[Any, int], bool]] | None = (
            None  # since the mark: what of these was set or deleted, and was it set
        )

    def register(self, scope: KeyedState, *domains: TimeDomain) -> None:
        """Keep timers in a scope; called once by the operator, where timers are used at all."""
        self._scope = scope
        if "event-time" in domains:
            self._event = scope.timers(EVENT_TIMERS, time="event-time")
        if "processing-time" in domains:
            self._processing = scope.timers(PROCESSING_TIMERS)

    # What functions call

    @property
    def current_processing_time(self) -> int:
        """The machine's clock. It never goes back, not even over a restart."""
        now = self._known(self._processing) and self._scope.now_ms("processing-time")
        assert isinstance(now, int)
        return now

    def register_event_time_timer(self, time: int) -> None:
        """Call `on_timer` for the current key when event time has come to `time`. Raises UsageError when there is no `on_timer`."""
        timers = self._known(self._event)
        if self._set_at_end is None:
            timers.register(time / 1000)
        else:
            self._note_at_end(time, True)

    def register_processing_time_timer(self, time: int) -> None:
        """Call `on_timer` for the current key when the machine's clock has come to `time`. Raises UsageError as above."""
        self._known(self._processing).register(time / 1000)

    def delete_event_time_timer(self, time: int) -> None:
        """Forget the current key's timer for this event time, if there is one."""
        self._known(self._event).delete(time / 1000)
        if self._set_at_end is not None:
            self._note_at_end(time, False)

    def delete_processing_time_timer(self, time: int) -> None:
        """Forget the current key's timer for this processing time, if there is one."""
        self._known(self._processing).delete(time / 1000)

    @staticmethod
    def _known(timers: Timers | None) -> Timers:
        if timers is None:
            raise UsageError("a function that sets timers needs a method on_timer(timestamp, ctx)")
        return timers

    # What operators call

    def has_due(self, domain: TimeDomain, until: int) -> bool:
        """Whether there is a timer up to a time."""
        timers = self._of(domain)
        first = None if timers is None else timers.next_time_ms()
        return first is not None and first <= until

    def due(self, domain: TimeDomain, until: int) -> Iterator[tuple[int, Any]]:
        """Take out the timers up to a time, earliest first, each with its key, which becomes the current one.

        What is set meanwhile is taken too if it is due.
        """
        timers = self._of(domain)
        return iter(()) if timers is None else timers.take(until)

    def due_together(self, domain: TimeDomain, until: int, limit: int) -> tuple[int, list[Any]] | None:
        """Take out about `limit` timers of one time, the earliest up to `until`: that time and their keys; None when none is due."""
        timers = self._of(domain)
        return None if timers is None else timers.take_together(until, limit)

    def register_event_time_timers(self, time: int, keys: list[Any]) -> None:
        """As `register_event_time_timer`, for several keys."""
        if self._set_at_end is None:
            self._known(self._event).register_many(time, keys)
        else:
            for self._scope.key in keys:
                self._note_at_end(time, True)

    def _of(self, domain: TimeDomain) -> Timers | None:
        return self._event if domain == "event-time" else self._processing

    @contextmanager
    def at_end(self) -> Iterator[None]:
        """Let event-time timers that are set in a `with` block stay set, whatever is taken out.

        At the end of all input everything is due: a function that sets the next timer with each would never come to an end.
        """
        self._set_at_end = {}
        yield
        kept, self._set_at_end = self._set_at_end, None
        for self._scope.key, time in kept:
            self.register_event_time_timer(time)

    def mark(self) -> None:
        """Have `rollback` come back to here with what the state does not hold yet."""
        self._undone = []

    def rollback(self) -> None:
        """Forget what was set and deleted since the mark."""
        if self._set_at_end is not None:
            for timer, was_set in reversed(self._undone or ()):
                if was_set:
                    self._set_at_end[timer] = None
                else:
                    del self._set_at_end[timer]
        self._undone = None

    def keep(self) -> None:
        """What was set and deleted since the mark stays so."""
        self._undone = None

    def _note_at_end(self, time: int, is_set: bool) -> None:
        assert self._set_at_end is not None
        timer = (self._scope.key, time)
        was_set = timer in self._set_at_end
        if was_set is is_set:
            return
        if is_set:
            self._set_at_end[timer] = None
        else:
            del self._set_at_end[timer]
        if self._undone is not None:
            self._undone.append((timer, was_set))


class SideOutputs:
    """What functions have sent to side outputs since it was last taken.

    Attributes
    ----------
    count : int
        How many values that is.
    """

    def __init__(self) -> None:
        self.count = 0
        self._made: dict[str, tuple[list[Any], list[int | None]]] = {}

    def add(self, tag: str, value: Any, time: int | None) -> None:
        """Keep a value."""
        made = self._made.get(tag)
        if made is None:
            if not isinstance(tag, str):
                raise UsageError(f"the tag of a side output is text, not {tag!r}")
            made = self._made[tag] = ([], [])
        made[0].append(value)
        made[1].append(time)
        self.count += 1

    def take(self) -> list[tuple[str, list[Any], list[int] | None]]:
        """Tag, values and times of each side output; the times are None unless all values have one."""
        if not self._made:
            return []
        made, self._made, self.count = self._made, {}, 0
        return [
            (tag, values, None if None in times else times)  # type: ignore[misc]
            for tag, (values, times) in made.items()
        ]
