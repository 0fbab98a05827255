"""KafkaSink over the wire, against librdkafka's mock cluster."""

from __future__ import annotations

import json

import confluent_kafka
import pytest

from statestore.errors import ConfigError, UnavailableError
from statestore.testing.redis_server import free_port
from statestore_runtime import SinkContext
from statestore_runtime.sinks import KafkaSink
from tests.runtime.kafka_reading import Cluster


def committed(sink, *batches):
    for batch in batches:
        sink.write(batch)
    transaction = sink.prepare()
    sink.commit(transaction)
    return transaction


def consumed(servers, topic, count):
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": "reader", "auto.offset.reset": "earliest", "log_level": 2}
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, partition, 0) for partition in partitions])
    messages = []
    while len(messages) < count:
        message = consumer.poll(10)
        assert message is not None and message.error() is None
        messages.append((message.key(), json.loads(message.value())))
    assert consumer.poll(0.2) is None
    consumer.close()
    return messages


def test_transactions_over_the_wire(kafka_cluster, tmp_path):
    sink = KafkaSink(kafka_cluster.servers, "wire", key=lambda event: "k", staging_dir=tmp_path)
    sink.open(SinkContext("job", 1))
    first = committed(sink, [1, 2], [3])
    sink.commit(first)
    sink.write([4])
    transaction = sink.prepare()
    again = KafkaSink(kafka_cluster.servers, "wire", key=lambda event: "k", staging_dir=tmp_path)
    again.open(SinkContext("job", 2, 0, 1, False, (transaction,), {0: sink.snapshot()}))
    committed(again, [5])
    sink.close()
    again.close()
    assert consumed(kafka_cluster.servers, "wire", 5) == [(b"k", number) for number in (1, 2, 3, 4, 5)]


def test_at_least_once_over_the_wire(kafka_cluster, tmp_path):
    sink = KafkaSink(kafka_cluster.servers, "plain", key=lambda event: "k", mode="at-least-once")
    sink.open(SinkContext("job", 1))
    sink.write(list(range(5000)))
    sink.prepare()
    sink.close()
    assert [value for _, value in consumed(kafka_cluster.servers, "plain", 5000)] == list(range(5000))


@pytest.mark.parametrize("mode", ["transactional", "at-least-once"])
def test_brokers_that_do_not_answer(tmp_path, mode):
    sink = KafkaSink(f"127.0.0.1:{free_port()}", "out", mode=mode, staging_dir=tmp_path, timeout="100ms")
    with pytest.raises(UnavailableError, match="kafka unavailable at"):
        sink.open(SinkContext("job", 1))
    sink.close()


@pytest.mark.parametrize("mode", ["transactional", "at-least-once"])
def test_brokers_that_fall_silent(tmp_path, mode):
    own = Cluster()
    sink = KafkaSink(own.servers, "out", mode=mode, staging_dir=tmp_path, timeout="1s")
    sink.open(SinkContext("job", 1))
    del own
    sink.write([1])
    with pytest.raises(UnavailableError, match="kafka unavailable at"):
        sink.commit(sink.prepare())
    sink.close()


def test_options_that_the_driver_does_not_know(tmp_path):
    sink = KafkaSink("nowhere:9092", "out", staging_dir=tmp_path, options={"no.such": 1})
    with pytest.raises(ConfigError, match=r"the Kafka producer can't be made: .*no\.such"):
        sink.open(SinkContext("job", 1))
