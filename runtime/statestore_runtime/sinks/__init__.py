"""Sinks: where a job's results go."""

from statestore_runtime.sinks.base import Sink, SinkContext
from statestore_runtime.sinks.files import FileSink
from statestore_runtime.sinks.kafka import KafkaSink
from statestore_runtime.sinks.redis import RedisSink, RedisStreamSink
from statestore_runtime.sinks.simple import CallableSink, CollectSink, PrintSink

__all__ = [
    "CallableSink",
    "CollectSink",
    "FileSink",
    "KafkaSink",
    "PrintSink",
    "RedisSink",
    "RedisStreamSink",
    "Sink",
    "SinkContext",
]
