"""How far the restoring of a state is, and when it will be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from statestore.checkpoint.manifest import Part
from statestore.clock import Clock

ENTRIES_PER_COUNT = 5_000
SECONDS_BETWEEN = 0.25


@dataclass(frozen=True, slots=True)
class RestoreProgress:
    """How far the restoring of a checkpoint is."""

    bytes_done: int
    """Of the checkpoint's files, in proportion to the entries."""
    bytes_total: int
    entries: int
    """Restored so far."""
    seconds: float
    """Since it began."""

    @property
    def eta_seconds(self) -> float | None:
        """Seconds that are probably left, None while that can't be told."""
        if self.bytes_done == 0:
            return None
        return self.seconds * (self.bytes_total - self.bytes_done) / self.bytes_done


OnRestoreProgress = Callable[[RestoreProgress], object]


class RestoreMeter:
    """Counts what is restored of a checkpoint's part, and tells it at most every `SECONDS_BETWEEN`."""

    def __init__(self, part: Part, clock: Clock, tell: OnRestoreProgress | None = None):
        self._clock, self._tell = clock, tell
        self._bytes_total = sum(file.size for file in part.files())
        self._expected = part.base.entries if part.base is not None else 0
        self._entries = 0
        self._begun = self._told = clock.monotonic()
        self._seconds: float | None = None

    def add(self, entries: int) -> None:
        """Count entries that are restored."""
        self._entries += entries
        if self._tell is not None and self._clock.monotonic() >= self._told + SECONDS_BETWEEN:
            self._told = self._clock.monotonic()
            self._tell(self.progress())

    def end(self) -> None:
        """All is restored."""
        self._seconds = self._clock.monotonic() - self._begun
        if self._tell is not None:
            self._tell(self.progress())

    def counted(self, entries: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """`entries`, counted as they are taken."""

        def pieces() -> Iterator[list[tuple[bytes, bytes]]]:
            while piece := list(islice(entries, ENTRIES_PER_COUNT)):
                yield piece
                self.add(len(piece))

        return chain.from_iterable(pieces())

    def progress(self) -> RestoreProgress:
        """Where it stands; any thread may ask."""
        if self._seconds is not None:
            return RestoreProgress(self._bytes_total, self._bytes_total, self._entries, self._seconds)
        # Deltas change as many entries as they add, or so: the base alone tells how many there will be.
        share = min(self._entries / self._expected, 0.99) if self._expected else 0.0
        seconds = self._clock.monotonic() - self._begun
        return RestoreProgress(int(share * self._bytes_total), self._bytes_total, self._entries, seconds)
