"""Kafka topics as a source, on the mock cluster that is part of librdkafka.

The mock knows no transactions that are aborted, no look-up by time and no way to add partitions: what depends on these is tested with the
driver's answers put in.
"""

from __future__ import annotations

import datetime
import functools
import json
import sys
import time
import uuid

import confluent_kafka
import msgspec
import pytest

from statestore.errors import ConfigError, UnavailableError, UsageError
from statestore.testing import redis_server
from statestore.testing.clock import FakeClock
from statestore_runtime.sources import BadRecordError, KafkaSource, SourceContext
from tests.runtime.source_reading import Reading, read, stopped, until_bad

POLLS = 30_000


class Order(msgspec.Struct, frozen=True):
    id: int


class Cluster:
    """A broker in this process; topics have four partitions."""

    def __init__(self):
        self.producer = confluent_kafka.Producer(
            {"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": 1, "log_level": 0}
        )
        brokers = self.producer.list_topics(timeout=10).brokers.values()
        self.servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def send(self, topic, partition, *values, **options):
        for value in values:
            self.producer.produce(topic, value, partition=partition, **options)
            assert self.producer.flush(10) == 0  # one by one, so that the log can be cut between them


@pytest.fixture(scope="module")
def cluster():
    return Cluster()


@pytest.fixture
def topic():
    return f"orders.{uuid.uuid4().hex}"


@pytest.fixture
def source(cluster):
    return functools.partial(KafkaSource, cluster.servers, properties={"fetch.wait.max.ms": 5})


def filled(cluster, topic, counts=(5, 3, 0, 1)):
    """Numbers p0, p1, ... in partition p; the source that reads them."""
    for partition, count in enumerate(counts):
        cluster.send(topic, partition, *[str(10 * partition + number) for number in range(count)])
    if counts[3] == 0:
        cluster.producer.list_topics(topic, timeout=10)  # makes it
    return [10 * partition + number for partition, count in enumerate(counts) for number in range(count)]


def pause():
    """The driver's threads need a while to get an answer."""
    time.sleep(0.001)


def wait_for(reading, count):
    """So many events, and what came with the last."""
    events = []
    for _ in range(POLLS):
        events += reading.next_batch() or []
        if len(events) >= count:
            return events
        pause()
    raise AssertionError(f"{len(events)} of {count} events")


def waiting(source, *arguments, **options):
    """All events of a bounded source."""
    reading = Reading(source, *arguments, **options)
    events = []
    for _ in range(POLLS):
        batch = reading.next_batch()
        if batch is None:
            reading.close()
            return events
        events += batch
        if not batch:
            pause()
    raise AssertionError("no end")


# Reading


def test_partitions_are_splits(cluster, source, topic):
    expected = filled(cluster, topic)
    orders = source(topic, bounded=True)
    assert orders.discover([]) == [f"{topic}/{number}" for number in range(4)]
    assert orders.discover([f"{topic}/1", f"{topic}/0"]) == [f"{topic}/2", f"{topic}/3"]
    assert (orders.is_concurrent, orders.name, orders.discovery_interval) == (True, f"kafka topic {topic}", None)
    assert source(topic).discovery_interval == 300
    assert sorted(waiting(orders)) == expected
    orders.close()


def test_several_topics(cluster, source, topic):
    filled(cluster, topic, (1, 0, 0, 0))
    filled(cluster, topic + "2", (0, 2, 0, 0))
    both = source([topic, topic + "2"], bounded=True)
    assert len(both.discover([])) == 8
    assert sorted(waiting(both)) == [0, 10, 11]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_every_cut(cluster, source, topic, batch_size):
    expected = filled(cluster, topic, (5, 0, 0, 2))
    for count in range(len(expected) + 1):
        reading = Reading(source(topic, bounded=True, batch_size=batch_size))
        before = wait_for(reading, count) if count else []
        position = json.loads(json.dumps(reading.position()))
        reading.close()
        assert sorted(before + waiting(source(topic, bounded=True), position)) == expected


def test_partitions_keep_their_order(cluster, source, topic):
    filled(cluster, topic, (9, 9, 9, 9))
    events = waiting(source(topic, bounded=True, batch_size=2))
    for partition in range(4):
        numbers = [event for event in events if event // 10 == partition]
        assert numbers == [10 * partition + number for number in range(9)]


def test_a_partition_that_is_read_slower_than_others(cluster, source, topic):
    """Its queue does not grow without end: fetching it is paused, and goes on where it was."""
    filled(cluster, topic, (100, 100, 0, 0))
    orders, context = source(topic, bounded=True, batch_size=3), SourceContext()
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


def test_a_bounded_partition_ends_where_it_did_when_reading_began(cluster, source, topic):
    filled(cluster, topic, (3, 0, 0, 0))
    reading = Reading(source(topic, bounded=True, batch_size=2))
    position = reading.position()
    assert position["splits"][f"{topic}/0"] == {"offset": 0, "end": 3}
    cluster.send(topic, 0, "7")
    assert waiting(source(topic, bounded=True), position) == [0, 1, 2]
    while (batch := reading.next_batch()) is not None:
        pause()
    assert batch is None
    reading.close()
    assert waiting(source(topic, bounded=True)) == [0, 1, 2, 7]


def test_an_end_behind_which_nothing_was_read_is_the_position(cluster, source, topic):
    """What was fetched beyond the end is not passed over by a source that is unbounded the next time."""
    filled(cluster, topic, (4, 0, 0, 0))
    split = f"{topic}/0"
    bounded = source(topic, bounded=True)
    reader = bounded.read(split, {"offset": 0, "end": 2}, SourceContext())
    events = []
    while (batch := reader.next_batch()) is not None:
        events += batch
        pause()
    assert (events, reader.position()) == ([0, 1], {"offset": 2, "end": 2})
    bounded.close()
    reading = Reading(source(topic), {"finished": [], "splits": {split: reader.position()}})
    assert wait_for(reading, 2) == [2, 3]
    reading.close()


def test_from_now_on(cluster, source, topic):
    filled(cluster, topic, (2, 0, 0, 0))
    position, _ = stopped(source(topic, start="latest"), 0)  # as the first checkpoint has it
    cluster.send(topic, 0, "7")
    reading = Reading(source(topic, start="latest"), position)
    assert wait_for(reading, 1) == [7]
    cluster.send(topic, 1, "8")
    assert wait_for(reading, 1) == [8]
    assert reading.next_batch() == []
    reading.close()


def test_from_a_time(cluster, source, topic, monkeypatch):
    filled(cluster, topic, (4, 1, 0, 0))
    asked = []

    def offsets_for_times(consumer, places, timeout):
        asked.extend(place.offset for place in places)
        return [confluent_kafka.TopicPartition(p.topic, p.partition, 2 if p.partition == 0 else -1) for p in places]

    replace_consumer(monkeypatch, offsets_for_times=offsets_for_times)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert waiting(source(topic, start=start, bounded=True)) == [2, 3]
    assert set(asked) == {1_767_225_600_000}


def test_from_a_time_after_all_records(cluster, source, topic):
    filled(cluster, topic, (2, 0, 0, 0))
    start = datetime.datetime(2126, 1, 1, tzinfo=datetime.UTC)
    position, _ = stopped(source(topic, start=start), 0)
    assert position["splits"][f"{topic}/0"] == {"offset": 2, "end": None}


def replace_consumer(monkeypatch, **methods):
    monkeypatch.setattr(confluent_kafka, "Consumer", type("PatchedConsumer", (confluent_kafka.Consumer,), methods))


def test_partitions_that_are_added_later(cluster, source, topic):
    """They are read from their beginning: what came before they were found is not lost."""
    filled(cluster, topic, (1, 1, 1, 1))
    known = [f"{topic}/0", f"{topic}/1"]
    for start, ending in {"earliest": "", "latest": "/new"}.items():
        orders = source(topic, start=start)
        assert orders.discover([]) == [f"{topic}/{number}" for number in range(4)]
        found = orders.discover(known)
        assert found == [f"{topic}/2{ending}", f"{topic}/3{ending}"]
        assert orders.discover([*known, *found]) == []
        reader = orders.read(found[0], None, SourceContext())
        assert reader.position() == {"offset": 0, "end": None}
        orders.close()


# Decoding


def test_types(cluster, source, topic):
    cluster.send(topic, 0, '{"id": 1}', '{"id": 2}')
    assert waiting(source(topic, type=Order, bounded=True)) == [Order(1), Order(2)]
    assert waiting(source(topic, bounded=True)) == [{"id": 1}, {"id": 2}]


def test_a_function_that_decodes(cluster, source, topic):
    cluster.send(topic, 2, b"value", key=b"key", headers={"h": b"1"}, timestamp=1234)

    def decode(message):
        return message.key(), message.value(), message.headers(), message.timestamp()[1], message.partition()

    assert waiting(source(topic, decode=decode, bounded=True)) == [(b"key", b"value", [("h", b"1")], 1234, 2)]


def test_records_without_a_value(cluster, source, topic):
    cluster.send(topic, 0, None, "7")
    assert waiting(source(topic, bounded=True)) == [None, 7]
    assert waiting(source(topic, type=int | None, bounded=True)) == [None, 7]
    with pytest.raises(BadRecordError, match="got `null`"):
        waiting(source(topic, type=int, bounded=True))


@pytest.mark.parametrize("batch_size", [1, 100])
def test_bad_records(cluster, source, topic, batch_size):
    cluster.send(topic, 1, '{"id": 1}', '{"id": "x"}', b"\xff", '{"id": 2}')
    make = functools.partial(source, topic, type=Order, bounded=True, batch_size=batch_size)
    with pytest.raises(BadRecordError, match=rf"in {topic}/1, offset 1: Expected `int`, got `str`") as caught:
        waiting(make())
    assert (caught.value.unit, caught.value.number, caught.value.text) == ("offset", 1, '{"id": "x"}')
    events, position = until_bad(make())
    assert events + waiting(make(), position, SourceContext("skip")) == [Order(1), Order(2)]
    context = SourceContext("dead-letter", (letters := []).extend)
    assert waiting(make(), context=context) == [Order(1), Order(2)]
    assert [(letter.source, letter.offset, letter.text) for letter in letters] == [
        (f"{topic}/1", 1, '{"id": "x"}'),
        (f"{topic}/1", 2, "\\xff"),
    ]


def test_a_function_that_fails_to_decode(cluster, source, topic):
    cluster.send(topic, 0, "1", "x", "3")
    context = SourceContext("dead-letter", (letters := []).extend)
    decode = lambda message: int(message.value())  # noqa: E731
    assert waiting(source(topic, decode=decode, bounded=True), context=context) == [1, 3]
    assert letters[0].error.startswith("ValueError: invalid literal")


# Offsets that are not there


def test_records_that_were_deleted_before_they_were_read(cluster, source, topic):
    """The mock keeps 5 MiB of a partition."""
    cluster.send(topic, 0, "1", "2")
    reading = Reading(source(topic, batch_size=1))
    assert wait_for(reading, 1) == [1]
    position = reading.position()
    reading.close()
    cluster.send(topic, 0, *[json.dumps("x" * 900_000)] * 10)
    low, high = orders_end(cluster, topic)
    assert low > 1
    with pytest.raises(
        UsageError,
        match=rf"partition {topic}/0 can't be read from offset 1: records from offset 1 to {low - 1} have been deleted",
    ):
        Reading(source(topic), position)
    far = {"finished": [], "splits": {f"{topic}/0": {"offset": high + 5, "end": None}}}
    with pytest.raises(UsageError, match=rf"from offset {high + 5}: its end is offset {high}: it was made anew"):
        Reading(source(topic), far)


def orders_end(cluster, topic):
    consumer = confluent_kafka.Consumer({"bootstrap.servers": cluster.servers, "group.id": "test"})
    try:
        return consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, 0), timeout=10)
    finally:
        consumer.close()


def test_records_that_are_deleted_while_a_partition_is_read(cluster, source, topic, monkeypatch):
    """The look at the beginning was in time, the fetch was not."""
    cluster.send(topic, 0, "1", "2")
    orders = source(topic)
    position = {"offset": 1, "end": None}
    cluster.send(topic, 0, *[json.dumps("x" * 900_000)] * 10)
    with monkeypatch.context() as patch:
        patch.setattr("statestore_runtime.sources.kafka.client.SharedConsumer.watermarks", lambda *place: (0, 2))
        reader = orders.read(f"{topic}/0", position, SourceContext())
    with pytest.raises(UsageError, match=rf"partition {topic}/0 can't be read from offset 1: records from offset 1 to"):
        for _ in range(POLLS):
            assert reader.next_batch() == []
            pause()
    orders.close()


# Brokers and settings


def test_a_broker_that_does_not_answer(monkeypatch, caplog):
    monkeypatch.setattr("statestore_runtime.sources.kafka.client.REQUEST_SECONDS", 1.0)
    place = f"127.0.0.1:{redis_server.free_port()}"
    source = KafkaSource(place, "orders", properties={"sasl.password": "secret"})
    with pytest.raises(UnavailableError, match=f"kafka unavailable at {place}") as caught:
        source.discover([])
    assert "secret" not in str(caught.value)
    with caplog.at_level("WARNING"):
        assert source.discover(["orders/0"]) == []
    assert "kafka topic orders: new partitions can't be looked for now" in caplog.text
    source.close()


def test_brokers_that_go_away(monkeypatch, topic):
    monkeypatch.setattr("statestore_runtime.sources.kafka.client.REQUEST_SECONDS", 1.0)
    own, clock = Cluster(), FakeClock()
    own.send(topic, 0, "1")
    source = KafkaSource(own.servers, topic, timeout_seconds=30)
    reader = source.read(f"{topic}/0", None, SourceContext(clock=clock))
    while not reader.next_batch():
        pause()
    del own.producer
    for _ in range(POLLS):
        assert reader.next_batch() == []
        if source._consumer._down_since is not None:
            break
        pause()
    clock.advance(29)
    assert reader.next_batch() == []
    clock.advance(1)
    with pytest.raises(UnavailableError, match="kafka unavailable"):
        reader.next_batch()
    source.close()


def test_brokers_that_come_back(cluster, source, topic):
    cluster.send(topic, 0, "1")
    orders, clock = source(topic, timeout_seconds=30), FakeClock()
    reader = orders.read(f"{topic}/0", None, SourceContext(clock=clock))
    while not reader.next_batch():
        pause()
    orders._consumer._note_error(confluent_kafka.KafkaError(confluent_kafka.KafkaError._ALL_BROKERS_DOWN))
    clock.advance(60)
    assert reader.next_batch() == []  # they answer, so there is just nothing new
    clock.advance(60)
    assert reader.next_batch() == []
    orders._consumer._note_error(confluent_kafka.KafkaError(confluent_kafka.KafkaError._AUTHENTICATION))
    with pytest.raises(UnavailableError, match="Authentication"):
        reader.next_batch()
    orders.close()


def test_a_topic_that_is_not_there(cluster, source, monkeypatch, topic):
    with pytest.raises(ConfigError, match=f"there is no topic '{topic}'"):
        read(source(topic))


def test_properties(cluster, topic):
    for properties, problem in (
        ({"nonsense": 1}, 'No such configuration property: "nonsense"'),
        ({"fetch.max.bytes": "many"}, 'Invalid value for configuration property "fetch.max.bytes"'),
    ):
        with pytest.raises(ConfigError, match=problem):
            KafkaSource(cluster.servers, topic, properties=properties).discover([])
    cluster.send(topic, 0, "1")
    properties = {"group.id": "mine", "isolation.level": "read_uncommitted"}
    assert waiting(KafkaSource(cluster.servers, topic, properties=properties, bounded=True)) == [1]


def test_without_the_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"install the extra 'statestore\[kafka\]'"):
        KafkaSource("127.0.0.1:9", "orders").discover([])


@pytest.mark.parametrize(
    "make",
    [
        lambda: KafkaSource("host", []),
        lambda: KafkaSource("host", ["a", "a"]),
        lambda: KafkaSource("host", "a", start="middle"),
        lambda: KafkaSource("host", "a", start=datetime.datetime(2026, 1, 1)),
        lambda: KafkaSource("host", "a", type=int, decode=str),
        lambda: KafkaSource("host", "a", bounded=True, discovery_interval=5),
        lambda: KafkaSource("host", "a", discovery_interval=0),
        lambda: KafkaSource("host", "a", timeout_seconds=0),
        lambda: KafkaSource("host", "a", batch_size=0),
        lambda: KafkaSource("host", "a", properties={"enable.auto.commit": True}),
    ],
)
def test_wrong_arguments(make):
    with pytest.raises((UsageError, ConfigError)):
        make()
