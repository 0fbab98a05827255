"""Event time: which time an event has, and how far event time has come.

All times are Unix times in milliseconds. A watermark w says that no more events up to w are to be expected; those that come nevertheless
are late.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from statestore.errors import StateStoreError, UsageError
from statestore.units import parse_duration
from statestore_runtime.functions import UserCodeError

MAX_WATERMARK = 1 << 50
"""Says that an input has ended; no event time is as late."""

MIN_WATERMARK = -MAX_WATERMARK
"""Says that nothing is known of event time yet; no event time is as early."""

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)

Duration = str | float | datetime.timedelta
"""What arguments that are lengths of time take: "500ms", "1h", a timedelta, or seconds."""

TimestampAssigner = Callable[[Any], int | float | datetime.datetime]
"""Gives an event's time: milliseconds since 1970, or a datetime, which without a time zone is in UTC."""


def duration_ms(value: Duration, what: str) -> int:
    """Milliseconds of a length of time that is not negative. Raises UsageError, which names it as `what`."""
    if isinstance(value, datetime.timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise UsageError(f"{what}: {error}") from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    else:
        raise UsageError(f"{what} is {value!r}: write it like '500ms', '10s' or '5min', or give seconds or a timedelta")
    if not 0 <= seconds * 1000 < MAX_WATERMARK:  # which NaN is not either
        raise UsageError(f"{what} is {value!r}: it can't be negative, nor longer than {MAX_WATERMARK} ms")
    return round(seconds * 1000)


def signed_ms(value: Duration, what: str) -> int:
    """Milliseconds of a length of time that may be negative, as in "-5s". Raises UsageError, which names it as `what`."""
    if isinstance(value, str) and value.strip().startswith("-"):
        return -duration_ms(value.strip()[1:], what)
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        return -duration_ms(-value, what)
    if isinstance(value, datetime.timedelta) and value < datetime.timedelta(0):
        return -duration_ms(-value, what)
    return duration_ms(value, what)


@dataclass(frozen=True, slots=True)
class WatermarkStrategy:
    """How the events of a source get their times, and how out of order they may be.

    Made by `bounded_out_of_orderness` or `monotonous`. Each split of a source (a file, a partition) has a generator of its own, so that the
    events of one may be ahead of another's; event time is where the last of them is.
    """

    timestamp: TimestampAssigner
    out_of_orderness_ms: int
    idle_after_ms: int | None = None
    """How long a split may be silent before event time goes on without it; None: it never does."""

    @classmethod
    def bounded_out_of_orderness(
        cls, bound: Duration, timestamp: TimestampAssigner, *, idle_after: Duration | None = None
    ) -> WatermarkStrategy:
        """Events come at most `bound` later than one with a later time; those that come later are late.

        Parameters
        ----------
        bound
            "5s", seconds, or a timedelta.
        timestamp
            Gives an event's time: milliseconds since 1970, or a datetime.
        idle_after
            How long a split may be silent before event time goes on without it.

        Raises
        ------
        UsageError
            An argument is none of these.
        """
        if not callable(timestamp):
            raise UsageError(f"a watermark strategy's timestamp is a function, not {type(timestamp).__name__}")
        idle_ms = None if idle_after is None else duration_ms(idle_after, "idle_after")
        return cls(timestamp, duration_ms(bound, "the bound of out-of-orderness"), idle_ms)

    @classmethod
    def monotonous(cls, timestamp: TimestampAssigner, *, idle_after: Duration | None = None) -> WatermarkStrategy:
        """The times of a split's events never go back. Parameters and errors as of `bounded_out_of_orderness`."""
        return cls.bounded_out_of_orderness(0, timestamp, idle_after=idle_after)

    def generator(self, operator: str, now: float, newest: int | None = None) -> WatermarkGenerator:
        """The generator of one split.

        Parameters
        ----------
        operator
            Uid that errors name.
        now
            Seconds of a monotonic clock.
        newest
            What `snapshot` of the split's generator before returned: event time goes on from there.
        """
        return WatermarkGenerator(self, operator, now, newest)


class WatermarkGenerator:
    """The event times of one split: gives each event its time, and knows how far event time has come."""

    def __init__(self, strategy: WatermarkStrategy, operator: str, now: float, newest: int | None = None):
        self._timestamp, self._out_of_orderness = strategy.timestamp, strategy.out_of_orderness_ms
        self._idle_after = None if strategy.idle_after_ms is None else strategy.idle_after_ms / 1000
        self._operator, self._newest = operator, newest
        self._active_at, self._is_active = now, False

    def stamp(self, batch: list[Any]) -> list[int]:
        """Times of the events of a batch; the watermark counts them from then on.

        Raises
        ------
        UserCodeError
            The strategy's function failed; `index` is that of the event.
        UsageError
            What it gave for an event is no time.
        """
        timestamp, events = self._timestamp, iter(batch)
        try:
            times: list[Any] = [timestamp(event) for event in events]
        except StateStoreError:
            raise
        except Exception as error:
            raise UserCodeError.at(self._operator, error, batch, events) from error
        if set(map(type, times)) != {int}:
            times = [_milliseconds(time) for time in times]
        if times:
            newest = max(times)
            if newest >= MAX_WATERMARK or min(times) <= MIN_WATERMARK:
                raise _no_time(newest if newest >= MAX_WATERMARK else min(times))
            if self._newest is None or newest > self._newest:
                self._newest = newest
            self._is_active = True
        return times

    def current(self, now: float) -> int | None:
        """The watermark: None while the split is idle, `MIN_WATERMARK` before its first event."""
        if self._is_active:
            self._is_active, self._active_at = False, now
        elif self._idle_after is not None and now - self._active_at >= self._idle_after:
            return None
        return MIN_WATERMARK if self._newest is None else self._newest - self._out_of_orderness - 1

    def snapshot(self) -> int | None:
        """What a new generator of the split needs to go on from here; JSON-able."""
        return self._newest


def _milliseconds(time: Any) -> int:
    if isinstance(time, datetime.datetime):
        if time.tzinfo is None:
            time = time.replace(tzinfo=datetime.UTC)
        since: datetime.timedelta = time - _EPOCH
        return since // _MILLISECOND
    if isinstance(time, int | float) and not isinstance(time, bool) and MIN_WATERMARK < time < MAX_WATERMARK:
        return int(time)
    raise _no_time(time)


def _no_time(time: object) -> UsageError:
    return UsageError(f"{time!r} is no event time: a timestamp is in milliseconds since 1970, or a datetime")
