"""The same work with statestore, everything durable: log synced at each commit, exactly-once checkpoints every second.

A job's seconds are those of its own report: from opening the state to the final checkpoint, with all applied to the backend; counting
the keys for the report is left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import statestore
from benchmarks.floors import BATCH, Event, Timed, batches, timed
from statestore.config import Config, load_config
from statestore_runtime import CallableSink, FileSource, Job, KeyContext, KeyedProcessFunction, RuntimeContext

COMMIT_EVERY = 10_000
BACKENDS = ("memory", "rocksdb", "filesystem", "redis")


def config_for(backend: str, folder: Path, redis_url: str, *settings: str) -> Config:
    overrides = [f"state.backend={backend}", f"state.dir={folder / 'state'}", "checkpointing.interval=1s", *settings]
    if backend == "redis":
        overrides.append(f"state.redis.url={redis_url}")
    return load_config(overrides=overrides)


def state_operations(backend: str, keys: list[str], value: bytes, folder: Path, redis_url: str) -> dict[str, Timed]:
    """Operations on a value state, one key at a time, a commit every 10,000; cold ones by batches of 1,000 with a cache of 1 MiB."""
    results = {}
    config = config_for(backend, folder, redis_url)
    with statestore.open(config, restore="none", job="bench") as store:
        state = store.value_state("state", bytes)

        def update() -> None:
            for start in range(0, len(keys), COMMIT_EVERY):
                for key in keys[start : start + COMMIT_EVERY]:
                    store.set_current_key(key)
                    state.update(value)
                store.commit()

        def get() -> None:
            for key in keys:
                store.set_current_key(key)
                state.value()

        results["valueAdd"] = timed(len(keys), update)
        results["valueUpdate"] = timed(len(keys), update)
        results["valueGet"] = timed(len(keys), get)
        store.checkpoint()
    config = config_for(backend, folder, redis_url, "state.cache-size=1mb")
    with statestore.open(config, job="bench") as store:
        state = store.value_state("state", bytes)

        def get_many() -> None:
            for part in batches(keys):
                state.get_many(part)

        assert state.get_many(keys[:BATCH]) == [value] * BATCH
        results["valueGetCold"] = timed(len(keys), get_many)
    return results


class Sum(statestore.AggregateFunction):
    """Count and sum."""

    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add(self, value: Event, accumulator: tuple[int, int]) -> tuple[int, int]:
        return accumulator[0] + 1, accumulator[1] + value.value

    def get_result(self, accumulator: tuple[int, int]) -> tuple[int, int]:
        return accumulator

    def merge(self, one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
        return one[0] + other[0], one[1] + other[1]


class Sums(KeyedProcessFunction[str, Event, tuple[str, tuple[int, int]]]):
    """The same, as a process function: the general way."""

    def open(self, ctx: RuntimeContext) -> None:
        self.sums = ctx.value_state("sums", tuple[int, int], default=(0, 0))

    def process(self, event: Event, ctx: KeyContext[str]) -> tuple[tuple[str, tuple[int, int]]]:
        count, total = self.sums.value()
        sums = count + 1, total + event.value
        self.sums.update(sums)
        return ((ctx.key, sums),)


def keyed_count(backend: str, file: Path, folder: Path, redis_url: str, how: str = "process") -> Timed:
    sunk = 0

    def count(batch: list[object]) -> None:
        nonlocal sunk
        sunk += len(batch)

    job = Job("keyed-count")
    keyed = job.source(FileSource(file, type=Event)).key_by(lambda event: event.key, str)
    made = keyed.process(Sums()) if how == "process" else keyed.aggregate(Sum(), tuple[int, int])
    made.sink(CallableSink(count, batch=True))
    config = config_for(backend, folder, redis_url)
    seconds = job.run(config, restore="none").seconds
    return sunk, seconds


def flights(backend: str, file: Path, folder: Path, redis_url: str) -> Timed:
    """The example, as it is."""
    os.environ |= {"FLIGHTS_CSV": str(file), "FLIGHTS_OUT": str(folder / "flights")}
    from examples.flights import job

    config = config_for(backend, folder, redis_url)
    seconds = job.run(config, restore="none").seconds
    written = sum(part.read_bytes().count(b"\n") for part in (folder / "flights").glob("part-*"))
    return written, seconds
