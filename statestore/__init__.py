"""Keyed-state engine: state handles, write-ahead log, incremental checkpoints, recovery, on any backend.

store = statestore.open("rocksdb:///var/lib/app/state")
counts = store.value_state("counts", int, default=0)
with store.key("user-1"):
    counts.update(counts.value() + 1)
store.commit()
"""

from statestore.checkpoint.parts import complete_parts
from statestore.checkpoint.savepoint import PendingSavepoint, SavepointInfo
from statestore.checkpoint.snapshot import CheckpointInfo, PendingCheckpoint
from statestore.collection_state import ListState, MapState
from statestore.compatibility import StateReport, check_checkpoint
from statestore.config import Config, EncryptionConfig, load_config
from statestore.errors import (
    AlreadyExistsError,
    CheckpointNotFoundError,
    ClosedError,
    ConfigError,
    CorruptionError,
    EncryptionKeyError,
    FencedError,
    IncompatibleStateError,
    StateMigrationError,
    StateStoreError,
    UnavailableError,
    UsageError,
)
from statestore.keyed import KeyedState
from statestore.keys import split_key_groups
from statestore.migration.migrate import MigrationReport, migrate
from statestore.migration.place import Place
from statestore.opening import open, open_store
from statestore.progress import RestoreProgress
from statestore.reading.diff import Change, Diff, diff
from statestore.reading.reader import StateReader, read
from statestore.reading.state import StateInfo, StoredState
from statestore.state import AggregateFunction, AggregatingState, ReducingState, ValueState
from statestore.store import Restored, StateStore
from statestore.timers import Timers
from statestore.ttl import TimeToLive
from statestore.types import Attempt, CheckpointId, Epoch, KeyGroup

__all__ = [
    "AlreadyExistsError",
    "AggregateFunction",
    "AggregatingState",
    "Attempt",
    "Change",
    "CheckpointId",
    "CheckpointInfo",
    "CheckpointNotFoundError",
    "ClosedError",
    "Config",
    "ConfigError",
    "CorruptionError",
    "Diff",
    "EncryptionConfig",
    "EncryptionKeyError",
    "Epoch",
    "FencedError",
    "IncompatibleStateError",
    "KeyGroup",
    "KeyedState",
    "ListState",
    "MapState",
    "MigrationReport",
    "PendingCheckpoint",
    "PendingSavepoint",
    "ReducingState",
    "Place",
    "RestoreProgress",
    "Restored",
    "SavepointInfo",
    "StateInfo",
    "StateMigrationError",
    "StateReader",
    "StateReport",
    "StateStore",
    "StateStoreError",
    "StoredState",
    "TimeToLive",
    "Timers",
    "UnavailableError",
    "UsageError",
    "ValueState",
    "complete_parts",
    "diff",
    "check_checkpoint",
    "load_config",
    "migrate",
    "open",
    "open_store",
    "read",
    "split_key_groups",
]
