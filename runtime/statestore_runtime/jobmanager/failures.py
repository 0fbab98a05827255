"""How a job fails: what is told of an error, and the errors that have no other room."""

from __future__ import annotations

from statestore.errors import StateStoreError
from statestore_runtime.protocol import Declined, Failed

LOST = 11
"""Exit code of a job whose worker died without a word."""


class JobCancelledError(StateStoreError, RuntimeError):
    """Somebody cancelled the job: nothing after its last checkpoint counts."""

    exit_code = 12

    def __init__(self) -> None:
        super().__init__("cancelled before its end; go on with --restore latest")


class DeclinedError(StateStoreError, RuntimeError):
    """A worker could not do its part of a checkpoint; `exit_code` is that of its error."""

    def __init__(self, declined: Declined):
        self.exit_code = declined.exit_code  # type: ignore[misc]  # this error stands for many kinds
        super().__init__(declined.reason)


def failed_of(error: BaseException) -> Failed:
    """What a failure is told as."""
    is_known = isinstance(error, StateStoreError)
    text = str(error) if is_known else f"internal error: {type(error).__name__}: {error}"
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return Failed(
        error=" ".join(f"{text}{notes}".split()),
        exit_code=error.exit_code if isinstance(error, StateStoreError) else 1,
        is_known=is_known,
        cause=error,
    )
