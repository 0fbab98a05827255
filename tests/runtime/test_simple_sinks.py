"""Sinks without files: a list, a function, standard output."""

from __future__ import annotations

import subprocess
import sys

import pytest

from statestore.errors import (
    UsageError,
)
from statestore_runtime import CallableSink, CollectSink, PrintSink
from tests.runtime.sink_conformance import JobOfSinks, numbered
from tests.runtime.sink_driving import (
    barrier,
    fresh,
    opened,
    restored,
    written,
)


def test_collect_sink_shows_what_is_committed():
    sink = opened(CollectSink())
    sink.write([1, 2])
    sink.write([3])
    first, _ = barrier(sink)
    sink.write([4])
    assert sink.results == []
    sink.commit(first)
    assert sink.results == [1, 2, 3]
    second, _ = barrier(sink)
    sink.commit(first)
    sink.commit(second)
    sink.commit(second)
    assert sink.results == [1, 2, 3, 4]
    assert barrier(sink) == (None, [1, 2])


def test_collect_sink_goes_back_to_a_checkpoint():
    sink = opened(CollectSink())
    _, early = written(sink, [1])
    sink.write([2])
    transaction, late = barrier(sink)
    sink.write([3])
    opened(sink, restored(2, [transaction], late))
    assert sink.results == [1, 2]
    written(sink, [3])
    assert sink.results == [1, 2, 3]
    opened(sink, restored(3, [], early))
    assert sink.results == [1]
    sink.write([2])
    barrier(sink)
    opened(sink, restored(4, [], early))
    assert sink.results == [1]


def test_collect_sink_starts_afresh():
    sink = opened(CollectSink())
    written(sink, [1])
    sink.write([2])
    barrier(sink)
    opened(sink, fresh(2))
    assert sink.results == []
    written(sink, [3])
    assert sink.results == [3]


def test_collect_sinks_transactions_are_told_apart_by_their_attempt():
    sink = opened(CollectSink())
    sink.write(["given up"])
    old, _ = barrier(sink)
    opened(sink, fresh(2))
    sink.write(["new"])
    new, _ = barrier(sink)
    assert old != new
    sink.commit(old)
    sink.commit(new)
    assert sink.results == ["new"]


def collecting(events):
    sink = CollectSink()
    return sink, JobOfSinks(lambda: sink, events)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 2)])
def test_collect_sink_of_several_subtasks(before, after):
    sink, job = collecting(numbered(60))
    job.deploy(before)
    job.checkpointed(10)
    early = job.checkpoint
    job.checkpointed(10)
    job.process(10)
    job.checkpoint = job.barrier()
    job.process(10)
    assert sorted(sink.results) == sorted(job.events[:20])
    job.deploy(after)
    assert sorted(sink.results) == sorted(job.events[:30])
    job.checkpointed(10)
    assert sorted(sink.results) == sorted(job.events[:40])
    job.deploy(before, early)
    assert sorted(sink.results) == sorted(job.events[:10])
    job.run_to_the_end(10)
    assert sorted(sink.results) == sorted(job.events)
    job.deploy(after, None)
    assert sink.results == []


def test_collect_sink_keeps_the_order_of_a_subtask():
    sink, job = collecting(numbered(60))
    job.deploy(2)
    job.run_to_the_end(10)
    for key in range(2):
        own = [event for event in sink.results if event[0] == key]
        assert own == [event for event in job.events if event[0] == key]


def test_copies_for_subtasks_call_one_function():
    seen = []
    sink = CallableSink(seen.append)
    for number in range(2):
        opened(sink.for_subtask(number), fresh(subtask=number, parallelism=2)).write([number])
    assert seen == [0, 1]


def test_callable_sink_calls_at_once():
    seen, batches = [], []
    sink = opened(CallableSink(seen.append))
    sink.write([1, 2])
    assert seen == [1, 2]
    assert barrier(sink) == (None, None)
    opened(CallableSink(batches.append, batch=True)).write([1, 2])
    assert batches == [[1, 2]]
    assert CallableSink(print).name == "print"
    with pytest.raises(UsageError, match="takes a function, not int"):
        CallableSink(3)


def test_print_sink_prints(capsys):
    opened(PrintSink()).write([1, "two", {"three": 3}])
    assert capsys.readouterr().out == "1\ntwo\n{'three': 3}\n"


def test_drivers_are_imported_when_they_are_needed():
    program = (
        "import sys, statestore_runtime.sinks; print({'redis', 'pyarrow', 'confluent_kafka'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.stdout == "set()\n", run.stderr
