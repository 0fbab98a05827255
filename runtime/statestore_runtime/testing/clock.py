"""The clock of a job under test."""

from __future__ import annotations

import threading
import time

from statestore.testing.clock import FakeClock

_BUSY_THREADS = ("statestore-checkpoint", "statestore-claim", "statestore-savepoint")
_LOOK_SECONDS = 0.0002

SETTLED = 2
"""So many rounds in a row in which nothing happened mean that nothing will."""


class HarnessClock(FakeClock):
    """Moves when a script says so; and when nothing else can happen, such as for a source with a rate limit.

    Attributes
    ----------
    quiet_rounds : int
        Rounds of all workers since something happened last.
    """

    quiet_rounds = 0

    def sleep(self, seconds: float) -> None:
        """Nothing happened in this round. No time passes while a thread is at work: how long it takes differs each time."""
        if any(thread.name.startswith(_BUSY_THREADS) for thread in threading.enumerate()):
            self.quiet_rounds = 0
            time.sleep(_LOOK_SECONDS)
            return
        self.quiet_rounds += 1
        if self.quiet_rounds > SETTLED + 1:
            self.advance(seconds)

    @property
    def is_settled(self) -> bool:
        """Whether all that was begun has come to its end."""
        return self.quiet_rounds >= SETTLED
