"""By when something must have happened."""

from __future__ import annotations

from statestore.clock import Clock


class Deadline:
    """One deadline at a time, or none.

    Attributes
    ----------
    problem : str
        What is wrong once it is over.
    """

    def __init__(self, clock: Clock):
        self._clock = clock
        self._at: float | None = None
        self.problem = ""

    def set(self, seconds: float, problem: str = "") -> None:
        """Give it so much time from now on."""
        self._at, self.problem = self._clock.monotonic() + seconds, problem

    def clear(self) -> None:
        """It has happened."""
        self._at = None

    @property
    def is_over(self) -> bool:
        """Whether it has not happened in time."""
        return self._at is not None and self._clock.monotonic() >= self._at

    def seconds_left(self) -> float | None:
        """Until it is over; None when there is none."""
        return None if self._at is None else self._at - self._clock.monotonic()
