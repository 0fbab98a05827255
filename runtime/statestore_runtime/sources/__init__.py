"""Where a job's events come from: splits that can be read again from a position."""

from statestore_runtime.sources.base import (
    BadRecordError,
    DeadLetter,
    FixedSplitsSource,
    OnError,
    Source,
    SourceContext,
    SplitReader,
)
from statestore_runtime.sources.files import FileSource
from statestore_runtime.sources.kafka import KafkaSource
from statestore_runtime.sources.memory import CollectionSource, GeneratorSource, IterableSource
from statestore_runtime.sources.rate import RateLimit
from statestore_runtime.sources.redis_streams import RedisStreamSource
from statestore_runtime.sources.sockets import SocketSource

__all__ = [
    "BadRecordError",
    "CollectionSource",
    "DeadLetter",
    "FileSource",
    "FixedSplitsSource",
    "GeneratorSource",
    "IterableSource",
    "KafkaSource",
    "OnError",
    "RateLimit",
    "RedisStreamSource",
    "SocketSource",
    "Source",
    "SourceContext",
    "SplitReader",
]
