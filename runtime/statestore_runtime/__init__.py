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
from statestore_runtime.deployment.inprocess import run_job
from statestore_runtime.functions import (
    BroadcastContext,
    BroadcastKeyContext,
    CheckpointListener,
    KeyContext,
    KeyedBroadcastProcessFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    RuntimeContext,
    TimerContext,
    UserCodeError,
)
from statestore_runtime.job import Job
from statestore_runtime.jobmanager.coordinator import CheckpointFailedError
from statestore_runtime.joins import JoinContext, ProcessJoinFunction
from statestore_runtime.messages import Finished
from statestore_runtime.sinks import (
    CallableSink,
    CollectSink,
    FileSink,
    KafkaSink,
    PrintSink,
    RedisSink,
    RedisStreamSink,
    Sink,
    SinkContext,
)
from statestore_runtime.sources import (
    BadRecordError,
    CollectionSource,
    DeadLetter,
    FileSource,
    FixedSplitsSource,
    GeneratorSource,
    IterableSource,
    KafkaSource,
    RedisStreamSource,
    SocketSource,
    Source,
    SourceContext,
    SplitReader,
)
from statestore_runtime.streams import KeyedStream, Stream
from statestore_runtime.timers import TimerService
from statestore_runtime.watermarks import WatermarkGenerator, WatermarkStrategy
from statestore_runtime.windows import (
    ProcessWindowFunction,
    Session,
    Sliding,
    Tumbling,
    Window,
    WindowContext,
    WindowResult,
)

__all__ = [
    "AggregateFunction",
    "BadRecordError",
    "BroadcastContext",
    "BroadcastKeyContext",
    "CallableSink",
    "CheckpointFailedError",
    "CheckpointListener",
    "CollectSink",
    "CollectionSource",
    "DeadLetter",
    "FileSink",
    "FileSource",
    "Finished",
    "FixedSplitsSource",
    "GeneratorSource",
    "IterableSource",
    "Job",
    "JoinContext",
    "KafkaSink",
    "KafkaSource",
    "KeyContext",
    "KeyedBroadcastProcessFunction",
    "KeyedCoProcessFunction",
    "KeyedProcessFunction",
    "KeyedStream",
    "PrintSink",
    "ProcessJoinFunction",
    "ProcessWindowFunction",
    "RedisSink",
    "RedisStreamSink",
    "RedisStreamSource",
    "RuntimeContext",
    "Session",
    "Sink",
    "SinkContext",
    "Sliding",
    "SocketSource",
    "Source",
    "SourceContext",
    "SplitReader",
    "Stream",
    "TimerContext",
    "TimerService",
    "Tumbling",
    "UserCodeError",
    "WatermarkGenerator",
    "WatermarkStrategy",
    "Window",
    "WindowContext",
    "WindowResult",
    "check_job",
    "run_job",
]
