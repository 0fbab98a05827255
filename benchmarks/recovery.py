"""`python -m benchmarks.recovery`: seconds from opening a store to its first event, by the size of the state.

- **restore**: nothing is left but the checkpoint; the store opens when all of it is loaded.
- **lazy**: the same, but the store opens at once; also how long all of it then takes in the background.
- **restart**: the backend's own state has survived.

Each measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.process import in_own_process
from statestore import StateStore, load_config, open_store
from statestore.testing import redis_server

SIZES = (10**5, 10**6)
VALUE_BYTES = 100


def settings(backend: str, folder: Path, redis_url: str) -> list[str]:
    made = [f"state.backend={backend}", f"state.dir={folder / backend}", f"checkpointing.dir={folder / 'checkpoints'}"]
    return [*made, f"state.redis.url={redis_url}"] if backend == "redis" else made


def key_of(number: int) -> str:
    return f"key-{number:09}"


def make_checkpoint(count: int, folder: Path) -> None:
    """A base with `count` entries, and a delta that changes 1% of them."""
    randomness = random.Random(count)
    config = load_config(overrides=[*settings("memory", folder, ""), "checkpointing.base-min-size=1kb"])
    store = open_store(config, "job", restore="none")
    state = store.value_state("value", bytes)
    for first in range(0, count, 50_000):
        keys = [key_of(number) for number in range(first, min(count, first + 50_000))]
        state.update_many(keys, [randomness.randbytes(VALUE_BYTES // 2).hex().encode() for _ in keys])
        store.commit()
    while store.checkpoint().manifest.parts[0].base is None:
        time.sleep(0.1)
    some = [key_of(randomness.randrange(count)) for _ in range(count // 100)]
    state.update_many(some, [b"changed" for _ in some])
    store.checkpoint()
    store.close()


def first_event(store: StateStore, count: int) -> None:
    state = store.value_state("value", bytes)
    store.set_current_key(key_of(count // 2))
    assert state.value()
    state.update(b"new")
    store.commit()


def opened(backend: str, count: int, folder: Path, redis_url: str, *overrides: str) -> dict[str, float]:
    config = load_config(overrides=[*settings(backend, folder, redis_url), *overrides])
    begun = time.perf_counter()
    store = open_store(config, "job", restore="latest", auto_complete=True)
    first_event(store, count)
    measured = {"first": time.perf_counter() - begun}
    if "state-recovery.lazy=true" in overrides:
        store.wait_hydrated()
        measured["all"] = time.perf_counter() - begun
    store.close()
    return measured


def measure(backend: str, count: int, folder: Path, redis_url: str) -> dict[str, Any]:
    """Seconds of one backend and size."""

    def forget() -> None:
        shutil.rmtree(folder / backend, ignore_errors=True)
        if backend == "redis":
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()

    seconds: dict[str, float] = {}
    forget()
    restored, peak = in_own_process(opened, backend, count, folder, redis_url)
    seconds["restore"] = restored["first"]
    if backend != "memory":
        again, _ = in_own_process(opened, backend, count, folder, redis_url)
        seconds["restart"] = again["first"]
    forget()
    lazy, _ = in_own_process(opened, backend, count, folder, redis_url, "state-recovery.lazy=true")
    seconds["lazy"], seconds["lazy, all of it"] = lazy["first"], lazy["all"]
    return {"backend": backend, "entries": count, "seconds": seconds, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", choices=("memory", "rocksdb", "filesystem", "redis"))
    parser.add_argument("--entries", action="append", type=int, help="size of the state; may be given several times")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    backends = arguments.backend or ["memory", "rocksdb", "filesystem", "redis"]
    results = []
    with redis_server.running() as redis_url, tempfile.TemporaryDirectory() as temporary:
        for count in arguments.entries or SIZES:
            folder = Path(temporary, str(count))
            in_own_process(make_checkpoint, count, folder)
            results += [measure(backend, count, folder, redis_url) for backend in backends]
    columns = ["restore", "restart", "lazy", "lazy, all of it"]
    table = Table("backend", "entries", *columns, "MiB, restore", title="seconds to the first event")
    for result in results:
        cells = [f"{result['seconds'][name]:.3f}" if name in result["seconds"] else "" for name in columns]
        table.add_row(result["backend"], f"{result['entries']:,}", *cells, f"{result['peak_mib']:.0f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
