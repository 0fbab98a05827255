"""When a checkpoint is due, and what its failure means: a state machine that neither reads nor writes anything.

At most one checkpoint is pending. The interval runs from beginning to beginning, the pause from end to beginning.
"""

from __future__ import annotations

from statestore.clock import Clock
from statestore.errors import FencedError, StateStoreError, UnavailableError


class CheckpointFailedError(StateStoreError, RuntimeError):
    """More checkpoints in a row have failed than `checkpointing.tolerable-failed` allows: mend the checkpoint storage."""

    exit_code = 3

    def __init__(self, failures: int, reason: object):
        self.failures, self.reason = failures, reason
        times = "the checkpoint" if failures == 1 else f"{failures} checkpoints in a row"
        super().__init__(f"{times} failed: {reason}; checkpointing.tolerable-failed says how many may")


class CheckpointCoordinator:
    """Decides when to begin a checkpoint, when to give it up, and when the job fails of it.

    Parameters
    ----------
    clock
        Gives monotonic time.
    interval_seconds
        From one beginning to the next; 0 is none but the first and the final one.
    min_pause_seconds
        Least time from an end, good or bad, to the next beginning.
    timeout_seconds
        After which a pending checkpoint is given up.
    tolerable_failed
        How many may fail in a row.

    Attributes
    ----------
    completed, failed : int
        Counts.
    is_pending : bool
        Whether a checkpoint has been begun and not ended.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        interval_seconds: float,
        min_pause_seconds: float = 0.0,
        timeout_seconds: float = 600.0,
        tolerable_failed: int = 0,
    ):
        self._clock = clock
        self._interval, self._min_pause = interval_seconds, min_pause_seconds
        self._timeout, self._tolerable = timeout_seconds, tolerable_failed
        self.completed = self.failed = 0
        self.is_pending = False
        self._failed_in_a_row = 0
        self._begun = clock.monotonic()  # the first checkpoint comes one interval after the start
        self._ended: float | None = None

    def is_due(self) -> bool:
        """Whether to begin one now."""
        if self.is_pending or self._interval <= 0:
            return False
        return self._clock.monotonic() >= self._begun + self._interval and self.seconds_to_pause() == 0

    def seconds_to_due(self) -> float | None:
        """Until one may be due or, while one is pending, overdue; None when neither will be."""
        now = self._clock.monotonic()
        if self.is_pending:
            at = self._overdue_at if now < self._overdue_at else self._overdue_at + self._timeout
            return max(0.0, at - now)
        if self._interval <= 0:
            return None
        return max(0.0, self._begun + self._interval - now, self.seconds_to_pause())

    def seconds_to_pause(self) -> float:
        """How long a checkpoint, even an urgent one, has to wait still after the one before."""
        if self._ended is None:
            return 0.0
        return max(0.0, self._ended + self._min_pause - self._clock.monotonic())

    @property
    def _overdue_at(self) -> float:
        # All moments are compared as such, so that whoever sleeps until one finds that it has come, however numbers are rounded.
        return self._begun + self._timeout

    def begin(self) -> None:
        """A checkpoint begins."""
        assert not self.is_pending, "a checkpoint is pending"
        self.is_pending, self._begun = True, self._clock.monotonic()

    def is_overdue(self) -> bool:
        """Whether the pending checkpoint has had its time."""
        return self.is_pending and self._clock.monotonic() >= self._overdue_at

    def is_stuck(self) -> bool:
        """Whether it has had twice its time, which only one that can't be given up any more gets."""
        return self.is_pending and self._clock.monotonic() >= self._overdue_at + self._timeout

    def complete(self) -> None:
        """The pending checkpoint is complete."""
        self._end()
        self.completed += 1
        self._failed_in_a_row = 0

    def fail(self, error: BaseException) -> None:
        """The pending checkpoint has failed.

        Raises
        ------
        FencedError
            Always when it was that: this attempt must stop.
        CheckpointFailedError, or `error` itself when waiting can't mend it
            Too many have failed in a row.
        """
        self._end()
        self.failed += 1
        self._failed_in_a_row += 1
        code = error.exit_code if isinstance(error, StateStoreError) else UnavailableError.exit_code
        if code == FencedError.exit_code:
            raise error
        if self._failed_in_a_row > self._tolerable:
            if code != UnavailableError.exit_code:
                raise error
            raise CheckpointFailedError(self._failed_in_a_row, error) from error

    def _end(self) -> None:
        assert self.is_pending, "no checkpoint is pending"
        self.is_pending, self._ended = False, self._clock.monotonic()
