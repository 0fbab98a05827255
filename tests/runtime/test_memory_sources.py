"""Sources in memory, and what all sources with a fixed number of splits promise."""

from __future__ import annotations

import functools

import pytest

from statestore.errors import ConfigError, UsageError
from statestore.testing.clock import FakeClock
from statestore_runtime.sources import (
    CollectionSource,
    GeneratorSource,
    IterableSource,
    RateLimit,
    SourceContext,
)
from tests.runtime.source_reading import Reading, check_every_cut, read


def test_every_cut_of_a_collection_and_an_iterable():
    events = list(range(7))
    check_every_cut(functools.partial(CollectionSource, events), events)
    check_every_cut(functools.partial(IterableSource, lambda: iter(events)), events)


def parts(source, position=None):
    """The events of each split, read on their own as by workers of their own."""
    context, found = SourceContext(), []
    for split in source.discover([]):
        reader, events = source.read(split, (position or {}).get(split), context), []
        while (batch := reader.next_batch()) is not None:
            events += batch
        found.append(events)
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_splits_have_all_events_between_them(batch_size):
    events = list("abcdefgh")
    assert parts(CollectionSource(events, splits=3, batch_size=batch_size)) == [list("adg"), list("beh"), list("cf")]
    squares = GeneratorSource(lambda number: number**2, 8, splits=3, batch_size=batch_size)
    assert parts(squares) == [[0, 9, 36], [1, 16, 49], [4, 25]]
    assert parts(CollectionSource(["ab"], splits=3)) == [["ab"], [], []]
    assert parts(GeneratorSource(str, 0, splits=2)) == [[], []]


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(
    "make", [lambda **o: CollectionSource(range(11), **o), lambda **o: GeneratorSource(int, 11, **o)]
)
def test_every_cut_of_each_split(make, splits):
    whole = parts(make(splits=splits))
    for part, expected in enumerate(whole):
        split = f"{part}/{splits}"
        for cut in range(len(expected) + 1):
            reader = make(splits=splits, batch_size=1).read(split, None, SourceContext())
            before = [event for _ in range(cut) for event in reader.next_batch()]
            assert before + parts(make(splits=splits, batch_size=2), {split: reader.position()})[part] == expected


def test_the_number_of_splits_must_stay():
    assert CollectionSource([1], splits=2).discover(["0/2", "1/2"]) == []
    with pytest.raises(UsageError, match=r"CollectionSource has splits=3, the checkpoint was made with 2"):
        CollectionSource([1], splits=3).discover(["0/2", "1/2"])
    with pytest.raises(UsageError, match=r"has splits=1, the checkpoint was made with 2"):
        GeneratorSource(int).discover(["0/2"])


def test_a_generator_without_an_end():
    reading = Reading(GeneratorSource(lambda number: -number, splits=2, batch_size=2))
    assert [reading.next_batch() for _ in range(2)] == [[0, -2], [-4, -6]]
    reader = GeneratorSource(int).read("0/1", 10**12, SourceContext())
    assert reader.next_batch()[0] == 10**12


def test_a_function_that_fails_loses_no_event():
    failing = [True]

    def function(number):
        if number == 2 and failing:
            raise ZeroDivisionError
        return number

    reader = GeneratorSource(function, 4, batch_size=2).read("0/1", None, SourceContext())
    assert reader.next_batch() == [0, 1]
    with pytest.raises(ZeroDivisionError):
        reader.next_batch()
    failing.clear()
    assert (reader.position(), reader.next_batch(), reader.next_batch()) == (2, [2, 3], None)


def test_a_collection_that_has_become_shorter():
    with pytest.raises(UsageError, match="has 2 events, the checkpoint was made after 3"):
        CollectionSource([1, 2]).read("0/1", 3, SourceContext())
    with pytest.raises(UsageError, match="has 1 events in part 1 of 2, the checkpoint was made after 2"):
        CollectionSource([1, 2], splits=2).read("1/2", 2, SourceContext())


def test_an_iterable_that_has_become_shorter():
    with pytest.raises(UsageError, match="ended after 2 events, the checkpoint was made after 3"):
        IterableSource(lambda: [1, 2]).read("0/1", 3, SourceContext())


def test_an_iterable_is_made_again_at_each_start_and_closed():
    made, closed = [], []

    def events():
        made.append(True)
        try:
            yield from range(5)
        finally:
            closed.append(True)

    source = IterableSource(events, batch_size=2)
    reading = Reading(source)
    assert reading.next_batch() == [0, 1]
    position = reading.position()
    reading.close()
    assert closed == [True]
    assert read(source, position) == [2, 3, 4]
    assert (len(made), len(closed)) == (2, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CollectionSource("text"),
        lambda: CollectionSource({1, 2}),
        lambda: CollectionSource([1], batch_size=0),
        lambda: CollectionSource([1], splits=0),
        lambda: CollectionSource([1], rate_limit=-1),
        lambda: IterableSource([1]),
        lambda: IterableSource(list, batch_size=-1),
        lambda: GeneratorSource(5),
        lambda: GeneratorSource(int, -1),
        lambda: GeneratorSource(int, splits=0),
        lambda: RateLimit(0, FakeClock()),
    ],
)
def test_wrong_arguments(make):
    with pytest.raises((UsageError, ConfigError)):
        make()


def test_names_and_options():
    source = CollectionSource([], rate_limit=2.5)
    assert (source.name, source.rate_limit, source.is_concurrent) == ("CollectionSource", 2.5, True)
    assert (source.on_error, source.discovery_interval) == (None, None)


# Rates


def taken(limit, clock, seconds, batch):
    """Events of a reader that takes batches whenever it may."""
    count, end = 0, clock.monotonic() + seconds
    while clock.monotonic() + (wait := limit.wait_seconds()) < end:
        clock.advance(wait)
        assert limit.wait_seconds() == pytest.approx(0, abs=1e-9)
        limit.take(batch)
        count += batch
    return count


@pytest.mark.parametrize("batch", [1, 7, 250])
def test_a_rate_is_kept_whatever_the_size_of_batches(batch):
    clock = FakeClock()
    limit = RateLimit(100, clock)
    assert taken(limit, clock, 50, batch) == pytest.approx(5000, abs=batch + 1)


def test_taking_tells_how_long_to_wait():
    clock = FakeClock()
    limit = RateLimit(10, clock)
    assert limit.wait_seconds() == 0
    assert limit.take(5) == pytest.approx(0.5)
    clock.advance(0.2)
    assert limit.wait_seconds() == pytest.approx(0.3)
    assert limit.take(1) == pytest.approx(0.4)
    clock.advance(0.4)
    assert limit.take(0) == pytest.approx(0, abs=1e-9)


def test_a_pause_is_made_good_for_up_to_the_burst():
    clock = FakeClock()
    limit = RateLimit(10, clock, burst_seconds=2)
    clock.advance(60)
    assert (limit.take(20), limit.take(1)) == (0, pytest.approx(0.1))
    clock.set_time(0)  # what the wall clock says is nothing to it
    assert limit.wait_seconds() == pytest.approx(0.1)
