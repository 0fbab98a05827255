"""Operators of a running job. Each takes a batch, a plain list, and pushes what it makes of it to its consumers.

The cost per event is what counts here: loops are comprehensions, nothing is allocated per event, keys are checked a batch at a time.
A batch belongs to nobody: no operator changes one, nor the keys and times that come with it.
"""

from statestore_runtime.operators.base import Operator, TaskContext
from statestore_runtime.operators.broadcast import BroadcastProcessOperator
from statestore_runtime.operators.exchange import BroadcastOperator, ExchangeOperator, KeyByOperator
from statestore_runtime.operators.joins import IntervalJoinOperator
from statestore_runtime.operators.keyed import AggregateOperator, KeyedOperator, ReduceOperator
from statestore_runtime.operators.process import CoProcessOperator, KeyedFunctionOperator, ProcessOperator
from statestore_runtime.operators.stateless import (
    AssignTimestampsOperator,
    FilterOperator,
    FlatMapOperator,
    MapOperator,
    SinkOperator,
    SourceOperator,
    UnionOperator,
)
from statestore_runtime.operators.timed import LateOperator
from statestore_runtime.operators.windows import AlignedWindowOperator, SessionOperator, WindowOperator

__all__ = [
    "AggregateOperator",
    "AlignedWindowOperator",
    "AssignTimestampsOperator",
    "BroadcastOperator",
    "BroadcastProcessOperator",
    "CoProcessOperator",
    "ExchangeOperator",
    "FilterOperator",
    "FlatMapOperator",
    "IntervalJoinOperator",
    "KeyByOperator",
    "KeyedFunctionOperator",
    "KeyedOperator",
    "LateOperator",
    "MapOperator",
    "Operator",
    "ProcessOperator",
    "ReduceOperator",
    "SessionOperator",
    "SinkOperator",
    "SourceOperator",
    "TaskContext",
    "UnionOperator",
    "WindowOperator",
]
