"""Reads files as record batches, and compares that with reading them event by event."""

from __future__ import annotations

import contextlib

import msgspec
import pyarrow as pa

from statestore.errors import StateStoreError
from statestore_runtime.sources import FileSource, SourceContext
from tests.runtime.source_reading import Reading

GOOD = '{"key":"a","value":1,"price":1.5,"is_new":true}'
HEADER = "key,value,price,is_new"


class Event(msgspec.Struct):
    key: str
    value: int
    price: float | None = None
    is_new: bool = False


def rows_of(events):
    return [msgspec.to_builtins(event, builtin_types=(bytes,)) for event in events]


def in_batches(path, batch_rows=1 << 20, **options):
    return FileSource(path, type=options.pop("type", Event), **options).record_batches(batch_rows)


def drained(reading):
    rows = []
    while (batch := reading.next_batch()) is not None:
        assert isinstance(batch, pa.RecordBatch) or batch == []
        rows += batch.to_pylist() if len(batch) else []
    return rows


def rows(source, position=None, context=None):
    with contextlib.closing(Reading(source, position, context)) as reading:
        return drained(reading)


def comparable(row):
    return {name: "nan" if value != value else value for name, value in row.items()}


def outcome(source, context):
    """All rows, or events as rows, and the error that ended it; as a job would see them."""
    found = []
    with contextlib.closing(Reading(source, None, context)) as reading:
        try:
            while (batch := reading.next_batch()) is not None:
                read = batch.to_pylist() if isinstance(batch, pa.RecordBatch) else rows_of(batch)
                found += map(comparable, read)
        except StateStoreError as error:
            return found, str(error), reading.position()
        return found, None, reading.position()


def told(source, on_error):
    """Rows, dead letters, error and position."""
    letters = []
    context = SourceContext(on_error, letters.extend)
    found, error, position = outcome(source, context)
    return found, error, rows_of(letters), position if error is None else None


def check_same(path, declared=Event, **options):
    """Under each policy both ways of reading give the same; where it ends at a bad record, batches may have come less far."""
    for on_error in ("skip", "dead-letter"):
        expected = told(FileSource(path, type=declared, batch_size=3, **options), on_error)
        for batch_rows in (2, 1 << 20):
            assert told(in_batches(path, batch_rows, type=declared, **options), on_error) == expected
    expected, error, _ = outcome(FileSource(path, type=declared, batch_size=1, **options), SourceContext("fail"))
    for batch_rows in (1, 1 << 20):
        found, problem, position = outcome(
            in_batches(path, batch_rows, type=declared, **options), SourceContext("fail")
        )
        assert problem == error
        assert found == expected[: len(found)]
        if batch_rows == 1 or error is None:
            assert found == expected
        rest = rows(in_batches(path, type=declared, **options), position, SourceContext("skip"))
        assert found + list(map(comparable, rest)) == told(FileSource(path, type=declared, **options), "skip")[0]
