"""How a job fails: what is told of an error, what follows from it, and the errors that have no other room."""

from __future__ import annotations

import logging
from collections import deque

from statestore.errors import StateStoreError, UnavailableError
from statestore_runtime.jobmanager.restart import RestartStrategy
from statestore_runtime.protocol import Declined, Failed

LOST = 11
"""Exit code of a job whose worker died without a word."""

INTERNAL = 1
"""That of an error that is none of statestore's own."""

REMEMBERED_FAILURES = 16

restarts_logger = logging.getLogger("statestore_runtime.jobmanager.restarts")
"""Of its own, so that whoever shows them can silence it."""


class JobCancelledError(StateStoreError, RuntimeError):
    """Somebody cancelled the job: nothing after its last checkpoint counts."""

    exit_code = 12

    def __init__(self) -> None:
        super().__init__("cancelled before its end; go on with --restore latest")


class DeclinedError(StateStoreError, RuntimeError):
    """A worker could not do its part of a checkpoint; `exit_code` is that of its error. An internal one may pass, as everywhere."""

    def __init__(self, declined: Declined):
        code = UnavailableError.exit_code if declined.exit_code == INTERNAL else declined.exit_code
        self.exit_code = code  # type: ignore[misc]  # this error stands for many kinds
        super().__init__(declined.reason)


class SavepointFailedError(StateStoreError, RuntimeError):
    """A job has stopped, and its last checkpoint could not be copied; `exit_code` is that of the copy's error."""

    def __init__(self, job: str, checkpoint: int, error: BaseException):
        code = error.exit_code if isinstance(error, StateStoreError) else UnavailableError.exit_code
        self.exit_code = code  # type: ignore[misc]  # this error stands for many kinds
        super().__init__(
            f"job '{job}' stops with checkpoint {checkpoint}, which could not be copied: {failed_of(error).error}; "
            f"copy it with statestore savepoint {job} DIR, or go on with --restore latest"
        )


def failed_of(error: BaseException) -> Failed:
    """What a failure is told as."""
    is_known = isinstance(error, StateStoreError)
    text = str(error) if is_known else f"internal error: {type(error).__name__}: {error}"
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return Failed(
        error=" ".join(f"{text}{notes}".split()),
        exit_code=error.exit_code if isinstance(error, StateStoreError) else INTERNAL,
        is_known=is_known,
        cause=error,
    )


class Failures:
    """What a job has failed with, and whether it starts again.

    Parameters
    ----------
    resumed
        Whether the job has run before, under another JobManager.

    Attributes
    ----------
    last : deque of Failed
        The last ones, oldest first.
    restarts : int
        How many of all were followed by another start.
    has_run : bool
        Whether the job has ever got so far as to read its sources, under this JobManager.
    """

    def __init__(self, job: str, strategy: RestartStrategy, *, resumed: bool):
        self._job, self._strategy, self._resumed, self.has_run = job, strategy, resumed, False
        self.last: deque[Failed] = deque(maxlen=REMEMBERED_FAILURES)
        self.restarts = 0
        self._at_events: int | None = None

    @property
    def ask_for_care(self) -> bool:
        """Whether a function has failed, and the job is not past the place yet."""
        return self._at_events is not None

    def add(self, failure: Failed, events: int) -> float | None:
        """Take one that came after so many events; returns the seconds until the next start, None when there will be none."""
        self.last.append(failure)
        if failure.is_users and not failure.is_reproduced:
            self._at_events = events
        delay = self._strategy.next_delay() if self._may_pass(failure) else None
        if delay is not None:
            self.restarts += 1
            message = "job '%s' has failed: %s; restart %d in %.1f s"
            restarts_logger.warning(message, self._job, failure.error, self.restarts, delay)
        return delay

    def _may_pass(self, failure: Failed) -> bool:
        if not (self.has_run or self._resumed) and failure.exit_code != LOST:
            return False  # it would fail again: a wrong address, a server that is not there
        if failure.is_users:
            return not failure.is_reproduced
        return not failure.is_known or failure.exit_code == UnavailableError.exit_code

    def succeeded(self, events: int) -> bool:
        """A checkpoint of so many events is complete; returns whether no more care is needed from now on."""
        self._strategy.succeeded()
        is_past = self._at_events is not None and events > self._at_events
        if is_past:
            self._at_events = None
        return is_past
