"""Kafka topics as a source: which partitions there are and where reading begins, and the client that their readers share."""

from statestore_runtime.sources.kafka.source import KafkaSource

__all__ = ["KafkaSource"]
