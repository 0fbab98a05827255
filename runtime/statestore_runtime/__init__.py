"""Streaming runtime: jobs, sources, sinks, and the process that drives checkpoints and recovery.

job = Job("word-count")
(job.source(FileSource("lines.jsonl"))
    .flat_map(lambda line: line["text"].split())
    .key_by(lambda word: word, str)
    .process(CountWords())
    .sink(FileSink("out")))
"""

from statestore.state import AggregateFunction
from statestore_runtime.checking import check_job
from statestore_runtime.coordinator import CheckpointFailedError
from statestore_runtime.executor import run_job
from statestore_runtime.functions import KeyContext, KeyedProcessFunction, RuntimeContext, UserCodeError
from statestore_runtime.job import Job, KeyedStream, Stream
from statestore_runtime.messages import Finished
from statestore_runtime.sinks import CallableSink, CollectSink, FileSink, PrintSink, Sink, SinkContext
from statestore_runtime.sources import (
    BadRecordError,
    CollectionSource,
    DeadLetter,
    FileSource,
    IterableSource,
    Source,
    SourceContext,
)

__all__ = [
    "AggregateFunction",
    "BadRecordError",
    "CallableSink",
    "CheckpointFailedError",
    "CollectSink",
    "CollectionSource",
    "DeadLetter",
    "FileSink",
    "FileSource",
    "Finished",
    "IterableSource",
    "Job",
    "KeyContext",
    "KeyedProcessFunction",
    "KeyedStream",
    "PrintSink",
    "RuntimeContext",
    "Sink",
    "SinkContext",
    "Source",
    "SourceContext",
    "Stream",
    "UserCodeError",
    "check_job",
    "run_job",
]
