"""`python -m benchmarks.state_size`: what must not grow with the state, measured at several sizes of it, and how much memory it takes.

For each backend and number of keys, each in a process of its own:

- *checkpoint*: seconds from its beginning to its completion, with the same number of keys changed since the last one; *blocking*: the
  microseconds per changed key in which processing stands still;
- *restart*: seconds from opening a store over what survived locally to the first event committed;
- *eager* and *lazy*: the same with nothing but the checkpoint left, all of it loaded first, or served from where it lies;
- *peak MiB* of the process that reads and changes keys all over the state, through a cache a tenth of its size.

Values are 100 random bytes. Ratios are to the smallest size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import statestore
from benchmarks.process import in_own_process
from statestore.config import Config, load_config
from statestore.testing import redis_server

BACKENDS = ("memory", "rocksdb", "filesystem", "redis")
VALUE_BYTES = 100
DIRTY = 10_000
ROUNDS = 7
BATCH = 100_000
CACHE_BYTES_PER_KEY = 400
"""About what a key with such a value takes as a cached object."""


def config_for(backend: str, folder: Path, redis_url: str, *settings: str) -> Config:
    overrides = [
        f"state.backend={backend}",
        f"state.dir={folder}",
        f"checkpointing.dir={folder}/checkpoints",
        *settings,
    ]
    return load_config(overrides=[*overrides, f"state.redis.url={redis_url}"] if backend == "redis" else overrides)


def key(number: int) -> str:
    return f"key-{number:010}"


def build(config: Config, count: int) -> int:
    """A state of so many keys, its base in the checkpoint storage; bytes of the checkpoint."""
    randomness = random.Random(count)
    with statestore.open(config, restore="none", job="bench") as store:
        state = store.value_state("state", bytes)
        for start in range(0, count, BATCH):
            keys = [key(number) for number in range(start, min(count, start + BATCH))]
            state.update_many(keys, [randomness.randbytes(VALUE_BYTES) for _ in keys])
            store.commit()
        return store.checkpoint(base=True).total_bytes


def new_base(config: Config) -> None:
    with statestore.open(config, restore="latest", job="bench") as store:
        store.wait_hydrated()
        store.checkpoint(base=True)


def first_event(config: Config, count: int, **options: Any) -> float:
    """Seconds from opening the store to the first event committed."""
    begun = time.perf_counter()
    store = statestore.open(config, job="bench", **options)
    state = store.value_state("state", bytes)
    store.set_current_key(key(count // 2))
    assert len(state.value()) == VALUE_BYTES
    state.update(bytes(VALUE_BYTES))
    store.commit()
    seconds = time.perf_counter() - begun
    store.close()
    return seconds


def checkpoints(config: Config, count: int) -> dict[str, float]:
    """Seconds of a checkpoint of `DIRTY` changed keys, and of the part of it that stands still."""
    randomness, dirty, whole, blocking = random.Random(7), min(DIRTY, count // 10), [], []
    with statestore.open(config, job="bench") as store:
        state = store.value_state("state", bytes)
        for _ in range(ROUNDS):
            keys = [key(number) for number in randomness.sample(range(count), dirty)]
            state.update_many(keys, [randomness.randbytes(VALUE_BYTES) for _ in keys])
            begun = time.perf_counter()
            pending = store.begin_checkpoint()
            blocking.append(time.perf_counter() - begun)
            store.complete(pending.finish())
            whole.append(time.perf_counter() - begun)
    return {"checkpoint": statistics.median(whole), "blocking_us": statistics.median(blocking) / dirty * 1e6}


def through_a_small_cache(config: Config, count: int) -> float:
    """Keys per second, read and written all over the state."""
    randomness, touched = random.Random(8), min(count, 200_000)
    with statestore.open(config, job="bench") as store:
        state = store.value_state("state", bytes)
        begun = time.perf_counter()
        for _ in range(0, touched, 1000):
            keys = [key(randomness.randrange(count)) for _ in range(1000)]
            state.update_many(keys, [value[::-1] for value in state.get_many(keys)])
            if store.needs_checkpoint:
                store.commit()
        store.commit()
        return touched / (time.perf_counter() - begun)


def measure(backend: str, count: int, folder: Path, redis_url: str) -> dict[str, Any]:
    config = config_for(backend, folder, redis_url)
    total_bytes, _ = in_own_process(build, config, count)
    row: dict[str, Any] = {"backend": backend, "keys": count, "checkpoint_bytes": total_bytes}
    row |= in_own_process(checkpoints, config, count)[0]
    if backend != "memory":
        row["restart"] = min(in_own_process(first_event, config, count)[0] for _ in range(3))
    row["eager"] = min(_restored(config, folder, count) for _ in range(2))
    lazy = config_for(backend, folder, redis_url, "state-recovery.lazy=true")
    in_own_process(new_base, lazy)  # a native base can't be read where it lies
    row["lazy"] = min(_restored(lazy, folder, count) for _ in range(3))
    small = config_for(backend, folder, redis_url, f"state.cache-size={count * CACHE_BYTES_PER_KEY // 10}b")
    row["per_second"], row["peak_mib"] = in_own_process(through_a_small_cache, small, count)
    return row


def _restored(config: Config, folder: Path, count: int) -> float:
    shutil.rmtree(folder / "bench")
    seconds: float = in_own_process(_restore, config, count)[0]
    return seconds


def _restore(config: Config, count: int) -> float:
    return first_event(config, count, restore="latest")


def run(backends: list[str], sizes: list[int], folder: Path, redis_url: str) -> Iterator[dict[str, Any]]:
    for backend in backends:
        smallest: dict[str, Any] = {}
        for count in sizes:
            place = folder / f"{backend}-{count}"
            config = config_for(backend, place, redis_url)
            in_own_process(empty, config)
            row = measure(backend, count, place, redis_url)
            smallest = smallest or row
            row["ratios"] = {name: row[name] / smallest[name] for name in GROWING if name in row}
            yield row
            in_own_process(empty, config)
            shutil.rmtree(place)


def empty(config: Config) -> None:
    """Leave nothing in a server that the next measurement uses too."""
    statestore.open(config, restore="none", job="bench").close()


GROWING = ("checkpoint", "restart", "eager", "lazy")
COLUMNS = (
    "backend",
    "keys",
    "checkpoint ms",
    "blocking µs/key",
    "restart ms",
    "eager ms",
    "lazy ms",
    "keys/s",
    "peak MiB",
)


def table(rows: list[dict[str, Any]]) -> Table:
    made = Table(box=None, pad_edge=False)
    for title in COLUMNS:
        made.add_column(title, justify="left" if title == "backend" else "right")
    for row in rows:
        times = {name: f"{row[name] * 1000:,.0f} ({row['ratios'][name]:.2f})" for name in GROWING if name in row}
        made.add_row(
            row["backend"],
            f"{row['keys']:,}",
            times["checkpoint"],
            f"{row['blocking_us']:.2f}",
            times.get("restart", ""),
            times["eager"],
            times["lazy"],
            f"{row['per_second']:,.0f}",
            f"{row['peak_mib']:.0f}",
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state_size", description=__doc__)
    parser.add_argument("--sizes", default="100000,1000000", help="numbers of keys, ascending")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only these; may be given again")
    parser.add_argument("--json", default="out/state-size.json", metavar="FILE", help="where results go")
    arguments = parser.parse_args()
    sizes = [int(float(size)) for size in arguments.sizes.split(",")]
    rows = []
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, redis_server.running() as url, console.status("") as status:
        for row in run(arguments.backend or list(BACKENDS), sizes, Path(folder), url):
            rows.append(row)
            status.update(f"{row['backend']} with {row['keys']:,} keys")
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.json).write_text(json.dumps({"machine": machine, "results": rows}, indent=2) + "\n")
    Console(width=120).print(table(rows))
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
