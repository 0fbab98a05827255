"""Kafka topics as a source, on the mock cluster that is part of librdkafka.

The mock knows no transactions that are aborted, no look-up by time and no way to add partitions: what depends on these is tested with the
driver's answers put in.
"""

from __future__ import annotations

import datetime
import json

import confluent_kafka
import pytest

from statestore_runtime.sources import SourceContext
from tests.runtime.kafka_reading import POLLS, filled, pause, wait_for, waiting
from tests.runtime.source_reading import Reading, stopped


def test_partitions_are_splits(kafka_cluster, kafka_source, topic):
    expected = filled(kafka_cluster, topic)
    orders = kafka_source(topic, bounded=True)
    assert orders.discover([]) == [f"{topic}/{number}" for number in range(4)]
    assert orders.discover([f"{topic}/1", f"{topic}/0"]) == [f"{topic}/2", f"{topic}/3"]
    assert (orders.is_concurrent, orders.name, orders.discovery_interval) == (True, f"kafka topic {topic}", None)
    assert kafka_source(topic).discovery_interval == 300
    assert sorted(waiting(orders)) == expected
    orders.close()


def test_several_topics(kafka_cluster, kafka_source, topic):
    filled(kafka_cluster, topic, (1, 0, 0, 0))
    filled(kafka_cluster, topic + "2", (0, 2, 0, 0))
    both = kafka_source([topic, topic + "2"], bounded=True)
    assert len(both.discover([])) == 8
    assert sorted(waiting(both)) == [0, 10, 11]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_every_cut(kafka_cluster, kafka_source, topic, batch_size):
    expected = filled(kafka_cluster, topic, (5, 0, 0, 2))
    for count in range(len(expected) + 1):
        reading = Reading(kafka_source(topic, bounded=True, batch_size=batch_size))
        before = wait_for(reading, count) if count else []
        position = json.loads(json.dumps(reading.position()))
        reading.close()
        assert sorted(before + waiting(kafka_source(topic, bounded=True), position)) == expected


def test_partitions_keep_their_order(kafka_cluster, kafka_source, topic):
    filled(kafka_cluster, topic, (9, 9, 9, 9))
    events = waiting(kafka_source(topic, bounded=True, batch_size=2))
    for partition in range(4):
        numbers = [event for event in events if event // 10 == partition]
        assert numbers == [10 * partition + number for number in range(9)]


def test_a_partition_that_is_read_slower_than_others(kafka_cluster, kafka_source, topic):
    """Its queue does not grow without end: fetching it is paused, and goes on where it was."""
    filled(kafka_cluster, topic, (100, 100, 0, 0))
    orders, context = kafka_source(topic, bounded=True, batch_size=3), SourceContext()
    slow, fast = (orders.read(f"{topic}/{number}", None, context) for number in range(2))
    (partition,) = [p for p in orders._consumer._partitions.values() if p.number == 0]
    events, most = {slow: [], fast: []}, 0

    def drain(reader):
        nonlocal most
        for _ in range(POLLS):
            batch = reader.next_batch()
            most = max(most, len(partition.messages))
            if batch is None:
                return
            events[reader] += batch
            if not batch:
                pause()

    drain(fast)
    drain(slow)
    assert (events[slow], events[fast]) == (list(range(100)), list(range(10, 110)))
    assert most < 20
    slow.close()
    orders.close()


def test_a_bounded_partition_ends_where_it_did_when_reading_began(kafka_cluster, kafka_source, topic):
    filled(kafka_cluster, topic, (3, 0, 0, 0))
    reading = Reading(kafka_source(topic, bounded=True, batch_size=2))
    position = reading.position()
    assert position["splits"][f"{topic}/0"] == {"offset": 0, "end": 3}
    kafka_cluster.send(topic, 0, "7")
    assert waiting(kafka_source(topic, bounded=True), position) == [0, 1, 2]
    while (batch := reading.next_batch()) is not None:
        pause()
    assert batch is None
    reading.close()
    assert waiting(kafka_source(topic, bounded=True)) == [0, 1, 2, 7]


def test_an_end_behind_which_nothing_was_read_is_the_position(kafka_cluster, kafka_source, topic):
    """What was fetched beyond the end is not passed over by a source that is unbounded the next time."""
    filled(kafka_cluster, topic, (4, 0, 0, 0))
    split = f"{topic}/0"
    bounded = kafka_source(topic, bounded=True)
    reader = bounded.read(split, {"offset": 0, "end": 2}, SourceContext())
    events = []
    while (batch := reader.next_batch()) is not None:
        events += batch
        pause()
    assert (events, reader.position()) == ([0, 1], {"offset": 2, "end": 2})
    bounded.close()
    reading = Reading(kafka_source(topic), {"finished": [], "splits": {split: reader.position()}})
    assert wait_for(reading, 2) == [2, 3]
    reading.close()


def test_from_now_on(kafka_cluster, kafka_source, topic):
    filled(kafka_cluster, topic, (2, 0, 0, 0))
    position, _ = stopped(kafka_source(topic, start="latest"), 0)  # as the first checkpoint has it
    kafka_cluster.send(topic, 0, "7")
    reading = Reading(kafka_source(topic, start="latest"), position)
    assert wait_for(reading, 1) == [7]
    kafka_cluster.send(topic, 1, "8")
    assert wait_for(reading, 1) == [8]
    assert reading.next_batch() == []
    reading.close()


def test_from_a_time(kafka_cluster, kafka_source, topic, monkeypatch):
    filled(kafka_cluster, topic, (4, 1, 0, 0))
    asked = []

    def offsets_for_times(consumer, places, timeout):
        asked.extend(place.offset for place in places)
        return [confluent_kafka.TopicPartition(p.topic, p.partition, 2 if p.partition == 0 else -1) for p in places]

    replace_consumer(monkeypatch, offsets_for_times=offsets_for_times)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert waiting(kafka_source(topic, start=start, bounded=True)) == [2, 3]
    assert set(asked) == {1_767_225_600_000}


def test_from_a_time_after_all_records(kafka_cluster, kafka_source, topic):
    filled(kafka_cluster, topic, (2, 0, 0, 0))
    start = datetime.datetime(2126, 1, 1, tzinfo=datetime.UTC)
    position, _ = stopped(kafka_source(topic, start=start), 0)
    assert position["splits"][f"{topic}/0"] == {"offset": 2, "end": None}


def replace_consumer(monkeypatch, **methods):
    monkeypatch.setattr(confluent_kafka, "Consumer", type("PatchedConsumer", (confluent_kafka.Consumer,), methods))


def test_partitions_that_are_added_later(kafka_cluster, kafka_source, topic):
    """They are read from their beginning: what came before they were found is not lost."""
    filled(kafka_cluster, topic, (1, 1, 1, 1))
    known = [f"{topic}/0", f"{topic}/1"]
    for start, ending in {"earliest": "", "latest": "/new"}.items():
        orders = kafka_source(topic, start=start)
        assert orders.discover([]) == [f"{topic}/{number}" for number in range(4)]
        found = orders.discover(known)
        assert found == [f"{topic}/2{ending}", f"{topic}/3{ending}"]
        assert orders.discover([*known, *found]) == []
        reader = orders.read(found[0], None, SourceContext())
        assert reader.position() == {"offset": 0, "end": None}
        orders.close()
