"""Brokers in memory that do what Kafka documents of transactions: what librdkafka's mock cluster does not.

An aborted transaction is never seen; `init_transactions` aborts what an older producer of the same id has open, and fences it; offsets are
part of a transaction.
"""

from __future__ import annotations

import threading

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from statestore import crashpoints


def _refuse(code):
    raise KafkaException(KafkaError(code))


class Brokers:
    """Give `driver` to the module in place of confluent_kafka."""

    def __init__(self):
        self.committed, self.offsets, self.epochs = [], {}, {}
        self.lock = threading.Lock()
        self.before_commit = self.after_commit = lambda: None
        self.topic_error = self.init_error = self.record_error = None
        self.queue_is_full = []

    @property
    def driver(self):
        return Driver(self)


class Driver:
    KafkaError, KafkaException, TopicPartition = KafkaError, KafkaException, TopicPartition

    def __init__(self, brokers):
        self._brokers = brokers

    def Producer(self, config, logger):
        return Producer(self._brokers, config)

    def Consumer(self, config, logger):
        return Consumer(self._brokers, config["group.id"])


class Metadata:
    def __init__(self, topic, error):
        self.topics, self.error = {topic: self}, error


class Producer:
    def __init__(self, brokers, config):
        self._brokers, self._id = brokers, config.get("transactional.id")
        self._records, self._offsets, self._epoch, self._is_open = [], {}, None, False

    def list_topics(self, topic, timeout):
        return Metadata(topic, self._brokers.topic_error)

    def init_transactions(self, timeout):
        if self._brokers.init_error is not None:
            raise KafkaException(self._brokers.init_error)
        with self._brokers.lock:
            self._epoch = self._brokers.epochs[self._id] = self._brokers.epochs.get(self._id, 0) + 1

    def begin_transaction(self):
        assert self._epoch is not None and not self._is_open
        self._records, self._offsets, self._is_open = [], {}, True

    def produce(self, topic, value, key, on_delivery):
        self._check()
        if self._brokers.queue_is_full:
            raise BufferError
        self._records.append((topic, key, value))
        if self._brokers.record_error is not None:
            on_delivery(self._brokers.record_error, None)

    def poll(self, timeout):
        del self._brokers.queue_is_full[:1]

    def flush(self, timeout):
        if self._id is None:
            self._brokers.committed += self._records
            self._records = []
        return 0

    def send_offsets_to_transaction(self, positions, metadata, timeout):
        self._check()
        self._offsets |= {(metadata, p.topic, p.partition): p.offset for p in positions}

    def commit_transaction(self, timeout):
        crashpoints.reach("kafka.before-commit")
        self._brokers.before_commit()
        assert self._is_open
        with self._brokers.lock:
            self._check()
            self._brokers.committed += self._records
            self._brokers.offsets |= self._offsets
        self._is_open = False
        crashpoints.reach("kafka.committed")
        self._brokers.after_commit()

    def _check(self):
        if self._id is not None and self._brokers.epochs[self._id] != self._epoch:
            _refuse(KafkaError._FENCED)


class Consumer:
    def __init__(self, brokers, group):
        self._brokers, self._group = brokers, group

    def consumer_group_metadata(self):
        return self._group

    def committed(self, partitions, timeout):
        return [
            TopicPartition(p.topic, p.partition, self._brokers.offsets.get((self._group, p.topic, p.partition), -1001))
            for p in partitions
        ]

    def close(self):
        pass
