"""Keys and aggregations of record batches."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from statestore.errors import UsageError
from statestore.keys import KeyCodec
from statestore_runtime import CollectSink, Count, FileSource, Job, Max, Mean, Min, Sum
from statestore_runtime.operators.grouping import Grouping
from tests.runtime.columnar_jobs import Event, in_batches, last, write

# Keys


class Place(msgspec.Struct, frozen=True):
    city: str
    number: int


@pytest.mark.parametrize(
    ("columns", "key_type", "expected"),
    [
        ("a", str, {"x": 2, "y": 1}),
        ("b", int, {1: 1, 2: 2}),
        ("c", bool, {True: 2, False: 1}),
        ("d", bytes, {b"1": 3}),
        (["a", "b"], tuple[str, int], {("x", 1): 1, ("x", 2): 1, ("y", 2): 1}),
        (("a", "b"), Place, {Place("x", 1): 1, Place("x", 2): 1, Place("y", 2): 1}),
        (["e"], str, {"p": 2, "q": 1}),
    ],
)
@pytest.mark.parametrize("parallelism", [1, 2])
def test_keys(tmp_path, run, columns, key_type, expected, parallelism):
    table = pa.table(
        {
            "a": ["x", "x", "y"],
            "b": pa.array([1, 2, 2], pa.int8()),
            "c": [True, False, True],
            "d": [b"1"] * 3,
            "e": pa.array(["p", "q", "p"]).dictionary_encode(),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    job, sink = Job("keys"), CollectSink()
    rows = job.record_batches(FileSource(tmp_path / "a.parquet"))
    rows.key_by(columns, key_type).aggregate(Count()).sink(sink)
    run(job, f"parallelism.default={parallelism}")
    assert {key: count for key, (count,) in sink.results} == expected


@pytest.mark.parametrize(
    ("key", "key_type", "values", "problem"),
    [
        ("key", int, ["a"], "column 'key' is string, its keys are declared to be int"),
        ("key", str, [1.5], "column 'key' is double, its keys are declared to be str"),
        (
            "key",
            str,
            ["a", None, "b"],
            "column 'key' has no key in 1 rows, the first of them is {'key': None, 'value': 1}",
        ),
        ("keys", str, ["a"], "the record batches have no column 'keys': they have key, value"),
    ],
)
def test_keys_of_the_wrong_kind(tmp_path, run, key, key_type, values, problem):
    table = pa.table({"key": values, "value": list(range(len(values)))})
    parquet.write_table(table, tmp_path / "a.parquet")
    job = Job("keys")
    job.record_batches(FileSource(tmp_path / "a.parquet")).key_by(key, key_type).aggregate(Count()).sink(CollectSink())
    with pytest.raises(UsageError, match="^" + problem.replace("{", r"\{")) as caught:
        run(job)
    assert "in operator 'key-by-1'" in caught.value.__notes__


# Aggregations, against Python

_VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int8(): st.integers(-128, 127),
    pa.float32(): st.floats(width=32, allow_nan=False, allow_infinity=False),
    pa.float64(): st.floats(-1e6, 1e6),
}


@st.composite
def _tables(draw):
    kind = draw(st.sampled_from(list(_VALUES)))
    rows = draw(st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), _VALUES[kind])), max_size=12))
    return pa.record_batch(
        {"key": pa.array([k for k, _ in rows], pa.string()), "value": pa.array([v for _, v in rows], kind)}
    )


@given(st.lists(_tables(), min_size=1, max_size=3))
@settings(deadline=None, max_examples=200)
def test_partial_accumulators(batches):
    """Sums are exact however large they are; nulls are passed over."""
    aggregations = [Count(), Count("value"), Sum("value"), Min("value"), Max("value"), Mean("value")]
    grouping = Grouping(["key"], KeyCodec(str), aggregations)
    for batch in batches:
        by_key = defaultdict(list)
        for row in batch.to_pylist():
            by_key[row["key"]].append(row["value"])
        found = dict(zip(*grouping.aggregate(batch), strict=True))
        assert found.keys() == by_key.keys()
        for key, values in by_key.items():
            known = [value for value in values if value is not None]
            count, counted, total, least, greatest, mean_total, mean_count = found[key]
            assert (count, counted, mean_count) == (len(values), len(known), len(known))
            assert (least, greatest) == ((min(known), max(known)) if known else (None, None))
            if pa.types.is_integer(batch["value"].type):
                assert total == mean_total == sum(known)
                assert all(type(number) is int for number in (total, *filter(None, (least, greatest))))
            else:
                assert total == mean_total == pytest.approx(sum(known))


def test_results_of_nothing_but_nulls(tmp_path, run):
    table = pa.table({"key": ["a", "b", "a"], "value": pa.array([None, 4, None], pa.int64())})
    parquet.write_table(table, tmp_path / "a.parquet")
    job, sink = Job("nulls"), CollectSink()
    rows = job.record_batches(FileSource(tmp_path / "a.parquet"), batch_rows=2)
    rows.key_by("key", str).aggregate(Count(), Count("value"), *(kind("value") for kind in (Sum, Min, Max, Mean))).sink(
        sink
    )
    run(job)
    assert last(sink.results) == {"a": (2, 0, 0, None, None, None), "b": (1, 1, 4, 4, 4, 4.0)}


def test_sums_beyond_what_arrow_holds(tmp_path, run):
    """Of one batch, and of several."""
    path = write(tmp_path / "a.jsonl", [Event("a", 2**62), Event("a", 2**62), Event("b", -(2**63))])
    for batch_rows in (1, 10):
        job, sink = in_batches(path, batch_rows, [Sum("value")])
        run(job)
        assert last(sink.results) == {"a": (2**63,), "b": (-(2**63),)}


@pytest.mark.parametrize("aggregation", [Sum("key"), Min("key"), Max("key"), Mean("key")])
def test_numbers_are_needed(tmp_path, run, aggregation):
    job, _ = in_batches(write(tmp_path / "a.jsonl", [Event("a", 1)]), None, [aggregation])
    with pytest.raises(UsageError, match=r"column 'key' is string: (sum|min|max) takes numbers"):
        run(job)
