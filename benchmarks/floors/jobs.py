"""Jobs as plain loops over a dict: the same file, the same result."""

from __future__ import annotations

import csv
import io
import time
import zipfile
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.event import Event
from benchmarks.job_run import JobRun, digest, digest_of_sums


def keyed_count(file: str, folder: str) -> JobRun:
    """Count and sum per key of JSON lines; every update to a counting sink."""
    counted, sunk = 0, 0
    sums: dict[str, tuple[int, int]] = {}
    decode = msgspec.json.Decoder(Event).decode
    begun = time.perf_counter()
    with open(file, "rb") as lines:
        for line in lines:
            event = decode(line)
            count, total = sums.get(event.key, (0, 0))
            sums[event.key] = count + 1, total + event.value
            counted += 1
            sunk += 1
    return JobRun(counted, time.perf_counter() - begun, lambda: digest_of_sums(sums.items()), {"updates": sunk})


def flights(file: str, folder: str) -> JobRun:
    """The example's job with the csv module."""
    encode = msgspec.json.Encoder().encode
    held: dict[str, list[Any]] = {}
    counted = 0
    begun = time.perf_counter()
    out = Path(folder) / "floor.jsonl"
    with zipfile.ZipFile(file) as archive, archive.open("flights.csv") as raw, out.open("wb") as written:
        rows = csv.reader(io.TextIOWrapper(raw, newline=""))
        header = next(rows)
        tail, delay = header.index("tailnum"), header.index("dep_delay")
        for row in rows:
            name = row[tail] if row[tail] not in ("", "NA") else "unknown"
            seen = held.setdefault(name, [0, 0, 0.0, None])
            seen[0] += 1
            if row[delay] not in ("", "NA"):
                minutes = float(row[delay])
                seen[1] += 1
                seen[2] += minutes
                seen[3] = minutes if seen[3] is None else max(seen[3], minutes)
            mean = seen[2] / seen[1] if seen[1] else None
            line = {"tailnum": name, "flights": seen[0], "mean_delay": mean, "worst_delay": seen[3]}
            written.write(encode(line) + b"\n")
            counted += 1
    return JobRun(counted, time.perf_counter() - begun, lambda: digest_of_lines([out]))


def digest_of_lines(files: list[Path]) -> str:
    """Of JSON lines, in whichever order and spelling."""
    lines = (msgspec.json.decode(line) for file in files for line in file.read_bytes().splitlines())
    return digest(tuple(sorted(line.items())) for line in lines)


def windows(file: str, folder: str, size_ms: int, late_ms: int) -> JobRun:
    """Count and sum per key and tumbling window, emitted when the watermark has passed the window's end."""
    results: list[tuple[str, int, int, int]] = []
    open_windows: dict[int, dict[str, tuple[int, int]]] = {}
    counted, highest = 0, 0
    closing = size_ms
    """The first time at which some window is over."""
    decode = msgspec.json.Decoder(Event).decode

    def close(until: int) -> None:
        for start in sorted(start for start in open_windows if start + size_ms <= until):
            results.extend((key, start, *sums) for key, sums in open_windows.pop(start).items())

    begun = time.perf_counter()
    with open(file, "rb") as lines:
        for line in lines:
            event = decode(line)
            counted += 1
            at = event.ts
            start = at - at % size_ms
            window = open_windows.get(start)
            if window is None:
                window = open_windows[start] = {}
            count, total = window.get(event.key, (0, 0))
            window[event.key] = count + 1, total + event.value
            if at > highest:
                highest = at
                if highest - late_ms > closing:
                    close(highest - late_ms)
                    closing += size_ms
    close(highest + size_ms)
    return JobRun(counted, time.perf_counter() - begun, lambda: digest(results), {"updates": len(results)})


def two_stages(file: str, folder: str) -> JobRun:
    """Sums per key, and sums per hundred of the value, of all files that match."""
    sums: dict[str, tuple[int, int]] = {}
    hundreds: dict[int, tuple[int, int]] = {}
    counted = 0
    decode = msgspec.json.Decoder(Event).decode
    begun = time.perf_counter()
    for name in sorted(Path(file).parent.glob(Path(file).name)):
        with name.open("rb") as lines:
            for line in lines:
                event = decode(line)
                count, total = sums.get(event.key, (0, 0))
                sums[event.key] = count + 1, total + event.value
                hundred = event.value // 100
                count, total = hundreds.get(hundred, (0, 0))
                hundreds[hundred] = count + 1, total + event.value
                counted += 1
    seconds = time.perf_counter() - begun
    return JobRun(
        counted, seconds, lambda: digest((key, *each) for part in (sums, hundreds) for key, each in part.items())
    )
