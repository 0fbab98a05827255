"""The reading end of a task: where its splits stand when they are taken as ended."""

from __future__ import annotations

import pytest

from statestore.testing.clock import FakeClock
from statestore_runtime import CollectionSource
from statestore_runtime.operators import SourceOperator
from statestore_runtime.sources import SourceContext
from statestore_runtime.task.sourcing import SourceInput


@pytest.fixture
def operator():
    return SourceOperator("source", CollectionSource(range(12), splits=3, batch_size=1))


def opened(operator):
    clock = FakeClock()
    return SourceInput(operator, SourceContext("fail", clock=clock), clock, 1)


def read(source, batches):
    events = []
    for _ in range(batches):
        source.step(lambda count, emit, event_at: events.extend(event_at(at) for at in range(count)))
    return events


def test_a_drained_source_has_ended_and_knows_where_its_splits_stood(operator):
    source, splits = opened(operator), operator.source.discover(())
    source.assign(splits[:2])
    first = read(source, 3)
    source.drain()
    assert source.has_ended
    assert read(source, 3) == []
    known = source.meta()
    assert sorted(known["splits"]) == splits[:2] and not known["finished"]
    again = opened(operator)
    again.restore(known["splits"], known["finished"])
    assert sorted(first + read(again, 8)) == sorted([*range(0, 12, 3), *range(1, 12, 3)])


def test_splits_that_are_found_after_it_was_drained_are_left_to_the_next_run(operator):
    source, splits = opened(operator), operator.source.discover(())
    source.assign(splits[:1])
    source.drain()
    source.assign(splits[1:])
    source.no_more_splits()
    assert read(source, 3) == []
    assert list(source.meta()["splits"]) == splits[:1]
