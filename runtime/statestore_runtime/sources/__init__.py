"""Replayable sources: where a job's events come from."""

from statestore_runtime.sources.base import BadRecordError, DeadLetter, Source, SourceContext
from statestore_runtime.sources.files import FileSource
from statestore_runtime.sources.memory import CollectionSource, IterableSource

__all__ = [
    "BadRecordError",
    "CollectionSource",
    "DeadLetter",
    "FileSource",
    "IterableSource",
    "Source",
    "SourceContext",
]
