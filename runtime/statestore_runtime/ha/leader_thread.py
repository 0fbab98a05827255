"""Runs an election beside the JobManager, which never waits for the store."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from statestore.clock import SystemClock
from statestore.errors import ClosedError, UnavailableError
from statestore_runtime.ha.election import Election, Outcome, Request, outcome_of
from statestore_runtime.ha.lease import Lease, LeaseStore

logger = logging.getLogger("statestore.ha")

HANGING_MAX = 4
"""So many calls of the store may hang before no more is begun: each holds a thread."""

LOOK_SECONDS = 0.25
"""The thread looks at the clock at least so often, also when nothing is due: the clock may be another one than that it sleeps by."""


class LeaseClock(SystemClock):
    """A clock whose monotonic time goes on while the machine sleeps, where there is such a one: leases run out then too."""

    def monotonic(self) -> float:
        """Seconds since the machine was started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else super().monotonic()


class LeaderThread:
    """An election in a thread of its own.

    All methods may be called in any thread, and none but `wait_for_leadership` and `close` waits for anything. The store's calls are made
    in further threads, so that one that hangs ends the leadership when the lease runs out, like one that fails.

    Parameters
    ----------
    election
        Nobody else may drive it.
    on_lost
        Called once for each leadership that has ended without `close`, with its token, in the election's thread: it should return soon. It
        is called a moment after the end: who acts asks `is_leader` before.
    """

    def __init__(self, election: Election, store: LeaseStore, *, on_lost: Callable[[int], None] | None = None):
        self._election, self._store, self._on_lost = election, store, on_lost
        self._events: queue.SimpleQueue[tuple[Request, Outcome | Exception] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._is_closing = self._has_ended = False
        # Of the election's thread: whose end is to be told still, the last that was told to have begun, and what was not answered yet.
        self._open_token: int | None = None
        self._told_token: int | None = None
        self._unanswered: set[Request] = set()
        self._thread = threading.Thread(target=self._run, name="statestore-election", daemon=True)

    def start(self) -> None:
        """Stand for election from now on."""
        self._thread.start()

    def is_leader(self) -> bool:
        """Whether this process leads now, by its own clock. To be asked just before acting: it may be over at any time."""
        return self.token is not None

    @property
    def token(self) -> int | None:
        """Fencing token of the leadership, None when this process does not lead now."""
        return None if self._is_closing else self._election.token

    @property
    def leader(self) -> Lease | None:
        """Who leads as far as it is known, with the address; None when nobody does."""
        return self._election.leader

    def wait_for_leadership(self, timeout_seconds: float | None = None) -> int | None:
        """Token of the leadership as soon as this process leads; None when it does not within the time.

        Raises
        ------
        ClosedError
            The election was closed.
        StateStoreError
            It has ended with this error, which no waiting mends: the lease can't be decoded, for instance.
        """
        token: int | None = None

        def is_decided() -> bool:
            nonlocal token
            token = self.token
            return token is not None or self._has_ended

        with self._changed:
            self._changed.wait_for(is_decided, timeout_seconds)
        if token is not None:
            return token
        if self._failure is not None:
            raise self._failure
        if self._has_ended:
            raise ClosedError("the election is closed")
        return None

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Lead no more from this instant, and let a standby in at once, if the store can be told so within the time; idempotent."""
        self._is_closing = True
        self._events.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            while not self._election.is_over:
                self._begin_what_is_due()
                self._tell()
                self._take_an_event(min(self._election.seconds_to_next(), LOOK_SECONDS))
        except Exception as error:
            logger.error("the election has ended: %s", error)
            self._failure = error
            self._election.resign()
        self._tell()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _begin_what_is_due(self) -> None:
        request = self._election.request()
        if request is None:
            return
        if len(self._unanswered) >= HANGING_MAX:
            reason = f"{len(self._unanswered)} calls hang"
            self._election.answer(request, UnavailableError("lease", "its store", reason))
            return
        self._unanswered.add(request)
        threading.Thread(target=self._call, args=(request,), name="statestore-lease", daemon=True).start()

    def _call(self, request: Request) -> None:
        """Do a request, in a thread of its own: it may hang for ever."""
        outcome: Outcome | Exception
        try:
            outcome = outcome_of(request, self._store)
        except Exception as error:
            outcome = error
        self._events.put((request, outcome))

    def _take_an_event(self, timeout_seconds: float) -> None:
        try:
            event = self._events.get(timeout=max(timeout_seconds, 0.001))
        except queue.Empty:
            return
        if event is None:
            self._election.resign()
            return
        request, outcome = event
        self._unanswered.discard(request)
        if isinstance(outcome, Exception) and not isinstance(outcome, UnavailableError):
            raise outcome
        self._election.answer(request, outcome)

    def _tell(self) -> None:
        """Let others know which leadership has begun or ended, also of one that ended before anybody was told that it had begun."""
        begun = self._election.last_token
        if begun != self._told_token:
            self._end_open()
            self._open_token = self._told_token = begun
            with self._changed:
                self._changed.notify_all()
        if self._election.token != self._open_token:
            self._end_open()

    def _end_open(self) -> None:
        lost, self._open_token = self._open_token, None
        if lost is None or self._is_closing or self._on_lost is None:
            return
        try:
            self._on_lost(lost)
        except Exception:
            logger.exception("what is done when the leadership is lost has failed")
