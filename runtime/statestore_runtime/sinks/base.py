"""What a sink promises: what it was given before a checkpoint becomes visible with that checkpoint, once.

The two phases, driven by the job:

1. At a barrier `prepare` makes all that was written since the last one durable, not visible, and returns a transaction: whatever it takes
   to make it visible later. It is stored in the checkpoint.
2. When the checkpoint is complete, `commit` makes the transaction visible. It may be called again, by another process after a crash.

A transaction whose checkpoint failed is committed with the next one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

Transaction = Any
"""JSON-able."""


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a sink is given when it is opened.

    Attributes
    ----------
    job : str
        Name of the job.
    attempt : int
        Fencing token, greater than that of every earlier opening of the job.
    fresh : bool
        Whether the job starts from nothing, as far as this sink is concerned.
    transactions : list
        Of the restored checkpoint; each has to be committed, and may have been already.
    snapshot : Any
        What `snapshot` returned for the restored checkpoint.
    """

    job: str
    attempt: int
    fresh: bool = True
    transactions: tuple[Transaction, ...] = ()
    snapshot: Any = None


class Sink(ABC):
    """Takes a stream's events out of the job. One thread uses a sink."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def place(self) -> str | None:
        """Where the output is, shown at the end of a run; two sinks of a job can't have the same one."""
        return None

    @abstractmethod
    def open(self, context: SinkContext) -> None:
        """Commit the restored transactions and undo what later ones have left.

        Raises
        ------
        UsageError
            There is output of another run, and the sink was not told what to do with it.
        CorruptionError
            A transaction's data is gone.
        UnavailableError
            The place can't be written.
        """

    @abstractmethod
    def write(self, batch: list[Any]) -> None:
        """Take events. Raises UsageError when one can't be encoded, UnavailableError when the place can't be written."""

    def prepare(self) -> Transaction | None:
        """Make what was written durable; returns None when nothing was. Raises UnavailableError."""
        return None

    def snapshot(self) -> Any:
        """What `open` needs to go on from here: JSON-able; called after `prepare`."""
        return None

    def commit(self, transaction: Transaction) -> None:
        """Make a transaction visible; nothing happens when it is already.

        Raises
        ------
        CorruptionError
            Its data is gone.
        UnavailableError
            The place can't be written.
        """

    def close(self) -> None:
        """Release everything without committing; idempotent, and allowed before `open`."""
