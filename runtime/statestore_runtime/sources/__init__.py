"""Where a job's events come from: splits that can be read again from a position."""

from typing import TYPE_CHECKING

from statestore.lazy import names_of

if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "BadRecordError": "statestore_runtime.sources.base",
            "DeadLetter": "statestore_runtime.sources.base",
            "FixedSplitsSource": "statestore_runtime.sources.base",
            "OnError": "statestore_runtime.sources.base",
            "Source": "statestore_runtime.sources.base",
            "SourceContext": "statestore_runtime.sources.base",
            "SplitReader": "statestore_runtime.sources.base",
            "FileSource": "statestore_runtime.sources.files",
            "KafkaSource": "statestore_runtime.sources.kafka",
            "CollectionSource": "statestore_runtime.sources.memory",
            "GeneratorSource": "statestore_runtime.sources.memory",
            "IterableSource": "statestore_runtime.sources.memory",
            "RateLimit": "statestore_runtime.sources.rate",
            "RedisStreamSource": "statestore_runtime.sources.redis_streams",
            "SocketSource": "statestore_runtime.sources.sockets",
        },
    )

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
