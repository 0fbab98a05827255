"""What the disk can do: writing and copying files."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import Timed, timed


def written(folder: str, entry_bytes: int, entries: int, per_sync: int) -> Timed:
    """Bytes written to a file one behind the other, synced after so many entries."""
    chunk = os.urandom(entry_bytes * per_sync)
    times = max(1, entries // per_sync)

    def work() -> None:
        with open(Path(folder) / "written", "wb", buffering=0) as file:
            for _ in range(times):
                file.write(chunk)
                os.fsync(file.fileno())

    _, seconds = timed(times, work)
    return times * len(chunk), seconds


def written_at_once(folder: str, sizes: list[int]) -> list[float]:
    """Seconds to write and sync a new file of each size; the best of several."""
    found = []
    for size in sizes:
        data, taken = os.urandom(size), []
        for number in range(5):
            begun = time.perf_counter()
            with open(Path(folder) / f"file-{size}-{number}", "wb", buffering=0) as file:
                file.write(data)
                os.fsync(file.fileno())
            taken.append(time.perf_counter() - begun)
        found.append(min(taken))
    return found


def copied(source: str, folder: str) -> dict[str, Any]:
    """Seconds to copy all files of a folder, the best of several, and their bytes."""
    taken = []
    for number in range(3):
        begun = time.perf_counter()
        shutil.copytree(source, Path(folder) / f"copy-{number}")
        taken.append(time.perf_counter() - begun)
    size = sum(file.stat().st_size for file in Path(source).rglob("*") if file.is_file())
    return {"seconds": min(taken), "bytes": size}
