"""A source that reads a list of events and markers, and brings about what the markers say.

Element i of a script is in part i mod n of the source's n parts. All parts together are read in the order of the script: so a marker comes
after all events before it were handed out, and before any that follow. That needs all workers in one thread, as in `InProcess`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from statestore.errors import StateStoreError, UsageError
from statestore_runtime.jobmanager.events import Event, Rescale, TakeCheckpoint
from statestore_runtime.sources import FixedSplitsSource, SourceContext, SplitReader
from statestore_runtime.testing.clock import HarnessClock
from statestore_runtime.testing.markers import ADVANCE, CALL, CHECKPOINT, CRASH, EOF, RESCALE, RESTART, Marker


class ScriptedCrashError(StateStoreError, RuntimeError):
    """A script has come to CRASH: the JobManager takes it for the end of all workers."""

    exit_code = 3

    def __init__(self) -> None:
        super().__init__("the script says CRASH")


class Stage:
    """What scripts act on: the clock, and the run that is under way.

    Attributes
    ----------
    request
        Asks the JobManager for something.
    is_over : bool
        Whether a script has come to RESTART.
    """

    def __init__(self, clock: HarnessClock):
        self.clock = clock
        self.request: Callable[[Event], None]
        self.is_over = False


class ScriptedSource(FixedSplitsSource):
    """See the head of this module. Made by `JobHarness`.

    Parameters
    ----------
    script
        Events and markers.
    parts
        Splits, which workers share.
    batch_size
        Events that are processed together, where no marker is between them.
    """

    def __init__(self, script: Sequence[Any], stage: Stage, *, parts: int = 1, batch_size: int = 1):
        super().__init__(parts)
        self._script, self._stage, self._batch_size = list(script), stage, batch_size
        self._readers: dict[int, _PartReader] = {}
        self._passed: set[int] = set()  # markers that have happened
        self._settling: int | None = None
        self._waits_for: Callable[[], bool] = _nothing

    @property
    def crashes(self) -> int:
        """How many CRASH there are."""
        return self._script.count(CRASH)

    def discover(self, known: Collection[str]) -> list[str]:
        """All parts at the first time."""
        if not known:
            self._readers.clear()
        return super().discover(known)

    def read_part(self, part: int, position: Any | None, context: SourceContext) -> SplitReader:
        """Go on from an element."""
        self._settling, self._waits_for = None, _nothing
        reader = _PartReader(self, part if position is None else position)
        self._readers[part] = reader
        return reader

    def pass_end(self) -> bool:
        """Let the next run go on behind EOF; False when there is none."""
        end = self._end()
        self._passed.add(end)
        return end < len(self._script)

    def _end(self) -> int:
        ends = (place for place, one in enumerate(self._script) if one is EOF and place not in self._passed)
        return next(ends, len(self._script))

    def next_batch(self, reader: _PartReader) -> list[Any] | None:
        """What a part has next."""
        if reader.index >= self._end():
            return None
        is_its_turn = reader.index == min(each.index for each in self._readers.values())
        if not is_its_turn or not self._waits_for():
            return []
        if isinstance(self._script[reader.index], Marker):
            self._come_to(self._script[reader.index], reader)
            return []
        batch: list[Any] = []
        markers = (at for at in range(reader.index, len(self._script)) if isinstance(self._script[at], Marker))
        end = next(markers, len(self._script))
        while reader.index < end and len(batch) < self._batch_size:
            batch.append(self._script[reader.index])
            reader.index += self.splits
        return batch

    def _come_to(self, marker: Marker, reader: _PartReader) -> None:
        """Bring about what a marker says; the reader stands behind it when that is done, or need only be waited for."""
        place = reader.index
        self._stage.clock.quiet_rounds = 0  # something happens, though no event is read
        if place in self._passed:
            reader.index += self.splits
        elif marker is CRASH:
            self._passed.add(place)
            raise ScriptedCrashError
        elif marker is RESTART:
            self._passed.add(place)
            self._stage.is_over = True
        elif marker is CHECKPOINT:
            reader.index += self.splits
            self._take_checkpoint()
        elif isinstance(marker, RESCALE):
            self._passed.add(place)
            reader.index += self.splits
            self._rescale(marker.parallelism)
        elif self._settling != place:
            self._settling = place
            self._settle()
        else:
            self._act(marker, reader)

    def _act(self, marker: Marker, reader: _PartReader) -> None:
        """Everything before has been processed."""
        if isinstance(marker, CALL):
            if marker.function() is False:
                return
        else:
            assert isinstance(marker, ADVANCE), "there are no others"
            self._stage.clock.advance(marker.seconds)
            self._settle()
        self._passed.add(reader.index)
        reader.index += self.splits

    def _settle(self) -> None:
        self._waits_for = lambda: self._stage.clock.is_settled

    def _take_checkpoint(self) -> None:
        answers: list[Any] = []
        self._waits_for = lambda: bool(answers)
        self._stage.request(TakeCheckpoint(answers.append))

    def _rescale(self, parallelism: int) -> None:
        def answer(outcome: Any) -> None:
            if isinstance(outcome, BaseException):
                self._waits_for = lambda: _refuse(outcome)

        self._waits_for = lambda: False  # until it is read anew, by other workers
        self._stage.request(Rescale(parallelism, answer))


def _nothing() -> bool:
    return True


def _refuse(error: BaseException) -> bool:
    raise UsageError(f"the script says RESCALE: {error}")


class _PartReader(SplitReader):
    def __init__(self, source: ScriptedSource, index: int):
        self._source, self.index = source, index

    def next_batch(self) -> list[Any] | None:
        return self._source.next_batch(self)

    def position(self) -> int:
        return self.index
