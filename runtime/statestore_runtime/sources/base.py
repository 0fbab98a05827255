"""What a source promises: replayable batches, and a position that belongs to exactly the batches handed out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from statestore.errors import StateStoreError

OnError = Literal["fail", "skip", "dead-letter"]

TEXT_LIMIT = 200
"""Characters of a bad record that an error message shows."""


class BadRecordError(StateStoreError, ValueError):
    """A record can't be read as what it is declared to be: mend it, or say what to do with such records."""

    exit_code = 8

    def __init__(self, file: str, line: int, problem: str, text: str = ""):
        self.file, self.line, self.problem, self.text = file, line, problem, text
        shown = text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}…"
        super().__init__(
            f"bad record in {file}, line {line}: {problem}{f'; the line is {shown!r}' if text else ''}; "
            "mend it, or set source.on-error to skip or dead-letter"
        )


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that could not be read."""

    file: str
    line: int
    """Number of its first line, from 1."""
    text: str
    error: str


class SourceContext:
    """What a source is given when it is opened; it counts the records that could not be read.

    Parameters
    ----------
    on_error
        What happens to a bad record.
    dead_letter
        Takes bad records when `on_error` is "dead-letter".
    bad_records
        How many there were before, as restored.
    """

    def __init__(
        self,
        on_error: OnError = "fail",
        dead_letter: Callable[[list[DeadLetter]], None] | None = None,
        bad_records: int = 0,
    ):
        self._on_error, self._dead_letter = on_error, dead_letter
        self.bad_records = bad_records

    def bad_record(self, file: str, line: int, text: str, problem: str) -> None:
        """Deal with a record that can't be read. Raises BadRecordError when the policy is "fail"."""
        if self._on_error == "fail":
            raise BadRecordError(file, line, problem, text)
        self.bad_records += 1
        if self._on_error == "dead-letter" and self._dead_letter is not None:
            self._dead_letter([DeadLetter(file, line, text, problem)])


class Source(ABC):
    """A sequence of events that can be read again from a position.

    The same position always gives the same events, in batches that may be cut differently. One thread uses a source.
    """

    on_error: OnError | None = None
    """What happens to a bad record; None: as the configuration says."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @abstractmethod
    def open(self, position: Any | None, context: SourceContext) -> None:
        """Go to `position` (as `position()` gave it), or to the beginning when it is None.

        Raises
        ------
        UsageError
            What is read has changed, so that the position means nothing any more.
        UnavailableError, ConfigError
            It can't be reached, or is not there.
        """

    @abstractmethod
    def next_batch(self) -> list[Any] | None:
        """The next events; empty when there is nothing just now, None at the end."""

    @abstractmethod
    def position(self) -> Any:
        """Where the next batch begins: JSON-able, after exactly the events of the batches returned so far."""

    def close(self) -> None:
        """Release what `open` took; idempotent, and allowed before `open`."""
