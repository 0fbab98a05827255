"""Keyed-state engine: state handles, write-ahead log, incremental checkpoints, recovery, on any backend.

store = statestore.open("rocksdb:///var/lib/app/state")
counts = store.value_state("counts", int, default=0)
with store.key("user-1"):
    counts.update(counts.value() + 1)
store.commit()
"""

from typing import TYPE_CHECKING

from statestore.lazy import names_of

if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "complete_parts": "statestore.checkpoint.parts",
            "PendingSavepoint": "statestore.checkpoint.savepoint",
            "SavepointInfo": "statestore.checkpoint.savepoint",
            "CheckpointInfo": "statestore.checkpoint.snapshot",
            "PendingCheckpoint": "statestore.checkpoint.snapshot",
            "ListState": "statestore.collection_state",
            "MapState": "statestore.collection_state",
            "StateReport": "statestore.compatibility",
            "check_checkpoint": "statestore.compatibility",
            "Config": "statestore.config",
            "EncryptionConfig": "statestore.config",
            "load_config": "statestore.config",
            "AlreadyExistsError": "statestore.errors",
            "CheckpointNotFoundError": "statestore.errors",
            "ClosedError": "statestore.errors",
            "ConfigError": "statestore.errors",
            "CorruptionError": "statestore.errors",
            "EncryptionKeyError": "statestore.errors",
            "FencedError": "statestore.errors",
            "IncompatibleStateError": "statestore.errors",
            "StateMigrationError": "statestore.errors",
            "StateStoreError": "statestore.errors",
            "UnavailableError": "statestore.errors",
            "UsageError": "statestore.errors",
            "KeyedState": "statestore.keyed",
            "split_key_groups": "statestore.keys",
            "MigrationReport": "statestore.migration.migrate",
            "migrate": "statestore.migration.migrate",
            "Place": "statestore.migration.place",
            "open": "statestore.opening",
            "open_store": "statestore.opening",
            "RestoreProgress": "statestore.progress",
            "Change": "statestore.reading.diff",
            "Diff": "statestore.reading.diff",
            "diff": "statestore.reading.diff",
            "StateReader": "statestore.reading.reader",
            "read": "statestore.reading.reader",
            "StateInfo": "statestore.reading.state",
            "StoredState": "statestore.reading.state",
            "AggregateFunction": "statestore.state",
            "AggregatingState": "statestore.state",
            "ReducingState": "statestore.state",
            "ValueState": "statestore.state",
            "Restored": "statestore.store",
            "StateStore": "statestore.store",
            "Timers": "statestore.timers",
            "TimeToLive": "statestore.ttl",
            "Attempt": "statestore.types",
            "CheckpointId": "statestore.types",
            "Epoch": "statestore.types",
            "KeyGroup": "statestore.types",
        },
    )

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
