"""What a sink promises: what it was given before a checkpoint becomes visible with that checkpoint, once.

A job has one instance of a sink in each of its subtasks. The two phases, driven by the job:

1. At a barrier `prepare` makes all that was written since the last one durable, not visible, and returns a transaction: whatever it takes
   to make it visible later. It is stored in the checkpoint.
2. When the checkpoint is complete, `commit` makes the transaction visible. It may be called again, by another process after a crash, and by
   another subtask after a change of parallelism.

A transaction whose checkpoint failed is committed with the next one, after those prepared before it.
No checkpoint is complete before all subtasks have opened their sinks.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from statestore.clock import Clock, SystemClock
from statestore.errors import CorruptionError, IncompatibleStateError

logger = logging.getLogger("statestore_runtime.sinks")

Transaction = Any
"""JSON-able."""

S = TypeVar("S", bound="Sink")


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a sink is given when it is opened.

    Attributes
    ----------
    job : str
        Name of the job.
    attempt : int
        Fencing token, greater than that of every earlier opening of the job, and the same in all subtasks of one.
    subtask, parallelism : int
        Which one this is, from 0, and of how many.
    fresh : bool
        Whether the job starts from nothing, as far as this sink is concerned.
    transactions : tuple
        Those of the restored checkpoint that this subtask has to commit, in the order in which they were prepared, by whichever subtask.
        Each is given to one subtask, and may have been committed already.
    snapshots : Mapping of int to Any
        What `snapshot` returned in each subtask for the restored checkpoint; the same in all subtasks.
    finished : tuple
        Of a job that starts afresh: transactions of its last run's final checkpoint, given to subtask 0. They are committed if they were
        not; when their data is gone, it was committed, and whoever it was for has taken it since.
    run : str
        Names the run: the same after each of its restarts, another one when the job is started again.
    clock : Clock
        Gives monotonic time.
    """

    job: str
    attempt: int
    subtask: int = 0
    parallelism: int = 1
    fresh: bool = True
    transactions: tuple[Transaction, ...] = ()
    snapshots: Mapping[int, Any] = field(default_factory=dict)
    finished: tuple[Transaction, ...] = ()
    run: str = ""
    clock: Clock = field(default_factory=SystemClock)

    @property
    def is_first(self) -> bool:
        """Whether this subtask does what only one may do."""
        return self.subtask == 0


class Sink(ABC):
    """Takes a stream's events out of the job. One thread uses an instance."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def place(self) -> str | None:
        """Where the output is, shown at the end of a run; two sinks of a job can't have the same one."""
        return None

    def for_subtask(self: S, subtask: int) -> S:
        """An instance of a subtask's own, not open, of the sink that the job was built with.

        It is a shallow copy, so what an instance changes it makes in `open`.
        """
        return copy.copy(self)

    @abstractmethod
    def open(self, context: SinkContext) -> None:
        """Commit the restored transactions and undo what later ones have left.

        Other subtasks open at the same time. From here on, no older attempt makes anything visible.

        Raises
        ------
        UsageError
            There is output of another run, and the sink was not told what to do with it.
        CorruptionError
            A transaction's data is gone.
        UnavailableError
            The place can't be written.
        FencedError
            A newer attempt has opened its sinks.
        """

    @abstractmethod
    def write(self, batch: list[Any]) -> None:
        """Take events. Raises UsageError when one can't be encoded, UnavailableError when the place can't be written."""

    def prepare(self) -> Transaction | None:
        """Make what was written durable; returns None when nothing was. Raises UnavailableError, FencedError."""
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
            The place can't be written, or does not say whether it was.
        FencedError
            A newer attempt has opened its sinks.
        """

    def is_own(self, transaction: Transaction) -> bool:
        """Whether it looks like what this kind of sink prepares. Without an answer of its own, a sink takes all for its own."""
        return True

    def commit_restored(self, context: SinkContext, *, gone_level: int = logging.WARNING) -> None:
        """Commit what the restored checkpoint, or the last one of the run before, counts on; for `open`.

        Parameters
        ----------
        gone_level
            How to log that the last output of the run before is gone.

        Raises
        ------
        IncompatibleStateError
            In the restored checkpoint it was another kind of sink that had this one's uid.
        CorruptionError, UnavailableError, FencedError
            As `commit` raises them for the restored checkpoint.
        """
        for transaction in context.transactions:
            if not self.is_own(transaction):
                raise self.of_another()
            self.commit(transaction)
        for transaction in context.finished:
            if not self.is_own(transaction):
                logger.warning(
                    "%s: the last output of the run before was another sink's, and is left as it is", self.name
                )
                continue
            try:
                self.commit(transaction)
            except (
                CorruptionError
            ) as error:  # mostly it was committed, and moved or removed since by whoever it was for
                logger.log(gone_level, "the last output of the run before: %s", error)

    def of_another(self) -> IncompatibleStateError:
        """What to raise for a checkpoint in which another sink has this one's uid."""
        return IncompatibleStateError(
            f"{self.name}: in the checkpoint, another sink has this sink's uid: give each one an uid of its own, "
            "or start over with --restore none"
        )

    def close(self) -> None:
        """Release everything without committing; idempotent, and allowed before `open`."""
