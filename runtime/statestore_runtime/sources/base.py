"""What a source promises: splits, each read by one worker, and positions that belong to exactly the events handed out.

A source names its splits: files, partitions of a topic, streams. The runtime gives each split to a worker, which reads it with a
`SplitReader`, and keeps a position per split in the checkpoint. So a split goes on in another worker where it was left in the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import msgspec

from statestore.clock import Clock, SystemClock
from statestore.errors import ConfigError, StateStoreError, UsageError

OnError = Literal["fail", "skip", "dead-letter"]
Unit = Literal["line", "row", "offset", "id"]
"""What counts the records of a source."""

DEFAULT_BATCH_SIZE = 256
"""A batch, with all that is made of it, should stay in the processor's cache: more costs a fifth of the speed."""

DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding JSON raises, or converting to a type, when a record is bad."""

TEXT_LIMIT = 200
"""Characters of a bad record that an error message shows."""


class BadRecordError(StateStoreError, ValueError):
    """A record can't be read as what it is declared to be: mend it, or say what to do with such records.

    Parameters
    ----------
    source
        File, stream or partition.
    unit
        What `number` counts.
    number
        Which record of the source: its first line or its row, from 1, its offset or its id.
    problem
        What is wrong.
    text
        The record, as far as it is text.
    """

    exit_code = 8

    def __init__(self, source: str, unit: Unit, number: int | str, problem: str, text: str = ""):
        self.source, self.unit, self.number, self.problem, self.text = source, unit, number, problem, text
        shown = text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}…"
        what = unit if unit in ("line", "row") else "record"
        super().__init__(
            f"bad record in {source}, {unit} {number}: {problem}{f'; the {what} is {shown!r}' if text else ''}; "
            "mend it, or set source.on-error to skip or dead-letter"
        )


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record that could not be read. Its place is given in the unit of its source, the other units are None."""

    source: str
    """File, stream or partition."""
    line: int | None = None
    """Number of its first line, from 1."""
    row: int | None = None
    """Number of its row, from 1."""
    offset: int | None = None
    id: str | None = None
    text: str = ""
    error: str = ""


class SourceContext:
    """What a worker gives a source with each split; it counts the records that could not be read. One per source and worker.

    Parameters
    ----------
    on_error
        What happens to a bad record.
    dead_letter
        Takes bad records when `on_error` is "dead-letter".
    bad_records
        How many there were before, as restored.
    clock
        The worker's.
    """

    def __init__(
        self,
        on_error: OnError = "fail",
        dead_letter: Callable[[list[DeadLetter]], None] | None = None,
        bad_records: int = 0,
        clock: Clock | None = None,
    ):
        self._on_error, self._dead_letter = on_error, dead_letter
        self.bad_records = bad_records
        self.clock: Clock = clock or SystemClock()
        self._is_replaying = False

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Pass over bad records in silence within a `with` block: they are read again, and have been dealt with."""
        self._is_replaying = True
        try:
            yield
        finally:
            self._is_replaying = False

    def bad_record(self, source: str, unit: Unit, number: int | str, text: str, problem: str) -> None:
        """Deal with a record that can't be read. Raises BadRecordError when the policy is "fail"."""
        if self._is_replaying:
            return
        if self._on_error == "fail":
            raise BadRecordError(source, unit, number, problem, text)
        self.bad_records += 1
        if self._on_error == "dead-letter" and self._dead_letter is not None:
            place: dict[str, Any] = {unit: number}
            self._dead_letter([DeadLetter(source, **place, text=text, error=problem)])


class SplitReader(ABC):
    """Reads one split from a position on. One thread uses it."""

    @abstractmethod
    def next_batch(self) -> list[Any] | None:
        """The next events; empty when there is nothing just now, None at the end of the split.

        Events are a list; those of a source made by `record_batches` are the rows of a pyarrow.RecordBatch.

        Raises
        ------
        BadRecordError
            A record can't be read, and the policy is "fail".
        UsageError
            What comes next has been removed or replaced.
        UnavailableError, CorruptionError
            It can't be reached, or is damaged.
        """

    @abstractmethod
    def position(self) -> Any:
        """Where the next batch begins: JSON-able, after exactly the events of the batches returned so far."""

    def close(self) -> None:
        """Release what was taken; idempotent."""


class Source(ABC):
    """Events that can be read again from a position, in one or more splits.

    The same position of a split always gives the same events, in batches that may be cut differently. Each worker has a source object of
    its own; what one of them learns while it discovers or reads must be in the splits' names and positions. One thread uses a source.

    Attributes
    ----------
    on_error : "fail", "skip", "dead-letter" or None
        What happens to a bad record; None: as the configuration says.
    rate_limit : float or None
        Events per second and worker, at most.
    discovery_interval : float or None
        Seconds between looks for new splits. None: one look at the start of a run, so that the source ends when its splits have.
    is_concurrent : bool
        Whether a worker reads its splits side by side, or one after the other in their order.
    resumes_finished : bool
        Whether a split that was read to its end is looked at again after a restore, as there may be more of it.
    """

    on_error: OnError | None = None
    rate_limit: float | None = None
    discovery_interval: float | None = None
    is_concurrent: bool = True
    resumes_finished: bool = True

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @abstractmethod
    def discover(self, known: Collection[str]) -> list[str]:
        """Names of the splits that are not in `known`, in their order. Called in one worker only.

        Parameters
        ----------
        known
            All splits there were, also those that are finished.

        Raises
        ------
        ConfigError, UsageError
            There is nothing to read, or not what there was.
        UnavailableError
            What should be looked at can't be reached.
        """

    @abstractmethod
    def read(self, split: str, position: Any | None, context: SourceContext) -> SplitReader:
        """Begin to read a split in the worker that it was given to.

        Parameters
        ----------
        split
            Its name, as `discover` gave it.
        position
            As `SplitReader.position` gave it, or None: from the beginning of the split.
        context
            What happens to bad records, and the clock.

        Raises
        ------
        UsageError
            The split has changed, so that the position means nothing any more.
        UnavailableError, ConfigError
            It can't be reached, or is not there.
        """

    def close(self) -> None:
        """Release what the readers share, when they are closed; idempotent, and allowed before `read`."""

    def _set_options(
        self, on_error: OnError | None = None, rate_limit: float | None = None, discovery_interval: float | None = None
    ) -> None:
        """Check and keep what many sources have. Raises ConfigError or UsageError when one is no good."""
        if on_error is not None and on_error not in get_args(OnError):
            known = ", ".join(get_args(OnError))
            raise ConfigError(f"on_error is '{on_error}'", key="source.on-error", hint=f"known: {known}")
        self.on_error = on_error
        self.rate_limit = _positive("rate_limit", rate_limit)
        self.discovery_interval = _positive("discovery_interval", discovery_interval)


class FixedSplitsSource(Source):
    """Base of a source with a number of splits that the program sets, one unless it says more.

    A subclass makes `read_part`. Events must not move from one part to another, so the number stays as it is as long as the job's
    checkpoints are to be restored.
    """

    def __init__(self, splits: int = 1):
        if splits < 1:
            raise UsageError(f"splits is {splits}, it must be at least 1")
        self.splits = splits

    @abstractmethod
    def read_part(self, part: int, position: Any | None, context: SourceContext) -> SplitReader:
        """As `read`; `part` counts from 0."""

    def discover(self, known: Collection[str]) -> list[str]:
        """All splits at the first time. Raises UsageError when there was another number of them."""
        names = [f"{part}/{self.splits}" for part in range(self.splits)]
        strange = next((name for name in known if name not in names), None)
        if strange is not None:
            raise UsageError(
                f"{self.name} has splits={self.splits}, the checkpoint was made with {strange.rpartition('/')[2]}: "
                "set it as it was, or start over with --restore none"
            )
        return [name for name in names if name not in known]

    def read(self, split: str, position: Any | None, context: SourceContext) -> SplitReader:
        """Begin to read a part."""
        return self.read_part(int(split.partition("/")[0]), position, context)


def checked_batch_size(batch_size: int) -> int:
    """`batch_size` itself. Raises UsageError unless it is positive."""
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}, it must be at least 1")
    return batch_size


def _positive(name: str, value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise UsageError(f"{name} is {value}, it must be more than 0")
    return value
