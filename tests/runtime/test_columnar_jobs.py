"""Jobs on record batches: the same results as event by event, on every backend, with one worker and with several."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import parquet

from statestore.errors import StateStoreError, UsageError
from statestore_runtime import (
    AggregateFunction,
    CollectionSource,
    CollectSink,
    Count,
    FileSink,
    FileSource,
    Job,
    Mean,
    Sum,
    UserCodeError,
    WatermarkStrategy,
)
from tests.conftest import BACKENDS
from tests.runtime.columnar_jobs import Event, in_batches, last, write


class Totals(AggregateFunction):
    """The same as Count, Sum, Min and Max, event by event."""

    def create_accumulator(self):
        return 0, 0, None, None

    def add(self, event, accumulator):
        count, total, least, greatest = accumulator
        least = event.value if least is None else min(least, event.value)
        greatest = event.value if greatest is None else max(greatest, event.value)
        return count + 1, total + event.value, least, greatest

    def get_result(self, accumulator):
        return accumulator

    def merge(self, one, other):
        raise AssertionError("only sessions are merged")


@pytest.fixture
def events():
    rng = random.Random(7)
    return [Event(f"user-{rng.randrange(40)}", rng.randrange(-500, 500)) for _ in range(3000)]


def in_events(path):
    job, sink = Job("events"), CollectSink()
    keyed = job.source(FileSource(path, type=Event)).key_by(lambda event: event.key, str)
    keyed.aggregate(Totals(), tuple[int, int, int | None, int | None]).sink(sink)
    return job, sink


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_result_as_event_by_event(tmp_path, run, events, backend, parallelism):
    for number in range(3):
        write(tmp_path / f"{number}.jsonl", events[number * 1000 : number * 1000 + 1000])
    settings = [f"parallelism.default={parallelism}"]
    job, expected = in_events(tmp_path / "*.jsonl")
    run(job, *settings, backend=backend)
    for batch_rows in (70, None):
        job, found = in_batches(tmp_path / "*.jsonl", batch_rows)
        finished = run(job, *settings, backend=backend)
        assert last(found.results) == last(expected.results)
        assert (finished.events, finished.keys) == (3000, 40)
        assert len(found.results) <= 40 * (3000 // 70 + 3) < len(expected.results)
    assert len(found.results) <= 40 * 3 * parallelism


def test_results_after_each_batch(tmp_path, run):
    path = write(tmp_path / "a.jsonl", [Event(key, value) for value, key in enumerate("abacab")])
    job, sink = in_batches(path, 2, [Sum("value"), Count()])
    run(job)
    assert sink.results == [
        ("a", (0, 1)),
        ("b", (1, 1)),
        ("a", (2, 2)),
        ("c", (3, 1)),
        ("a", (6, 3)),
        ("b", (6, 2)),
    ]


def test_state_goes_on_from_the_run_before(tmp_path, run):
    job, sink = in_batches(tmp_path / "*.jsonl")
    write(tmp_path / "1.jsonl", [Event("a", 1), Event("b", 2)])
    run(job)
    write(tmp_path / "2.jsonl", [Event("a", 10)])
    finished = run(job, restore="latest")
    assert sink.results == [("a", (1, 1, 1, 1)), ("b", (1, 2, 2, 2)), ("a", (2, 11, 1, 10))]
    assert (finished.events, finished.events_this_run, finished.keys) == (3, 1, 2)


def test_filter_map_and_rows(tmp_path, run, events):
    path, sink = write(tmp_path / "a.jsonl", events), CollectSink()
    job = Job("rows")
    rows = job.record_batches(FileSource(path, type=Event), batch_rows=100)
    doubled = rows.filter(pc.field("value") > 0).map(
        lambda batch: pa.record_batch({"key": batch["key"], "twice": pc.multiply(batch["value"], 2)})
    )
    doubled.filter(lambda batch: pc.equal(batch["key"], "user-3")).rows().filter(lambda row: row["twice"] > 10).sink(
        sink
    )
    none = CollectSink()
    rows.filter(pc.field("value") > 1000).key_by("key", str).aggregate(Count()).sink(none)
    finished = run(job)
    assert sink.results == [
        {"key": event.key, "twice": event.value * 2} for event in events if event.key == "user-3" and event.value > 5
    ]
    assert (none.results, finished.events) == ([], 3000)


def test_rows_become_events_with_times(tmp_path, run):
    path, sink = write(tmp_path / "a.jsonl", [Event("a", 1), Event("b", 2)]), CollectSink()
    job = Job("times")
    rows = job.record_batches(FileSource(path, type=Event)).rows()
    strategy = WatermarkStrategy.monotonous(lambda row: row["value"])
    rows.assign_timestamps(strategy).map(lambda row: row["key"]).sink(sink)
    run(job)
    assert sink.results == ["a", "b"]


def test_output_goes_to_any_sink(tmp_path, run):
    path = write(tmp_path / "a.jsonl", [Event("a", 1), Event("b", 2), Event("a", 3)])
    job = Job("out")
    counted = job.record_batches(FileSource(path, type=Event)).key_by("key", str).aggregate(Count(), Mean("value"))
    counted.sink(FileSink(tmp_path / "out"))
    run(job)
    (part,) = (tmp_path / "out").glob("part-*")
    assert sorted(json.loads(line) for line in part.read_text().splitlines()) == [["a", [2, 2.0]], ["b", [1, 2.0]]]


# What fails


def _boom(batch):
    if 13 in batch["value"].to_pylist():
        raise ValueError("unlucky")
    return batch


def _failing(rows, place):
    match place:
        case "map":
            return rows.map(_boom)
        case "filter":
            return rows.filter(lambda batch: pc.is_valid(_boom(batch)["value"]))
    return rows


@pytest.mark.parametrize("place", ["map", "filter"])
def test_an_error_names_the_operator(tmp_path, run, place):
    path = write(tmp_path / "a.jsonl", [Event("a", number) for number in range(20)])
    job = Job("failing")
    _failing(job.record_batches(FileSource(path, type=Event)), place).rows().sink(CollectSink())
    with pytest.raises(UserCodeError, match=rf"operator '{place}-1' failed.*ValueError: unlucky \(test_columnar_jobs"):
        run(job)


@pytest.mark.parametrize("place", ["map", "filter", "row"])
@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_one_row_is_passed_over(tmp_path, run, places, place, policy):
    """The function fails on a batch of thousands, and one row of it is missing."""
    path = write(tmp_path / "a.jsonl", [Event(f"k{number % 3}", number) for number in range(3000)])
    job, sink = Job("passing"), CollectSink()
    rows = _failing(job.record_batches(FileSource(path, type=Event)), place)
    counted = rows.key_by("key", str).aggregate(Count(), Sum("value"))
    counted.sink(sink)
    rows.rows().map(lambda row: 1 // (row["value"] - 13) if place == "row" else row).sink(CollectSink())
    finished = run(job, f"job.on-error={policy}")
    total = sum(range(1, 3000, 3))
    assert last(sink.results) == {"k0": (1000, total - 1000), "k1": (999, total - 13), "k2": (1000, total + 1000)}
    assert (finished.events, finished.skipped_events) == (3000, 1)
    parts = places.folder.rglob("dead-letter/events/part-*")
    letters = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    assert [letter["text"] for letter in letters] == ["{'key': 'k1', 'value': 13, 'price': None}"] * (
        policy == "dead-letter"
    )


def test_rows_without_a_key_can_be_passed_over(tmp_path, run):
    parquet.write_table(pa.table({"key": ["a", None, "b", "a"], "value": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    job, sink = Job("keys"), CollectSink()
    job.record_batches(FileSource(tmp_path / "a.parquet")).key_by("key", str).aggregate(Sum("value")).sink(sink)
    assert run(job, "job.on-error=skip").skipped_events == 1
    assert last(sink.results) == {"a": (5,), "b": (3,)}


def test_a_function_must_return_a_record_batch(tmp_path, run):
    job = Job("maps")
    path = write(tmp_path / "a.jsonl", [Event("a", 1)])
    job.record_batches(FileSource(path, type=Event)).map(lambda batch: batch.to_pylist()).rows().sink(CollectSink())
    with pytest.raises(UsageError, match=r"the function of map\(\) returned list: let it return a pyarrow.RecordBatch"):
        run(job)


def test_bad_lines_are_those_of_the_source(tmp_path, run):
    path = write(tmp_path / "a.jsonl", [Event("a", 1), Event("a", 2)])
    with path.open("a") as file:
        file.write('{"key":"a","value":1.5}\n{"key":"a","value":4}\n')
    job, sink = in_batches(path, on_error="skip")
    finished = run(job)
    assert (last(sink.results), finished.events, finished.bad_records) == ({"a": (3, 7, 1, 4)}, 3, 1)
    job, sink = in_batches(path)
    with pytest.raises(StateStoreError, match="line 3: Expected `int`, got `float`"):
        run(job)


# What is checked before anything runs


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda job, rows: job.record_batches(CollectionSource([1])), r"takes a source such as FileSource\(...\)"),
        (lambda job, rows: job.record_batches("a.jsonl"), r"takes a source such as FileSource\(...\), not str"),
        (
            lambda job, rows: job.record_batches(FileSource("b"), watermarks=WatermarkStrategy.monotonous(len)),
            r"no event times: take .rows\(\) of them, and .assign_timestamps",
        ),
        (lambda job, rows: job.record_batches(FileSource("b"), batch_rows=0), "batch_size is 0"),
        (
            lambda job, rows: rows.filter("value > 3"),
            r"filter\(\) takes an expression of pyarrow.compute or a function",
        ),
        (lambda job, rows: rows.map(3), r"map\(\) takes a function"),
        (lambda job, rows: rows.key_by("key", float), "key type <class 'float'> is not supported"),
        (lambda job, rows: rows.key_by(["key", "value"], str), r"one column for each part of a key: str can't be of"),
        (lambda job, rows: rows.key_by("key", tuple[str, int]), "one column for each part of a key"),
        (lambda job, rows: rows.key_by("key", str).aggregate(), "at least one aggregation"),
        (
            lambda job, rows: rows.key_by("key", str).aggregate(Count),
            r"takes aggregations such as Sum\('value'\), not the class",
        ),
        (lambda job, rows: Sum(3), r"Sum\(\) takes the name of a column, not 3"),
    ],
)
def test_what_is_no_good(build, problem):
    job = Job("wrong")
    with pytest.raises(UsageError, match=problem):
        build(job, job.record_batches(FileSource("a.jsonl", type=Event)))


def test_rate_limits_count_rows(tmp_path):
    source = FileSource(tmp_path / "a.jsonl", type=Event, rate_limit=50)
    job = Job("limited")
    job.record_batches(source, rate_limit=20.5).rows().sink(CollectSink())
    (operator,) = [operator for operator in job.build() if operator.uid == "source-1"]
    assert operator.rate_limit == 20.5
    assert operator.source._batch_size == 20
