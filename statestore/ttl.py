"""Time-to-live: how long a value stays after it was last touched, by which clock, and what is expired.

Invariants:
- both clocks of a store never go back, not even over a restart (each commit notes where they stand), so what has expired once never comes
  back, and a machine's clock that is set back lets nothing expire early;
- a value that was stored without a stamp, before its state had a time-out or had another time domain, counts as touched when the
  time-out was switched on; so does one with an older stamp. Switching it on for live state expires nothing at once.
"""

from __future__ import annotations

import datetime
from typing import Literal

import msgspec

from statestore.clock import Clock
from statestore.envelope import EVENT_TIME, NO_STAMP, PROCESSING_TIME, stamp_of
from statestore.errors import UsageError
from statestore.units import parse_duration

TimeDomain = Literal["processing-time", "event-time"]
UpdatePolicy = Literal["on-create-and-write", "on-read-and-write"]

_DOMAINS: dict[TimeDomain, int] = {"processing-time": PROCESSING_TIME, "event-time": EVENT_TIME}
_NAMES = {number: name for name, number in _DOMAINS.items()}


def domain_name(number: int) -> TimeDomain | None:
    """Time domain with a number in envelopes, None for `NO_STAMP`."""
    return _NAMES.get(number)


class TimeToLive(msgspec.Struct, frozen=True):
    """A state's time-out.

    Parameters
    ----------
    after
        "500ms", "1h", "7d", seconds, or a timedelta; 0 is never.
    update
        What keeps a value alive: writing it, or reading it as well.
    time
        The machine's clock, or the event time that the program tells the store.

    Raises
    ------
    UsageError
        An argument is none of these.
    """

    after: str | float | datetime.timedelta
    update: UpdatePolicy = "on-create-and-write"
    time: TimeDomain = "processing-time"

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise UsageError(f"a time-to-live can't be negative: {self.after!r}")
        for name, value, known in (
            ("update", self.update, UpdatePolicy.__args__),  # type: ignore[attr-defined]
            ("time", self.time, TimeDomain.__args__),  # type: ignore[attr-defined]
        ):
            if value not in known:
                raise UsageError(f"a time-to-live's {name} is {value!r}, it must be {' or '.join(map(repr, known))}")

    @property
    def seconds(self) -> float:
        """How long values live; 0 is for ever."""
        if isinstance(self.after, datetime.timedelta):
            return self.after.total_seconds()
        if isinstance(self.after, str):
            try:
                return parse_duration(self.after)
            except ValueError as error:
                raise UsageError(f"time-to-live: {error}") from None
        return self.after


Ttl = TimeToLive | str | float | datetime.timedelta | None
"""What a `ttl=` argument takes."""


class Times(msgspec.Struct, frozen=True, array_like=True):
    """Where a store's clocks stood at a commit, in milliseconds."""

    processing_ms: int = 0
    event_ms: int | None = None
    """None before the program told any."""


class StateClock:
    """The two clocks of a store. Neither goes back."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._processing_ms = 0
        self._event_ms: int | None = None

    def go_on_from(self, times: Times) -> None:
        """Start where the restored commit stood."""
        self._processing_ms, self._event_ms = times.processing_ms, times.event_ms

    def processing_ms(self) -> int:
        """Processing time."""
        now = int(self._clock.time() * 1000)
        if now > self._processing_ms:
            self._processing_ms = now
        return self._processing_ms

    def advance_event_ms(self, event_ms: int) -> None:
        """Event time has come to `event_ms`; an earlier time changes nothing."""
        if self._event_ms is None or event_ms > self._event_ms:
            self._event_ms = event_ms

    def now_ms(self, domain: TimeDomain) -> int | None:
        """Time in a domain, None while it is not known."""
        return self.processing_ms() if domain == "processing-time" else self._event_ms

    def times(self) -> Times:
        """Both, for a commit."""
        return Times(self.processing_ms(), self._event_ms)


class StoppedClock(StateClock):
    """Both clocks as they stood at a commit."""

    def __init__(self, times: Times):
        self.go_on_from(times)

    def processing_ms(self) -> int:
        """Processing time of the commit."""
        return self._processing_ms


class StoredTtl(msgspec.Struct, frozen=True, array_like=True):
    """What is stored about a state that has, or once had, a time-out."""

    domain: int
    """As in the envelope; `NO_STAMP` when it was switched off."""
    since_ms: int | None
    """When it was switched on; None while event time is not known."""
    after_ms: int
    """How long values live; 0 when it was switched off."""


SWITCHED_OFF = StoredTtl(NO_STAMP, None, 0)


class Expiry:
    """Tells what is expired of one state."""

    __slots__ = ("_clock", "_time", "domain", "since_ms", "touches_on_read", "ttl_ms")

    def __init__(self, ttl: TimeToLive, clock: StateClock, before: StoredTtl | None):
        self._clock = clock
        self.ttl_ms = max(1, round(ttl.seconds * 1000))
        self.touches_on_read = ttl.update == "on-read-and-write"
        self.domain, self._time = _DOMAINS[ttl.time], ttl.time
        goes_on = before is not None and before.domain == self.domain
        self.since_ms = before.since_ms if before is not None and goes_on else self.now()

    @classmethod
    def at(cls, stored: StoredTtl | None, times: Times) -> Expiry | None:
        """What tells the expired as of a commit, of a state about which this is stored; None when nothing expires."""
        if stored is None or stored.domain == NO_STAMP:
            return None
        ttl = TimeToLive(
            stored.after_ms / 1000, time="event-time" if stored.domain == EVENT_TIME else "processing-time"
        )
        return cls(ttl, StoppedClock(times), stored)

    def now(self) -> int | None:
        """Time in the state's domain in milliseconds, None while it is not known."""
        return self._clock.now_ms(self._time)

    def to_store(self) -> StoredTtl:
        """What to store; once event time is known, it counts from there."""
        if self.since_ms is None:
            self.since_ms = self.now()
        return StoredTtl(self.domain, self.since_ms, self.ttl_ms)

    def touched(self, stored: bytes) -> int | None:
        """When a stored value was last touched, as far as that counts; None when time is not known yet."""
        domain, stamp = stamp_of(stored)
        if domain == self.domain and (self.since_ms is None or stamp > self.since_ms):
            return stamp
        return self.since_ms

    def touched_each(self, stored: bytes, ages: list[int], count: int) -> list[int | None]:
        """The same of each of `count` elements stored together, which are `ages` older than the stamp."""
        newest, since = self.touched(stored), self.since_ms
        if newest is None or newest == since or len(ages) != count:
            return [newest] * count
        return [newest - age if since is None else max(newest - age, since) for age in ages]

    def has_passed(self, touched: int | None, now: int | None) -> bool:
        """Whether what was touched then is expired."""
        return touched is not None and now is not None and touched + self.ttl_ms <= now

    def is_expired(self, stored: bytes) -> bool:
        """Whether a stored value is expired."""
        return self.has_passed(self.touched(stored), self.now())
