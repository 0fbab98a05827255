"""Jobs on record batches, of JSON lines in a file."""

from __future__ import annotations

import msgspec

from statestore_runtime import CollectSink, Count, FileSource, Job, Max, Min, Sum


class Event(msgspec.Struct):
    key: str
    value: int
    price: float | None = None


TOTALS = (Count(), Sum("value"), Min("value"), Max("value"))


def write(path, events):
    path.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    return path


def last(results):
    return dict(results)


def in_batches(path, batch_rows=None, aggregations=TOTALS, key="key", key_type=str, **options):
    job, sink = Job("batches"), CollectSink()
    rows = job.record_batches(FileSource(path, type=Event, **options), batch_rows=batch_rows)
    rows.key_by(key, key_type).aggregate(*aggregations).sink(sink)
    return job, sink
