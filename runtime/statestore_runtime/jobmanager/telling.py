"""How far a job is, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statestore.clock import Clock
from statestore_runtime.messages import Message, Progress, progress_of

PROGRESS_SECONDS = 0.25


class ProgressTeller:
    """Tells of it now and then.

    Attributes
    ----------
    seconds_spent : float
        What that has taken.
    """

    def __init__(self, clock: Clock, emit: Callable[[Message], object]):
        self._clock, self._emit = clock, emit
        self.seconds_spent = self._next = 0.0

    def tick(self, workers: Sequence[Progress], checkpoints: int) -> None:
        """Tell of it if that is due."""
        begun = self._clock.monotonic()
        if begun < self._next:
            return
        if workers:
            self._emit(progress_of(workers, checkpoints))
        ended = self._clock.monotonic()
        self.seconds_spent += ended - begun
        self._next = ended + PROGRESS_SECONDS

    def seconds_left(self) -> float:
        """Until it is due again."""
        return max(0.0, self._next - self._clock.monotonic())
