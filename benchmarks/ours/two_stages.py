"""A job that exchanges its events twice: running sums per key, then per hundred of the value; for `statestore run`.

BENCH_FILES is a glob of JSON lines.
"""

from __future__ import annotations

import os

from benchmarks.event import Event
from statestore_runtime import CallableSink, FileSource, Job, KeyContext, KeyedProcessFunction, RuntimeContext

Sums = tuple[int, int]


class PerKey(KeyedProcessFunction[str, Event, Event]):
    """Passes events on, once it has counted them."""

    def open(self, ctx: RuntimeContext) -> None:
        self.sums = ctx.value_state("sums", Sums, default=(0, 0))

    def process(self, event: Event, ctx: KeyContext[str]) -> tuple[Event]:
        count, total = self.sums.value()
        self.sums.update((count + 1, total + event.value))
        return (event,)


class PerHundred(KeyedProcessFunction[int, Event, tuple[int, int]]):
    """Counts them again, by something else."""

    def open(self, ctx: RuntimeContext) -> None:
        self.hundreds = ctx.value_state("hundreds", Sums, default=(0, 0))

    def process(self, event: Event, ctx: KeyContext[int]) -> tuple[tuple[int, int]]:
        count, total = self.hundreds.value()
        self.hundreds.update((count + 1, total + event.value))
        return ((count + 1, total + event.value),)


def ignored(batch: list[tuple[int, int]]) -> None:
    """Each worker is a process, so there is nowhere to count; the state tells whether all has come."""


def hundred(event: Event) -> int:
    return event.value // 100


job = Job("two-stages")
(
    job.source(FileSource(os.environ.get("BENCH_FILES", "events-*.jsonl"), type=Event))
    .key_by(lambda event: event.key, str)
    .process(PerKey(), uid="per-key")
    .key_by(hundred, int)
    .process(PerHundred(), uid="per-hundred")
    .sink(CallableSink(ignored, batch=True))
)
