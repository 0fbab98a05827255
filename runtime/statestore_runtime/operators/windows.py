"""Operators that put events into windows, and emit what is in a window when it is over.

    windows              value state: start -> accumulator; of sessions: start -> (end, whether it was emitted, accumulator)
    event-time-timers    when a window is over, and when it is to be forgotten

All of it is keyed state and moves with its key. A window is over when the watermark comes to its last millisecond, and forgotten when it
comes `lateness` further. An event all of whose windows are forgotten is late.

Invariant of sessions: of one that was not emitted a timer is set at its last millisecond or before. A session that grows does not move its
timer: when it fires, it is set anew. So a stream of events costs no timers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

from statestore.errors import IncompatibleStateError
from statestore.ttl import TimeDomain
from statestore.versions import Upcast
from statestore_runtime.functions import CheckpointListener
from statestore_runtime.operators.base import Guard, TaskContext, Times
from statestore_runtime.operators.contents import Contents
from statestore_runtime.operators.timed import RESULTS_TOGETHER, Fired, LateOperator, check_times
from statestore_runtime.watermarks import MIN_WATERMARK
from statestore_runtime.windows import Session, Sliding, Tumbling, Window


class WindowOperator(LateOperator):
    """Base of the operators with windows."""

    def __init__(self, uid: str, key_type: Any, contents: Contents, lateness_ms: int, late_output: str | None):
        super().__init__(uid, key_type, late_output)
        self._contents, self._lateness = contents, lateness_ms
        self._made: list[Any] = []
        self._times: list[int] = []
        self._is_mute = False

    def open(self, context: TaskContext) -> None:
        """Register the states."""
        super().open(context)
        self.timers.register(self.scope, "event-time")
        self._set_timer = self.timers.register_event_time_timer
        type_, upcast = self._state_type()
        self._state = self.scope.value_state("windows", type_, ttl=0, upcast=upcast)
        with Guard(self.uid):
            self._contents.open(self.runtime_context(), self.timers, self.side)

    def close(self) -> None:
        """Close the function."""
        self._contents.close()

    @property
    def listener(self) -> CheckpointListener:
        """The function."""
        return self._contents.listener

    @abstractmethod
    def _state_type(self) -> tuple[Any, Upcast | None]:
        """Type of a key's windows, and what makes it of one that was stored with another type."""

    def push_keyed(self, keys: list[Any], batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Put events into their windows; those that are over already emit at once."""
        events = iter(batch)
        with Guard(self.uid, batch, events):
            known = check_times(self.uid, times)
            windows = dict(zip(keys, self._state.get_many(keys), strict=True))
            late = self._add(windows, keys, events, known)
            self._store(windows)
        self.emit_anew(*self._take())
        self._emit_side()
        self._put_aside(late, batch, known)

    @abstractmethod
    def _add(self, windows: dict[Any, Any], keys: list[Any], events: Iterator[Any], times: list[int]) -> list[int]:
        """Put events into the windows of their keys; returns which ones were late."""

    def fire_until_done(self, domain: TimeDomain, until: int) -> None:
        """Fire all timers that are due; those of one time are taken together, as most windows end with many others."""
        while fired := self._taken(domain, until):
            with Guard(self.uid):
                self._fire(fired)
            self.emit_anew(*self._take())
            self._emit_side()

    def _taken(self, domain: TimeDomain, until: int) -> list[tuple[int, list[Any]]]:
        """Times that have come, with keys that are due then; about `RESULTS_TOGETHER` keys."""
        taken: list[tuple[int, list[Any]]] = []
        room = RESULTS_TOGETHER
        while room > 0 and (together := self.timers.due_together(domain, until, room)) is not None:
            taken.append(together)
            room -= len(together[1])
        return taken

    def _on_timers(self, due: Iterator[tuple[int, Any]], domain: TimeDomain) -> Fired:
        fired = [(time, [key]) for time, key in islice(due, RESULTS_TOGETHER)]
        self._fire(fired)
        return Fired(*self._take(), len(fired) < RESULTS_TOGETHER)

    def pass_over(self, time: int, key: Any) -> None:
        """Forget the windows whose time has come, or keep them for late events, without what they would have emitted."""
        self._is_mute = True
        self._fire([(time, [key])])
        self._is_mute = False

    def _fire(self, fired: list[tuple[int, list[Any]]]) -> None:
        """Emit and forget the windows whose time has come."""
        keys = [key for _, of_time in fired for key in of_time]
        windows = dict(zip(keys, self._state.get_many(keys), strict=True))
        for time, of_time in fired:
            for key in of_time:
                held = windows[key]
                if held:
                    self.scope.key = key
                    self._on_timer(time, key, held)
        self._store(windows)

    @abstractmethod
    def _on_timer(self, time: int, key: Any, held: dict[int, Any]) -> None:
        """The same of one key, the current one, which has windows, at one time."""

    def _emit_window(self, key: Any, window: Window, accumulator: Any) -> None:
        if self._is_mute:
            return
        self._made.extend(self._contents.results(key, window, accumulator) or ())
        self._times += [window.max_timestamp] * (len(self._made) - len(self._times))

    def _take(self) -> tuple[list[Any], list[int]]:
        made, times = self._made, self._times
        self._made, self._times = [], []
        return made, times

    def rollback(self) -> None:
        """Forget what was to be emitted."""
        super().rollback()
        self._take()

    def _store(self, windows: dict[Any, Any]) -> None:
        held = {key: of_key for key, of_key in windows.items() if of_key}
        self._state.update_many(list(held), list(held.values()))
        if len(held) < len(windows):
            self._state.clear_many([key for key, of_key in windows.items() if of_key is not None and not of_key])


class AlignedWindowOperator(WindowOperator):
    """Windows that lie the same for all keys."""

    def __init__(
        self,
        uid: str,
        key_type: Any,
        windows: Tumbling | Sliding,
        contents: Contents,
        lateness_ms: int = 0,
        late_output: str | None = None,
    ):
        super().__init__(uid, key_type, contents, lateness_ms, late_output)
        self._size, self._slide = windows.size_ms, windows.slide_ms
        self._offset = windows.offset_ms % self._slide

    def _state_type(self) -> tuple[Any, Upcast | None]:
        upcast = self._contents.upcast
        return (
            dict[int, self._contents.accumulator_type],  # type: ignore[name-defined]
            None if upcast is None else lambda held: {start: upcast(value) for start, value in held.items()},
        )

    def _add(self, windows: dict[Any, Any], keys: list[Any], events: Iterator[Any], times: list[int]) -> list[int]:
        late: list[int] = []
        scope, first, add, set_timer = self.scope, self._contents.first, self._contents.add, self._set_timer
        timers: dict[
            int, list[Any]
        ] = {}  # keys by time, but for the first, which shows whether there can be such a timer
        size, slide, offset, lateness = self._size, self._slide, self._offset, self._lateness
        is_tumbling = size == slide
        watermark = MIN_WATERMARK if self.watermark is None else self.watermark
        over = watermark - size + 1  # windows that start then or before are over
        forgotten = over - lateness
        for place, (key, event, time) in enumerate(zip(keys, events, times, strict=True)):
            scope.key = key
            held = windows[key]
            newest = time - (time - offset) % slide
            if is_tumbling and held is not None and newest in held and newest > over:  # by far most of the events
                held[newest] = add(event, held[newest])
                continue
            if newest <= forgotten and newest > time - size:
                late.append(place)
                continue
            start, end = newest, max(time - size, forgotten)
            if held is None and start > end:
                held = windows[key] = {}
            while start > end:
                if start in held:
                    held[start] = add(event, held[start])
                else:
                    held[start] = first(event, start)
                    due = start + size - 1 + (lateness if start <= over else 0)
                    if due in timers:
                        timers[due].append(key)
                    else:
                        timers[due] = []
                        set_timer(due)
                if start <= over:
                    self._emit_window(key, Window(start, start + size), held[start])
                start -= slide
        for due, others in timers.items():
            self.timers.register_event_time_timers(due, others)
        return late

    def _on_timer(self, time: int, key: Any, held: dict[int, Any]) -> None:
        assert self.watermark is not None
        start = time + 1 - self._size
        if start in held:
            self._emit_window(key, Window(start, time + 1), held[start])
        if len(held) == 1 and start in held and not self._lateness:  # as most are
            self._contents.drop(held.pop(start))
            return
        for start in [begun for begun in held if begun + self._size <= time + 1]:
            forgotten_at = start + self._size - 1 + self._lateness
            if forgotten_at <= self.watermark:
                self._contents.drop(held.pop(start))
            else:
                self._set_timer(forgotten_at)

    def snapshot(self) -> Any | None:
        """How the windows lie, and how far event time has come."""
        return {**(super().snapshot() or {}), "windows": [self._size, self._slide, self._offset]}

    def restore(self, states: list[Any]) -> None:
        """Go on. Raises IncompatibleStateError when the windows lay differently: those that have begun would never end."""
        super().restore(states)
        mine = [self._size, self._slide, self._offset]
        for size, slide, offset in [state["windows"] for state in states if "windows" in state]:
            if [size, slide, offset] != mine:
                raise IncompatibleStateError(
                    f"operator '{self.uid}' had windows of {size} ms every {slide} ms from {offset} ms on, and has windows of {self._size} "
                    f"ms every {self._slide} ms from {self._offset} ms on: give it them again, or another uid to begin anew"
                )


class SessionOperator(WindowOperator):
    """Windows that end with a silence of their key."""

    def __init__(
        self,
        uid: str,
        key_type: Any,
        windows: Session,
        contents: Contents,
        lateness_ms: int = 0,
        late_output: str | None = None,
    ):
        super().__init__(uid, key_type, contents, lateness_ms, late_output)
        self._gap = windows.gap_ms

    def _state_type(self) -> tuple[Any, Upcast | None]:
        upcast = self._contents.upcast

        def upcast_all(held: dict[int, Any]) -> dict[int, Any]:
            assert upcast is not None
            return {start: (end, is_emitted, upcast(value)) for start, (end, is_emitted, value) in held.items()}

        return (
            dict[int, tuple[int, bool, self._contents.accumulator_type]],  # type: ignore[name-defined]
            None if upcast is None else upcast_all,
        )

    def _add(self, windows: dict[Any, Any], keys: list[Any], events: Iterator[Any], times: list[int]) -> list[int]:
        late: list[int] = []
        scope, gap, lateness = self.scope, self._gap, self._lateness
        watermark = MIN_WATERMARK if self.watermark is None else self.watermark
        for place, (key, event, time) in enumerate(zip(keys, events, times, strict=True)):
            scope.key = key
            held = windows[key]
            if held is None:
                held = windows[key] = {}
            touching = [start for start, (end, _, _) in held.items() if start - gap <= time <= end]
            if not touching and time + gap - 1 + lateness <= watermark:
                late.append(place)
                continue
            start, end, is_new, accumulator = self._merged(held, touching, event, time)
            is_over = end - 1 <= watermark
            held[start] = (end, is_over, accumulator)
            if is_over:
                self._emit_window(key, Window(start, end), accumulator)
                self._set_timer(end - 1 + lateness)
            elif is_new:
                self._set_timer(end - 1)
        return late

    def _merged(self, held: dict[int, Any], touching: list[int], event: Any, time: int) -> tuple[int, int, bool, Any]:
        """Start, end, whether it needs a timer, and accumulator of the session that an event makes of those it touches."""
        contents = self._contents
        if not touching:
            return time, time + self._gap, True, contents.first(event, time)
        touching.sort()
        end, is_new, accumulator = held.pop(touching[0])
        for start in touching[1:]:
            other_end, was_emitted, other = held.pop(start)
            end, is_new, accumulator = max(end, other_end), is_new and was_emitted, contents.merge(accumulator, other)
        return min(time, touching[0]), max(end, time + self._gap), is_new, contents.add(event, accumulator)

    def _on_timer(self, time: int, key: Any, held: dict[int, Any]) -> None:
        assert self.watermark is not None
        for start in sorted(held):
            end, is_emitted, accumulator = held[start]
            if end - 1 > self.watermark:
                self._set_timer(end - 1)
                continue
            if not is_emitted:
                self._emit_window(key, Window(start, end), accumulator)
            if end - 1 + self._lateness <= self.watermark:
                self._contents.drop(held.pop(start)[2])
            else:
                held[start] = (end, True, accumulator)
                self._set_timer(end - 1 + self._lateness)
