"""A clock that only moves when a test says so."""

from __future__ import annotations


class FakeClock:
    """Give it as `clock=` and move it.

    Parameters
    ----------
    time
        Unix time in seconds to begin with.
    """

    def __init__(self, time: float = 1_000_000.0):
        self._time, self._monotonic = time, 0.0

    def time(self) -> float:
        """Wall-clock time."""
        return self._time

    def monotonic(self) -> float:
        """Time since the clock was made."""
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._time += seconds
        self._monotonic += seconds

    def set_time(self, time: float) -> None:
        """Set the wall clock, also back; monotonic time stays as it is."""
        self._time = time
