"""The reading end of a task: where its splits stand when they are taken as ended."""

from __future__ import annotations

import pytest

from statestore.testing.clock import FakeClock
from statestore_runtime import CollectionSource, WatermarkStrategy
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


class Silent(CollectionSource):
    """After its events it has nothing for the time being."""

    def read_part(self, part, position, context):
        reader = super().read_part(part, position, context)
        next_batch = reader.next_batch
        reader.next_batch = lambda: next_batch() or []
        return reader


def test_a_split_is_idle_that_was_read_in_vain_for_long_enough():
    strategy = WatermarkStrategy.monotonous(lambda event: event, idle_after="5s")
    operator = SourceOperator("source", Silent([10, 11, 90], splits=2, batch_size=1), strategy)
    clock = FakeClock()
    source = SourceInput(operator, SourceContext("fail", clock=clock), clock, 1)
    source.assign(operator.source.discover(()))
    watermarks = []
    for _ in range(8):
        source.step(lambda count, emit, event_at: emit(0, count))
        watermarks.append(operator.watermark)
        clock.advance(1)
    assert watermarks == [None, 9, 10, 10, 10, 10, 89, 89]


class Closable:
    def __init__(self, closed, name, fails):
        self.closed, self.name, self.fails = closed, name, fails

    def close(self):
        self.closed.append(self.name)
        if self.fails:
            raise ValueError(self.name)


def test_all_readers_are_closed_though_one_fails(monkeypatch, operator):
    source, closed = opened(operator), []
    source.assign(operator.source.discover(()))
    monkeypatch.setattr(operator.source, "close", Closable(closed, "source", False).close)
    for number, split in enumerate(source._splits):
        split.reader = Closable(closed, number, number == 1)
    with pytest.raises(ValueError, match="1"):
        source.close()
    assert sorted(closed, key=str) == [0, 1, 2, "source"]
    assert closed[-1] == "source"


def test_of_a_split_that_is_never_looked_at_again_the_name_is_kept(operator):
    operator.source.resumes_finished = False
    source, splits = opened(operator), operator.source.discover(())
    source.assign(splits)
    read(source, 20)
    known = source.meta()
    assert known["finished"] == dict.fromkeys(splits) and not known["splits"]
    for resumes in (False, True):
        operator.source.resumes_finished = resumes
        again = opened(operator)
        again.restore({}, known["finished"])
        assert read(again, 5) == []
        assert again.meta()["finished"] == known["finished"]


def test_a_split_that_was_read_to_its_end_goes_on_there(operator):
    source, splits = opened(operator), operator.source.discover(())
    source.assign(splits)
    read(source, 20)
    operator.source._events = [*range(12), 12, 13]
    again = opened(operator)
    again.restore({}, source.meta()["finished"])
    assert sorted(read(again, 10)) == [12, 13]
