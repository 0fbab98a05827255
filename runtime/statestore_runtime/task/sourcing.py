"""The reading end of a task: the splits of a source that this worker was given.

The position of a split in a checkpoint is the reader's, and how many of the events behind it have been processed already: so it can stand
between any two events, though readers know positions between batches only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from statestore.clock import Clock
from statestore.errors import StateStoreError, UsageError
from statestore_runtime.functions import UserCodeError
from statestore_runtime.operators import SourceOperator
from statestore_runtime.operators.base import Operator
from statestore_runtime.sources import SourceContext, SplitReader
from statestore_runtime.sources.rate import RateLimit
from statestore_runtime.task.meta import Meta
from statestore_runtime.watermarks import MAX_WATERMARK, WatermarkGenerator

Process = Callable[[int, Callable[[int, int], None], Callable[[int], Any]], None]

IDLE_SECONDS = 0.2
"""Between two looks whether a split is idle."""


class _SplitTimes(Operator):
    """Combines the event time of the splits for the source's operator: each is a port.

    Port 0 stands for splits still to come. It holds event time back until it is known which are this worker's, or other inputs would go on
    without them, and make late what they have; from then on it is idle.
    """

    def __init__(self, operator: SourceOperator):
        super().__init__(operator.uid)
        self._operator = operator
        self.add_input()

    def end(self) -> None:
        """No split will give anything any more."""
        for port in range(len(self._watermarks)):
            self.on_watermark(MAX_WATERMARK, port)

    def forward_watermark(self, watermark: int) -> None:
        """Pass it on."""
        self._operator.on_watermark(watermark)

    def forward_idle(self) -> None:
        """Pass it on."""
        self._operator.on_idle()


class _Split:
    """A split that is being read."""

    def __init__(self, name: str, reader: SplitReader, port: int, generator: WatermarkGenerator | None):
        self.name, self.reader, self.port, self.generator = name, reader, port, generator
        self.unread: list[Any] = []  # handed out by the reader, not processed yet
        self.before: tuple[Any, int] | None = None  # position that `unread` began at, and how many of it were processed
        self.look_at = 0.0  # whether it is idle

    def next_batch(self) -> list[Any] | None:
        """What was left of a batch, or the next one."""
        if self.unread:
            batch, self.unread = self.unread, []
            return batch
        self.before = None
        return self.reader.next_batch()

    def position(self) -> Meta:
        """After exactly what has been processed."""
        position, skip = self.before or (self.reader.position(), 0)
        return {"position": position, "skip": skip, "newest": self.newest}

    @property
    def newest(self) -> int | None:
        """Newest event time."""
        return self.generator.snapshot() if self.generator is not None else None


class SourceInput:
    """One source in one worker.

    Parameters
    ----------
    restored
        What the checkpoint knows of the source's splits that are this worker's.
    finished
        Those of them that have been read to their end; None of one that is not to be looked at again.

    Attributes
    ----------
    passed : int
        The last checkpoint whose barrier it has let go.
    """

    def __init__(self, operator: SourceOperator, context: SourceContext, clock: Clock, parallelism: int):
        self.operator, self.context, self._clock = operator, context, clock
        self._splits: list[_Split] = []
        self._waiting: list[str] = []  # not begun yet
        self._finished: Meta = {}
        self._drained: Meta | None = None  # where its splits stood when they were taken as ended
        self._times = _SplitTimes(operator)
        self._next = 0
        self._current: _Split | None = None  # whose batch was the last
        self._marked: tuple[_Split, int | None] | None = None
        self._is_final = False
        self.passed = 0
        limits = [limit for limit in (operator.source.rate_limit,) if limit is not None]
        if operator.rate_limit is not None:
            limits.append(operator.rate_limit / parallelism)
        self._rate = RateLimit(min(limits), clock) if limits else None

    @property
    def uid(self) -> str:
        """Of the source's operator."""
        return self.operator.uid

    @property
    def has_ended(self) -> bool:
        """Whether it will give nothing any more."""
        return self._times.watermark == MAX_WATERMARK

    # Splits

    def restore(self, positions: Meta, finished: Meta) -> None:
        """Go on with splits where a checkpoint stands. Raises as `Source.read` does."""
        if self.operator.source.resumes_finished:  # there may be more of them now
            positions = {**{split: at for split, at in finished.items() if at is not None}, **positions}
        self._finished.update({split: None for split in finished if split not in positions})
        for split, position in positions.items():
            if position is None:
                self._waiting.append(split)
            else:
                self._begin(split, position)

    def assign(self, splits: Sequence[str]) -> None:
        """Read these splits too, if any: other workers have all the others that are known.

        Of one that was drained before they came they are new to the next run.
        """
        if self._drained is not None:
            return
        self._waiting += splits
        self._begin_waiting()
        self._times.on_idle()

    def no_more_splits(self) -> None:
        """End where the splits have."""
        self._is_final = True
        self._end_if_done()

    def drain(self) -> None:
        """Take all splits as ended. Where they stand is kept: who goes on from the job's last checkpoint reads on from there."""
        if self._drained is not None:
            return
        self._drained = self._positions()
        for split in self._splits:
            guarded(self.uid, split.reader.close)
        self._splits.clear()
        self._waiting.clear()
        self._times.end()

    def _begin_waiting(self) -> None:
        while self._waiting and (self.operator.source.is_concurrent or not self._splits):
            self._begin(self._waiting.pop(0), None)

    def _begin(self, name: str, position: Meta | None) -> None:
        at = position["position"] if position is not None else None
        reader = guarded(self.uid, self.operator.source.read, name, at, self.context)
        strategy, generator = self.operator.watermarks, None
        if strategy is not None:
            newest = position["newest"] if position is not None else None
            generator = strategy.generator(self.uid, self._clock.monotonic(), newest)
        split = _Split(name, reader, self._times.add_input(), generator)
        self._splits.append(split)
        if position is not None and position["skip"]:
            with self.context.replaying():
                self._skip(split, at, position["skip"])

    def _skip(self, split: _Split, position: Any, count: int) -> None:
        """Pass over the events behind a position that have been processed already."""
        left = count
        while left > 0:
            batch = guarded(self.uid, split.reader.next_batch)
            if not batch:
                raise UsageError(
                    f"split '{split.name}' of source '{self.uid}' has {count - left} events after the checkpoint's position, "
                    f"{count} of them were processed: put back what was removed, or start over with --restore none"
                )
            if len(batch) > left:
                split.unread, split.before = batch[left:], (position, count)
            left -= len(batch)

    def _end_if_done(self) -> None:
        if self._is_final and not self._splits and not self._waiting:
            self._times.on_watermark(MAX_WATERMARK)

    # Reading

    def step(self, process: Process, *, exact: bool = False) -> int | None:
        """Read a batch and process it.

        Parameters
        ----------
        process
            Called with the number of events, what pushes a part of them, and what gives one.
        exact
            Whether to keep what is needed to stand within the batch; see `keep_rest`.

        Returns
        -------
        int or None
            The number of events; None when there was nothing to be had.
        """
        self._begin_waiting()
        if self._rate is not None and self._rate.wait_seconds() > 0:
            return None
        for _ in range(len(self._splits)):
            split = self._splits[self._next % len(self._splits)]
            before = split.before or ((guarded(self.uid, split.reader.position), 0) if exact else None)
            batch = guarded(self.uid, split.next_batch)
            if batch is None:
                self._end(split)
                return 0
            if not batch:
                self._next += 1
                self._look_whether_idle(split)
                continue
            self._current, self._batch, self._before = split, batch, before
            process(len(batch), self._emitter(split, batch), partial(_event_at, batch))
            if self._rate is not None:
                self._rate.take(len(batch))
            split.before = None
            if split.generator is not None:
                self._tell_time(split)
            self._next += 1
            return len(batch)
        return None

    def _emitter(self, split: _Split, batch: list[Any]) -> Callable[[int, int], None]:
        emit = self.operator.emit

        def emit_part(begin: int, end: int) -> None:
            generator = split.generator
            part = batch if end - begin == len(batch) else batch[begin:end]
            emit(part, generator.stamp(part) if generator is not None else None)

        return emit_part

    def mark(self) -> None:
        """Have `rollback` come back to here with the event time of the split that is being read."""
        self._marked = (self._current, self._current.newest) if self._current is not None else None

    def rollback(self) -> None:
        """What failed has no time: else the watermark would come to it, or to what follows it, and make late what is read again."""
        if self._marked is not None and self.operator.watermarks is not None:
            split, newest = self._marked
            split.generator = self.operator.watermarks.generator(self.uid, self._clock.monotonic(), newest)

    def keep(self) -> None:
        """The watermark comes behind the batch anyway."""

    def keep_rest(self, processed: int) -> None:
        """Of the batch whose processing failed only the first events count: the split stands behind them."""
        assert self._before is not None, "step was told to be exact"
        assert self._current is not None
        position, skip = self._before
        self._current.unread, self._current.before = self._batch[processed:], (position, skip + processed)

    def _end(self, split: _Split) -> None:
        # Of a folder that is watched the names alone are many, and they stay.
        resumes = self.operator.source.resumes_finished
        self._finished[split.name] = guarded(self.uid, split.position) if resumes else None
        guarded(self.uid, split.reader.close)
        self._splits.remove(split)
        self._begin_waiting()  # first: with none there the source would look idle, and event time would go on without it
        self._times.on_watermark(MAX_WATERMARK, split.port)
        self._end_if_done()

    def _tell_time(self, split: _Split) -> None:
        assert split.generator is not None
        watermark = split.generator.current(self._clock.monotonic())
        if watermark is None:
            self._times.on_idle(split.port)
        else:
            self._times.on_watermark(watermark, split.port)

    def _look_whether_idle(self, split: _Split) -> None:
        """Let event time go on without a split that has been silent for too long.

        Only here, where it has just been found to have nothing: while nobody reads, as others can't keep up, it may have plenty.
        """
        now = self._clock.monotonic()
        if split.generator is not None and now >= split.look_at:
            split.look_at = now + IDLE_SECONDS
            self._tell_time(split)

    # Checkpoints

    def meta(self) -> Meta:
        """What a checkpoint knows of it."""
        splits = self._positions() if self._drained is None else self._drained
        return {"splits": splits, "finished": dict(self._finished), "bad_records": self.context.bad_records}

    def _positions(self) -> Meta:
        splits: Meta = {split.name: guarded(self.uid, split.position) for split in self._splits}
        splits.update(dict.fromkeys(self._waiting))
        return splits

    def close(self) -> None:
        """Close readers and source: all of them, though one fails."""
        with ExitStack() as closing:
            closing.callback(self.operator.source.close)
            for split in self._splits:
                closing.callback(split.reader.close)


def _event_at(batch: Any, index: int) -> Any:
    """One event of a batch, one row of a record batch."""
    return batch.slice(index, 1).to_pylist()[0] if hasattr(batch, "to_pylist") else batch[index]


def guarded(uid: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of a source's or sink's method, with foreign exceptions made ours."""
    try:
        return function(*arguments)
    except StateStoreError:
        raise
    except Exception as error:
        raise UserCodeError.of(uid, error) from error
