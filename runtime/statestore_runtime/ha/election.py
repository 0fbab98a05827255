"""Leader election by a lease: a state machine that neither waits nor reads nor writes anything by itself.

Invariants:
- a leader counts its lease from before it began to write it, and gives it up after four fifths of its time, by its own clock; everybody
  else leaves the lease alone for the whole of its time, from when it has been seen. So at no time are there two leaders, as long as no
  clock runs a fifth faster than another. No clock need show the right time;
- each change of the lease is a compare-and-swap: who has slept, or whose writing was on its way for long, changes nothing that has changed;
- tokens grow with each leadership, and no two have the same. A leadership that is over never comes back with its token;
- what is not known (no answer, a failure) is never taken for success: the lease is read before it is written again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from statestore.clock import Clock
from statestore.errors import ConfigError, UnavailableError
from statestore_runtime.ha.lease import Lease, LeaseStore

logger = logging.getLogger("statestore.ha")

LEADER_SHARE = 0.8
"""Share of the lease's time that its holder uses. The rest is for clocks that run fast or slow."""

RETRIES = 5
"""A standby looks, and a leader that failed to renew tries again, this many times in a renew interval."""

Role = Literal["leader", "standby"]


@dataclass(frozen=True, eq=False)
class Read:
    """Read the lease. `begun` is when the request was made, in monotonic time."""

    begun: float


@dataclass(frozen=True, eq=False)
class Replace:
    """Set the lease if `expected` is there."""

    begun: float
    expected: Lease | None
    lease: Lease


Request = Read | Replace
Outcome = Lease | bool | UnavailableError | None
"""What came of a request: the lease or None of a `Read`, whether it was set of a `Replace`, or that this can't be told."""


@dataclass(frozen=True)
class Leadership:
    """A leadership: its token, and until when it lasts unless it is renewed, in monotonic time."""

    token: int
    until: float


class Election:
    """One candidate's part in the election.

    Whoever drives it asks for the `request` that is due, does it, and gives the outcome to `answer`; `tick` does that in one call for a
    store that answers at once. All of it in one thread, but `is_leader`, `token` and `leader` may be called in any.

    Parameters
    ----------
    clock
        Gives monotonic time, which goes on while the process stands still.
    candidate
        Id of this candidate, never used before and by nobody else: every start of a process is another one.
    address
        Where it is reached as the leader.
    lease_seconds
        How long others leave the lease alone, and about the time until a standby replaces a leader that died.
    renew_seconds
        How often the leader renews it.
    above
        Tokens are greater than this.
    can_forget
        Whether the store may lose a lease; where there is none, one lease time passes before a new one is taken.

    Raises
    ------
    ConfigError
        The renew interval leaves no time for a second try.
    """

    def __init__(
        self,
        clock: Clock,
        candidate: str,
        *,
        address: str = "",
        lease_seconds: float = 15.0,
        renew_seconds: float = 5.0,
        above: int = 0,
        can_forget: bool = False,
    ):
        self.usable_seconds = lease_seconds * LEADER_SHARE
        if not 0 < 2 * renew_seconds <= self.usable_seconds:
            raise ConfigError(
                f"{renew_seconds:g} s is not between 0 and {self.usable_seconds / 2:g} s, "
                f"which is {LEADER_SHARE / 2:g} of high-availability.lease-duration",
                key="high-availability.renew-interval",
            )
        self.candidate, self.address = candidate, address
        self.lease_seconds, self.renew_seconds = lease_seconds, renew_seconds
        self.retry_seconds = renew_seconds / RETRIES
        self._clock, self._can_forget = clock, can_forget
        self._leadership: Leadership | None = None  # replaced as a whole: other threads look at it
        self._seen: Lease | None = None
        self._seen_since: float | None = None  # None: nothing was read yet
        self._greatest_token, self._sequence = above, 0
        self._in_flight: Request | None = None
        self._due = clock.monotonic()
        self._next: Literal["read", "write"] = "read"
        self._is_resigning = self.is_over = False
        self.last_token: int | None = None
        """Token of this candidate's last leadership, which may be over."""

    # What anybody may ask

    def is_leader(self) -> bool:
        """Whether this candidate leads now, by its own clock. To be asked just before acting: it may be over at any time."""
        return self.token is not None

    @property
    def token(self) -> int | None:
        """Fencing token of this candidate's leadership, None when it does not lead now."""
        leadership = self._leadership
        return leadership.token if leadership is not None and self._clock.monotonic() < leadership.until else None

    @property
    def role(self) -> Role:
        """What this candidate is now."""
        return "leader" if self.is_leader() else "standby"

    @property
    def leader(self) -> Lease | None:
        """The lease that was seen last, with the leader's address, None when there is no leader; it may be over by now."""
        lease = self._seen
        return None if lease is None or lease.released else lease

    # Driving it

    def tick(self, store: LeaseStore) -> float:
        """Do all that is due, and tell in how many seconds to come again. For a store that answers at once or not at all."""
        while (request := self.request()) is not None:
            self.answer(request, outcome_of(request, store))
        return self.seconds_to_next()

    def request(self) -> Request | None:
        """What is to be done with the store now; None when nothing is due, or the request before is not answered yet.

        A request without an answer for the time of a lease is given up, and what becomes of it does not matter any more.
        """
        now = self._clock.monotonic()
        self._end_leadership_if_over(now)
        if self._in_flight is not None and now - self._in_flight.begun >= self.lease_seconds:
            self._after_failure(self._in_flight, now, f"no answer for {self.lease_seconds:g} s")
        if self._in_flight is not None or now < self._due or self.is_over:
            return None
        if self._is_resigning:
            self._in_flight = self._release(now)
        elif self._next == "read":
            self._in_flight = Read(now)
        else:
            self._in_flight = Replace(now, self._seen, self._new_lease())
        return self._in_flight

    def answer(self, request: Request, outcome: Outcome) -> None:
        """Take the outcome of a request; that of one that was given up changes nothing."""
        now = self._clock.monotonic()
        self._end_leadership_if_over(now)
        if request is not self._in_flight:
            return
        if isinstance(outcome, UnavailableError):
            self._after_failure(request, now, outcome)
            return
        self._in_flight = None
        if isinstance(request, Read):
            assert not isinstance(outcome, bool)
            self._after_read(outcome, now)
        else:
            self._after_replace(request, outcome is True, now)

    def seconds_to_next(self) -> float:
        """In how many seconds something is due: a request, giving one up, or the end of the leadership."""
        if self.is_over:
            return self.lease_seconds
        times = [self._due if self._in_flight is None else self._in_flight.begun + self.lease_seconds]
        if self._leadership is not None:
            times.append(self._leadership.until)
        return max(0.0, min(times) - self._clock.monotonic())

    def resign(self) -> None:
        """Lead no more, and let others in at once if the store can be told: `is_over` is True when that has been tried."""
        self._is_resigning = True
        self._due = self._clock.monotonic()
        self._leadership = None

    # How it goes on

    def _after_read(self, lease: Lease | None, now: float) -> None:
        self._see(lease, now)
        leadership = self._leadership
        if leadership is not None:
            if lease is None or (lease.holder, lease.token) != (self.candidate, leadership.token):
                self._end_leadership("the lease is not its own any more")
            else:  # perhaps a later one than was known: it is no reason to lead longer, but can be renewed
                self._next, self._due = "write", now
                return
        if self._is_free(lease, now):
            self._next, self._due = "write", now
        else:
            expires = self._since() + (self.lease_seconds if lease is None else lease.seconds)
            self._next, self._due = "read", min(now + self.retry_seconds, expires)

    def _is_free(self, lease: Lease | None, now: float) -> bool:
        """Whether a standby may take over."""
        if lease is None:
            return not self._can_forget or now - self._since() >= self.lease_seconds
        return lease.released or lease.holder == self.candidate or now - self._since() >= lease.seconds

    def _after_replace(self, request: Replace, was_set: bool, now: float) -> None:
        if was_set:
            self._see(request.lease, now)
        if self._is_resigning:
            self.is_over, self._due = request.lease.released, now
        elif not was_set:  # by one of ours, perhaps, that was given up
            self._next, self._due = "read", now
        elif now < (until := request.begun + self.usable_seconds) and self._is_good(request):
            if self._leadership is None:
                logger.info("%s leads, with token %d", self.candidate, request.lease.token)
                self.last_token = request.lease.token
            self._leadership = Leadership(request.lease.token, until)
            self._next, self._due = "write", request.begun + self.renew_seconds
        else:  # it took too long; another leadership may begin at once, as nobody else has the lease
            self._next, self._due = "write", now

    def _is_good(self, request: Replace) -> bool:
        """Whether a lease that was set makes a leader: not if it renews one whose leadership has ended in the meantime."""
        return self._leadership is not None or request.expected is None or request.lease.token > request.expected.token

    def _after_failure(self, request: Request, now: float, reason: object) -> None:
        logger.info("%s: the lease could not be %s: %s", self.candidate, type(request).__name__.lower(), reason)
        self._in_flight = None
        self._next, self._due = "read", now + self.retry_seconds
        self.is_over = self._is_resigning

    def _see(self, lease: Lease | None, now: float) -> None:
        """Remember a lease, and since when it is there as far as this candidate can tell: since it has the answer, not since it asked."""
        if lease != self._seen or self._seen_since is None:
            self._seen, self._seen_since = lease, now
        if lease is not None:
            self._greatest_token = max(self._greatest_token, lease.token)

    def _since(self) -> float:
        assert self._seen_since is not None, "nothing was read"
        return self._seen_since

    def _new_lease(self) -> Lease:
        """The next lease to write: a renewal of a leader's, or the first of another leadership."""
        self._sequence += 1
        token = self._greatest_token + 1 if self._leadership is None else self._leadership.token
        return Lease(
            token=token,
            holder=self.candidate,
            sequence=self._sequence,
            seconds=self.lease_seconds,
            address=self.address,
        )

    def _release(self, now: float) -> Replace | None:
        """The last request of a candidate that resigns, if the lease is its own."""
        lease = self._seen
        if lease is None or lease.holder != self.candidate:
            self.is_over = True
            return None
        self._sequence += 1
        released = Lease(
            token=lease.token, holder=self.candidate, sequence=self._sequence, seconds=lease.seconds, released=True
        )
        return Replace(now, lease, released)

    def _end_leadership_if_over(self, now: float) -> None:
        if self._leadership is not None and now >= self._leadership.until:
            self._end_leadership("its lease was not renewed in time")

    def _end_leadership(self, reason: str) -> None:
        assert self._leadership is not None
        logger.warning("%s leads no more (token %d): %s", self.candidate, self._leadership.token, reason)
        self._leadership = None


def outcome_of(request: Request, store: LeaseStore) -> Outcome:
    """Do a request."""
    try:
        if isinstance(request, Read):
            return store.read()
        return store.replace(request.expected, request.lease)
    except UnavailableError as error:
        return error
