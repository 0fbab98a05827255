"""Jobs in one process, as `Job.run` runs them.

A job's seconds are those of its own report: from opening the state to the final checkpoint, with all applied to the backend. Its
result is read from that checkpoint, or from the files it has written.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import statestore
import statestore_runtime
from benchmarks.event import Event
from benchmarks.floors.jobs import digest_of_lines
from benchmarks.job_run import JobRun, digest, digest_of_sums
from benchmarks.ours.settings import config_for
from benchmarks.process import ROOT
from statestore_runtime import (
    CallableSink,
    FileSource,
    Job,
    KeyContext,
    KeyedProcessFunction,
    KeyedStream,
    RuntimeContext,
    Stream,
    Tumbling,
    WatermarkStrategy,
    WindowResult,
)

Sums = tuple[int, int]


class Sum(statestore.AggregateFunction):
    """Count and sum."""

    def create_accumulator(self) -> Sums:
        return 0, 0

    def add(self, value: Event, accumulator: Sums) -> Sums:
        return accumulator[0] + 1, accumulator[1] + value.value

    def get_result(self, accumulator: Sums) -> Sums:
        return accumulator

    def merge(self, one: Sums, other: Sums) -> Sums:
        return one[0] + other[0], one[1] + other[1]


class RunningSums(KeyedProcessFunction[str, Event, tuple[str, Sums]]):
    """The same, as a process function: the general way."""

    def open(self, ctx: RuntimeContext) -> None:
        self.sums = ctx.value_state("sums", Sums, default=(0, 0))

    def process(self, event: Event, ctx: KeyContext[str]) -> tuple[tuple[str, Sums]]:
        count, total = self.sums.value()
        sums = count + 1, total + event.value
        self.sums.update(sums)
        return ((ctx.key, sums),)


class Counting:
    """A sink that counts batches' items."""

    def __init__(self) -> None:
        self.updates = 0

    def __call__(self, batch: list[Any]) -> None:
        self.updates += len(batch)


def _by_key(job: Job, file: str) -> KeyedStream[str, Event]:
    return job.source(FileSource(file, type=Event)).key_by(lambda event: event.key, str)


def _keyed_count(
    made: Callable[[Job, str], Stream[Any]], backend: str, file: str, folder: str, redis_url: str
) -> JobRun:
    job, sink = Job("keyed-count"), Counting()
    made(job, file).sink(CallableSink(sink, batch=True))
    report = job.run(config_for(backend, folder, redis_url), restore="none")
    updates = {"updates": sink.updates, "checkpoints": report.checkpoints, "shares": report.shares}
    return JobRun(report.events, report.seconds, lambda: _stored_sums(f"{folder}/checkpoints/{job.name}"), updates)


def _stored_sums(checkpoints: str) -> str:
    reader = statestore.read(checkpoints)
    (name,) = [state.name for state in reader.states if state.kind in ("value", "aggregating")]
    return digest_of_sums((key, tuple(sums)) for key, sums in reader.state(name).items())


def keyed_count(**arguments: Any) -> JobRun:
    """Count and sum per key by a process function."""
    return _keyed_count(lambda job, file: _by_key(job, file).process(RunningSums(), uid="sums"), **arguments)


def keyed_count_aggregate(**arguments: Any) -> JobRun:
    """Count and sum per key by an aggregate function."""
    return _keyed_count(lambda job, file: _by_key(job, file).aggregate(Sum(), Sums, uid="sums"), **arguments)


def keyed_count_record_batches(**arguments: Any) -> JobRun:
    """Count and sum per key in Arrow record batches: an update for each key in a batch."""

    def made(job: Job, file: str) -> Stream[Any]:
        keyed = job.record_batches(FileSource(file, type=Event)).key_by("key", str)
        return keyed.aggregate(statestore_runtime.Count(), statestore_runtime.Sum("value"), uid="sums")

    return _keyed_count(made, **arguments)


def windows(backend: str, file: str, folder: str, redis_url: str, size_ms: int, late_ms: int) -> JobRun:
    """Count and sum per key and tumbling window of event time."""
    results: list[WindowResult] = []
    job = Job("windows")
    watermarks = WatermarkStrategy.bounded_out_of_orderness(f"{late_ms}ms", lambda event: event.ts)
    keyed = job.source(FileSource(file, type=Event), watermarks=watermarks).key_by(lambda event: event.key, str)
    keyed.window(Tumbling(f"{size_ms}ms")).aggregate(Sum(), Sums).sink(CallableSink(results.extend, batch=True))
    report = job.run(config_for(backend, folder, redis_url), restore="none")
    return JobRun(
        report.events,
        report.seconds,
        lambda: digest((each.key, each.start, *each.value) for each in results),
        {"updates": len(results), "checkpoints": report.checkpoints, "shares": report.shares},
    )


def flights(backend: str, file: str, folder: str, redis_url: str) -> JobRun:
    """The example, as it is."""
    out = Path(folder) / "flights"
    with patch.dict(os.environ, {"FLIGHTS_CSV": file, "FLIGHTS_OUT": str(out)}):
        job = runpy.run_path(str(ROOT / "examples" / "flights.py"))["job"]
    report = job.run(config_for(backend, folder, redis_url), restore="none")
    details = {"updates": report.events, "checkpoints": report.checkpoints, "shares": report.shares}
    return JobRun(report.events, report.seconds, lambda: digest_of_lines(sorted(out.glob("part-*"))), details)
