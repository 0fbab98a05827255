"""Sinks: where a job's results go."""

from typing import TYPE_CHECKING

from statestore.lazy import names_of

if TYPE_CHECKING:
    from statestore_runtime.sinks.base import Sink, SinkContext
    from statestore_runtime.sinks.files import FileSink
    from statestore_runtime.sinks.kafka import KafkaSink
    from statestore_runtime.sinks.redis import RedisSink, RedisStreamSink
    from statestore_runtime.sinks.simple import CallableSink, CollectSink, PrintSink
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "Sink": "statestore_runtime.sinks.base",
            "SinkContext": "statestore_runtime.sinks.base",
            "FileSink": "statestore_runtime.sinks.files",
            "KafkaSink": "statestore_runtime.sinks.kafka",
            "RedisSink": "statestore_runtime.sinks.redis",
            "RedisStreamSink": "statestore_runtime.sinks.redis",
            "CallableSink": "statestore_runtime.sinks.simple",
            "CollectSink": "statestore_runtime.sinks.simple",
            "PrintSink": "statestore_runtime.sinks.simple",
        },
    )

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
