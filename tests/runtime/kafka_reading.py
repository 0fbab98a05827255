"""A Kafka cluster in this process, and reading from it until something has come."""

from __future__ import annotations

import time

import confluent_kafka

from tests.runtime.source_reading import Reading

POLLS = 30_000


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
