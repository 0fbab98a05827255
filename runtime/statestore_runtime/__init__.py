"""Streaming runtime: jobs, sources, sinks, and the process that drives checkpoints and recovery.

job = Job("word-count")
(job.source(FileSource("lines.jsonl"))
    .flat_map(lambda line: line["text"].split())
    .key_by(lambda word: word, str)
    .process(CountWords())
    .sink(FileSink("out")))
"""

from typing import TYPE_CHECKING

from statestore.lazy import names_of

if TYPE_CHECKING:
    from statestore.state import AggregateFunction
    from statestore_runtime.aggregations import Aggregation, Count, Max, Mean, Min, Sum
    from statestore_runtime.checking import check_job
    from statestore_runtime.columnar import ColumnarStream, KeyedColumnarStream
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
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "AggregateFunction": "statestore.state",
            "Aggregation": "statestore_runtime.aggregations",
            "Count": "statestore_runtime.aggregations",
            "Max": "statestore_runtime.aggregations",
            "Mean": "statestore_runtime.aggregations",
            "Min": "statestore_runtime.aggregations",
            "Sum": "statestore_runtime.aggregations",
            "ColumnarStream": "statestore_runtime.columnar",
            "KeyedColumnarStream": "statestore_runtime.columnar",
            "check_job": "statestore_runtime.checking",
            "run_job": "statestore_runtime.deployment.inprocess",
            "BroadcastContext": "statestore_runtime.functions",
            "BroadcastKeyContext": "statestore_runtime.functions",
            "CheckpointListener": "statestore_runtime.functions",
            "KeyContext": "statestore_runtime.functions",
            "KeyedBroadcastProcessFunction": "statestore_runtime.functions",
            "KeyedCoProcessFunction": "statestore_runtime.functions",
            "KeyedProcessFunction": "statestore_runtime.functions",
            "RuntimeContext": "statestore_runtime.functions",
            "TimerContext": "statestore_runtime.functions",
            "UserCodeError": "statestore_runtime.functions",
            "Job": "statestore_runtime.job",
            "CheckpointFailedError": "statestore_runtime.jobmanager.coordinator",
            "JoinContext": "statestore_runtime.joins",
            "ProcessJoinFunction": "statestore_runtime.joins",
            "Finished": "statestore_runtime.messages",
            "CallableSink": "statestore_runtime.sinks",
            "CollectSink": "statestore_runtime.sinks",
            "FileSink": "statestore_runtime.sinks",
            "KafkaSink": "statestore_runtime.sinks",
            "PrintSink": "statestore_runtime.sinks",
            "RedisSink": "statestore_runtime.sinks",
            "RedisStreamSink": "statestore_runtime.sinks",
            "Sink": "statestore_runtime.sinks",
            "SinkContext": "statestore_runtime.sinks",
            "BadRecordError": "statestore_runtime.sources",
            "CollectionSource": "statestore_runtime.sources",
            "DeadLetter": "statestore_runtime.sources",
            "FileSource": "statestore_runtime.sources",
            "FixedSplitsSource": "statestore_runtime.sources",
            "GeneratorSource": "statestore_runtime.sources",
            "IterableSource": "statestore_runtime.sources",
            "KafkaSource": "statestore_runtime.sources",
            "RedisStreamSource": "statestore_runtime.sources",
            "SocketSource": "statestore_runtime.sources",
            "Source": "statestore_runtime.sources",
            "SourceContext": "statestore_runtime.sources",
            "SplitReader": "statestore_runtime.sources",
            "KeyedStream": "statestore_runtime.streams",
            "Stream": "statestore_runtime.streams",
            "TimerService": "statestore_runtime.timers",
            "WatermarkGenerator": "statestore_runtime.watermarks",
            "WatermarkStrategy": "statestore_runtime.watermarks",
            "ProcessWindowFunction": "statestore_runtime.windows",
            "Session": "statestore_runtime.windows",
            "Sliding": "statestore_runtime.windows",
            "Tumbling": "statestore_runtime.windows",
            "Window": "statestore_runtime.windows",
            "WindowContext": "statestore_runtime.windows",
            "WindowResult": "statestore_runtime.windows",
        },
    )

__all__ = [
    "AggregateFunction",
    "Aggregation",
    "BadRecordError",
    "BroadcastContext",
    "BroadcastKeyContext",
    "CallableSink",
    "CheckpointFailedError",
    "CheckpointListener",
    "CollectSink",
    "CollectionSource",
    "ColumnarStream",
    "Count",
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
    "KeyedColumnarStream",
    "KeyedProcessFunction",
    "KeyedStream",
    "Max",
    "Mean",
    "Min",
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
    "Sum",
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
