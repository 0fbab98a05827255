"""Runs a function of a keyed and a broadcast stream. The broadcast state is a map, of which every worker has a copy.

It is kept with the operator's snapshot, beside the keyed state, so that it can be given to any number of workers:

    {"state": descriptor of the map, with its schema · "map": its encoding as base64}
"""

from __future__ import annotations

import base64
import copy
from types import MappingProxyType
from typing import Any

import msgspec

from statestore.codecs import Codec
from statestore.versions import Declaration, first_descriptor, fit
from statestore.wal.record import StateDescriptor
from statestore_runtime.functions import (
    BroadcastContext,
    BroadcastKeyContext,
    KeyedBroadcastProcessFunction,
)
from statestore_runtime.operators.base import Guard, Times, repeated
from statestore_runtime.operators.process import KeyedFunctionOperator


class BroadcastProcessOperator(KeyedFunctionOperator):
    """Runs a `KeyedBroadcastProcessFunction`: port 0 is the keyed stream, port 1 the broadcast one."""

    function: KeyedBroadcastProcessFunction[Any, Any, Any, Any]

    def __init__(
        self,
        uid: str,
        key_type: Any,
        function: KeyedBroadcastProcessFunction[Any, Any, Any, Any],
        name: str,
        state_type: Any,
    ):
        super().__init__(uid, key_type, function)
        self._name, self._codec = f"{uid}/{name}", Codec(state_type)
        self._state: dict[Any, Any] = {}
        self._is_marked = False
        self._before: dict[Any, Any] | None = None  # as it was at the mark, if it was touched since
        self._broadcast_context = BroadcastContext(self._state, self.timers, self.side)
        self._key_context = BroadcastKeyContext(self.timers, self.side, MappingProxyType(self._state))

    def _declaration(self) -> Declaration:
        return Declaration(self._name, "broadcast", "none", self._codec)

    def push_keyed(self, keys: list[Any], batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Process keyed events."""
        self._process_batch(self.function.process, keys, batch, times)

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Process broadcast events."""
        if self._is_marked and self._before is None:
            self._before = copy.deepcopy(self._state)
        made: list[Any] = []
        ends: list[int] = []
        context, process, events = self._broadcast_context, self.function.process_broadcast, iter(batch)
        with Guard(self.uid, batch, events):
            for number, event in enumerate(events):
                context.timestamp = None if times is None else times[number]
                made.extend(process(event, context) or ())
                ends.append(len(made))
        self.emit_made(made, None if times is None else repeated(times, ends), ends)
        self._emit_side()

    def mark(self) -> None:
        """Keep a copy of the map, if a batch comes that may change it."""
        super().mark()
        self._is_marked, self._before = True, None

    def keep(self) -> None:
        """The copy is needed no more."""
        super().keep()
        self._is_marked, self._before = False, None

    def rollback(self) -> None:
        """Bring the map back."""
        super().rollback()
        if self._before is not None:
            self._fill(self._before)
        self._is_marked, self._before = False, None

    def snapshot(self) -> Any | None:
        """The map, and how far event time has come."""
        state = first_descriptor(0, self._declaration())
        data = self._codec.checked(self._state, self._name)
        return {
            **(super().snapshot() or {}),
            "state": msgspec.to_builtins(state),
            "map": base64.b64encode(data).decode(),
        }

    def restore(self, states: list[Any]) -> None:
        """Take the map of any subtask: they are all alike. Raises StateMigrationError."""
        super().restore(states)
        state = next((state for state in states if "map" in state), None)
        if state is None:  # the function was one of another kind then
            return
        stored = msgspec.convert(state["state"], StateDescriptor)
        fit(stored, self._declaration(), lambda state_id: {stored.version}, is_whole=False)
        self._fill(self._codec.decode_stored(base64.b64decode(state["map"]), stored.version, self._name))

    def _fill(self, state: dict[Any, Any]) -> None:
        self._state.clear()  # contexts have this very object
        self._state.update(state)
