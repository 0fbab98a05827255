"""Kafka topics as a source: records that can't be decoded, offsets that are not there, brokers that are away."""

from __future__ import annotations

import datetime
import functools
import json
import sys

import confluent_kafka
import msgspec
import pytest

from statestore.errors import ConfigError, UnavailableError, UsageError
from statestore.testing import redis_server
from statestore.testing.clock import FakeClock
from statestore_runtime.sources import BadRecordError, KafkaSource, SourceContext
from tests.runtime.kafka_reading import POLLS, Cluster, pause, wait_for, waiting
from tests.runtime.source_reading import Reading, read, until_bad


class Order(msgspec.Struct, frozen=True):
    id: int


# Decoding


def test_types(kafka_cluster, kafka_source, topic):
    kafka_cluster.send(topic, 0, '{"id": 1}', '{"id": 2}')
    assert waiting(kafka_source(topic, type=Order, bounded=True)) == [Order(1), Order(2)]
    assert waiting(kafka_source(topic, bounded=True)) == [{"id": 1}, {"id": 2}]


def test_a_function_that_decodes(kafka_cluster, kafka_source, topic):
    kafka_cluster.send(topic, 2, b"value", key=b"key", headers={"h": b"1"}, timestamp=1234)

    def decode(message):
        return message.key(), message.value(), message.headers(), message.timestamp()[1], message.partition()

    assert waiting(kafka_source(topic, decode=decode, bounded=True)) == [(b"key", b"value", [("h", b"1")], 1234, 2)]


def test_records_without_a_value(kafka_cluster, kafka_source, topic):
    kafka_cluster.send(topic, 0, None, "7")
    assert waiting(kafka_source(topic, bounded=True)) == [None, 7]
    assert waiting(kafka_source(topic, type=int | None, bounded=True)) == [None, 7]
    with pytest.raises(BadRecordError, match="got `null`"):
        waiting(kafka_source(topic, type=int, bounded=True))


@pytest.mark.parametrize("batch_size", [1, 100])
def test_bad_records(kafka_cluster, kafka_source, topic, batch_size):
    kafka_cluster.send(topic, 1, '{"id": 1}', '{"id": "x"}', b"\xff", '{"id": 2}')
    make = functools.partial(kafka_source, topic, type=Order, bounded=True, batch_size=batch_size)
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


def test_a_function_that_fails_to_decode(kafka_cluster, kafka_source, topic):
    kafka_cluster.send(topic, 0, "1", "x", "3")
    context = SourceContext("dead-letter", (letters := []).extend)
    decode = lambda message: int(message.value())  # noqa: E731
    assert waiting(kafka_source(topic, decode=decode, bounded=True), context=context) == [1, 3]
    assert letters[0].error.startswith("ValueError: invalid literal")


# Offsets that are not there


def test_records_that_were_deleted_before_they_were_read(kafka_cluster, kafka_source, topic):
    """The mock keeps 5 MiB of a partition."""
    kafka_cluster.send(topic, 0, "1", "2")
    reading = Reading(kafka_source(topic, batch_size=1))
    assert wait_for(reading, 1) == [1]
    position = reading.position()
    reading.close()
    kafka_cluster.send(topic, 0, *[json.dumps("x" * 900_000)] * 10)
    low, high = orders_end(kafka_cluster, topic)
    assert low > 1
    with pytest.raises(
        UsageError,
        match=rf"partition {topic}/0 can't be read from offset 1: records from offset 1 to {low - 1} have been deleted",
    ):
        Reading(kafka_source(topic), position)
    far = {"finished": [], "splits": {f"{topic}/0": {"offset": high + 5, "end": None}}}
    with pytest.raises(UsageError, match=rf"from offset {high + 5}: its end is offset {high}: it was made anew"):
        Reading(kafka_source(topic), far)


def orders_end(kafka_cluster, topic):
    consumer = confluent_kafka.Consumer({"bootstrap.servers": kafka_cluster.servers, "group.id": "test"})
    try:
        return consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, 0), timeout=10)
    finally:
        consumer.close()


def test_records_that_are_deleted_while_a_partition_is_read(kafka_cluster, kafka_source, topic, monkeypatch):
    """The look at the beginning was in time, the fetch was not."""
    kafka_cluster.send(topic, 0, "1", "2")
    orders = kafka_source(topic)
    position = {"offset": 1, "end": None}
    kafka_cluster.send(topic, 0, *[json.dumps("x" * 900_000)] * 10)
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
    monkeypatch.setattr("statestore_runtime.sources.kafka.client.REQUEST_SECONDS", 0.1)
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
    own, clock = Cluster(), FakeClock()
    own.send(topic, 0, "1")
    source = KafkaSource(own.servers, topic, timeout_seconds=30)
    reader = source.read(f"{topic}/0", None, SourceContext(clock=clock))
    while not reader.next_batch():
        pause()
    del own.producer
    monkeypatch.setattr("statestore_runtime.sources.kafka.client.REQUEST_SECONDS", 0.1)  # nobody answers from here on
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


def test_brokers_that_come_back(kafka_cluster, kafka_source, topic):
    kafka_cluster.send(topic, 0, "1")
    orders, clock = kafka_source(topic, timeout_seconds=30), FakeClock()
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


def test_a_topic_that_is_not_there(kafka_cluster, kafka_source, monkeypatch, topic):
    with pytest.raises(ConfigError, match=f"there is no topic '{topic}'"):
        read(kafka_source(topic))


def test_properties(kafka_cluster, topic):
    for properties, problem in (
        ({"nonsense": 1}, 'No such configuration property: "nonsense"'),
        ({"fetch.max.bytes": "many"}, 'Invalid value for configuration property "fetch.max.bytes"'),
    ):
        with pytest.raises(ConfigError, match=problem):
            KafkaSource(kafka_cluster.servers, topic, properties=properties).discover([])
    kafka_cluster.send(topic, 0, "1")
    properties = {"fetch.wait.max.ms": 5, "group.id": "mine", "isolation.level": "read_uncommitted"}
    assert waiting(KafkaSource(kafka_cluster.servers, topic, properties=properties, bounded=True)) == [1]


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
