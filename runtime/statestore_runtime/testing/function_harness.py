"""Drives one function with state by hand, without a job around it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from statestore.checkpoint.parts import complete_parts
from statestore.checkpoint.savepoint import save_checkpoint
from statestore.config import load_config
from statestore.errors import UsageError
from statestore.keys import KeyCodec, key_group_of, split_key_groups
from statestore.opening import open_checkpoints, open_store
from statestore.store import StateStore
from statestore.testing.clock import FakeClock
from statestore_runtime.functions import KeyedProcessFunction
from statestore_runtime.operators import TaskContext
from statestore_runtime.operators.base import Times
from statestore_runtime.operators.process import ProcessOperator
from statestore_runtime.watermarks import MAX_WATERMARK, Duration, duration_ms

K = TypeVar("K")
E = TypeVar("E")
R = TypeVar("R")

JOB = "harness"
UID = "function"


@dataclass(frozen=True)
class Snapshot:
    """State of a function, as a savepoint holds it, for other harnesses to begin with."""

    files: Mapping[str, bytes]
    operator_states: tuple[Any, ...]
    time: float
    """Of the clock when it was taken."""


class _Observed(ProcessOperator):
    """Gives what the function emits to a harness."""

    def __init__(self, key_type: Any, function: KeyedProcessFunction[Any, Any, Any], records: _Records):
        super().__init__(UID, key_type, function)
        self._records = records
        self.add_input()

    def emit(self, batch: list[Any], times: Times = None) -> None:
        self._records.main += _timed(batch, times)

    def emit_anew(self, batch: list[Any], times: Times = None) -> None:
        self.emit(batch, times)

    def emit_aside(self, tag: str, batch: list[Any], times: Times = None) -> None:
        self._records.aside.setdefault(tag, []).extend(_timed(batch, times))


def _timed(batch: list[Any], times: Times) -> list[tuple[Any, int | None]]:
    return list(zip(batch, [None for _ in batch] if times is None else times, strict=True))


class _Records:
    def __init__(self) -> None:
        self.main: list[tuple[Any, int | None]] = []
        self.aside: dict[str, list[tuple[Any, int | None]]] = {}


class KeyedFunctionHarness(Generic[K, E, R]):
    """A `KeyedProcessFunction` in as many subtasks as wanted, which events reach by their keys.

    Use it in a `with` block, or call `close`.

    Parameters
    ----------
    function
        Each subtask works with a copy.
    key, key_type
        As `Stream.key_by` takes them.
    snapshot
        What it begins with: of a harness with the same `max_parallelism`, whatever its backend and parallelism.
    backend, settings
        As of `JobHarness`.

    Raises
    ------
    StateStoreError
        What opening the function raises, or an argument is no good.
    """

    def __init__(
        self,
        function: KeyedProcessFunction[K, E, R],
        key: Callable[[E], K],
        key_type: type[K],
        *,
        backend: str = "memory",
        parallelism: int = 1,
        max_parallelism: int = 128,
        settings: Mapping[str, Any] | None = None,
        snapshot: Snapshot | None = None,
    ):
        if not 1 <= parallelism <= max_parallelism:
            raise UsageError(f"parallelism is {parallelism}, it must be from 1 to max_parallelism, {max_parallelism}")
        self._key, self._codec = key, KeyCodec(key_type)
        self._max_parallelism = max_parallelism
        groups = split_key_groups(parallelism, max_parallelism)
        self._owners = [subtask for subtask, part in enumerate(groups) for _ in part]
        self.clock = FakeClock(snapshot.time) if snapshot is not None else FakeClock()
        self._records = _Records()
        self._operators: list[_Observed] = []
        self._stores: list[StateStore] = []
        with ExitStack() as cleanup:
            self._folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="statestore-")))
            values = {"state.backend": backend, "state.max-parallelism": max_parallelism, **(settings or {})}
            overrides = [f"{name}={value}" for name, value in {**values, "state.dir": self._folder}.items()]
            self._config = load_config(overrides=overrides)
            self._checkpoints = open_checkpoints(self._config, JOB)
            self._attempt = self._checkpoints.claim_attempt()
            restore = self._unpacked(snapshot) if snapshot is not None else "none"
            for subtask, key_groups in enumerate(groups):
                self._open(subtask, key_groups, copy.deepcopy(function), key_type, restore, cleanup)
            if snapshot is not None:
                self._restore(snapshot)
            self._cleanup = cleanup.pop_all()

    def _open(
        self,
        subtask: int,
        key_groups: range,
        function: KeyedProcessFunction[K, E, R],
        key_type: Any,
        restore: str,
        cleanup: ExitStack,
    ) -> None:
        store = open_store(
            self._config,
            JOB,
            restore=restore,
            clock=self.clock,
            key_groups=key_groups,
            attempt=self._attempt,
        )
        cleanup.callback(store.release)
        self._stores.append(store)
        operator = _Observed(key_type, function, self._records)
        cleanup.callback(operator.close)
        parallelism = self._owners[-1] + 1
        operator.open(TaskContext(store, self.clock, JOB, self._attempt, subtask, parallelism))
        self._operators.append(operator)

    def _unpacked(self, snapshot: Snapshot) -> str:
        folder = self._folder / "restored"
        folder.mkdir()
        for name, content in snapshot.files.items():
            (folder / name).write_bytes(content)
        return str(folder)

    def _restore(self, snapshot: Snapshot) -> None:
        for operator, store in zip(self._operators, self._stores, strict=True):
            if snapshot.operator_states:
                operator.restore(list(snapshot.operator_states))
            restored = store.restored
            assert restored is not None and restored.checkpoint_id is not None, "it was opened with a savepoint"
            operator.on_restore(restored.checkpoint_id)

    def __enter__(self) -> KeyedFunctionHarness[K, E, R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the function and remove everything; idempotent."""
        self._cleanup.close()

    # What comes in

    def process_element(self, event: E, timestamp: int | None = None) -> None:
        """Process an event, with an event time in milliseconds or without one. Raises UserCodeError, UsageError."""
        key = self._key(event)
        self._codec.check_all([key])
        owner = self._owners[key_group_of(self._codec.encode(key), self._max_parallelism)]
        self._operators[owner].push_keyed([key], [event], None if timestamp is None else [timestamp])

    def process_watermark(self, watermark: int) -> None:
        """Let event time come to `watermark`, in milliseconds: timers up to it fire. Raises UserCodeError."""
        for operator in self._operators:
            operator.on_watermark(watermark)

    def end_input(self) -> None:
        """Let the input end: all event-time timers fire. Raises UserCodeError."""
        self.process_watermark(MAX_WATERMARK)

    def advance_processing_time(self, duration: Duration) -> None:
        """Let time pass by the machine's clock: timers that are due fire. Takes "10s", seconds, or a timedelta. Raises UserCodeError."""
        self.clock.advance(duration_ms(duration, "the time to advance") / 1000)
        for operator in self._operators:
            operator.on_processing_time(self.processing_time)

    @property
    def processing_time(self) -> int:
        """The machine's clock, in milliseconds."""
        return round(self.clock.time() * 1000)

    # What comes out

    @property
    def output(self) -> list[R]:
        """What the function has returned since the last `clear_output`."""
        return [value for value, _ in self._records.main]

    @property
    def records(self) -> list[tuple[R, int | None]]:
        """The same, with event times."""
        return list(self._records.main)

    def side_output(self, tag: str) -> list[Any]:
        """What it has sent to a side output."""
        return [value for value, _ in self._records.aside.get(tag, [])]

    def clear_output(self) -> None:
        """Forget what came out."""
        self._records.main.clear()
        self._records.aside.clear()

    # Snapshots

    def snapshot(self) -> Snapshot:
        """Take the state, as a checkpoint does; the function hears of it. Raises UserCodeError."""
        states = [operator.snapshot() for operator in self._operators]
        pending = [store.begin_checkpoint({}) for store in self._stores]
        info = complete_parts(self._checkpoints, [each.upload() for each in pending], {})
        for store, operator in zip(self._stores, self._operators, strict=True):
            store.complete(info)
            operator.on_checkpoint_complete(info.checkpoint_id)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            save_checkpoint(self._checkpoints, info.manifest, f"{folder}/savepoint", self.clock)
            files = {path.name: path.read_bytes() for path in Path(folder, "savepoint").iterdir()}
        return Snapshot(files, tuple(state for state in states if state is not None), self.clock.time())
