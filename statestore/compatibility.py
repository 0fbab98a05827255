"""A dry run of a restore: which states of a checkpoint fit what a program declares.

No state is read, except to see whether values of a schema that is in the way are there at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from statestore.checkpoint.locating import locate_checkpoint
from statestore.checkpoint.view import CheckpointView
from statestore.errors import IncompatibleStateError
from statestore.io import OpenStorage, open_storage
from statestore.opening import open as open_memory
from statestore.store import StateStore
from statestore.versions import Declaration, Verdict, check_kind, find, verdicts_of, versions_in_use
from statestore.wal.record import StateDescriptor

Status = Literal["same", "compatible", "upcast", "incompatible", "unread", "new"]


class StateReport(msgspec.Struct, frozen=True):
    """How one state fits."""

    name: str
    status: Status
    """same: nothing has changed. compatible: read as it is. upcast: some values go through the state's `upcast`. incompatible: the
    restore would be refused. unread: stored and not declared; it stays where it is. new: declared and not stored."""
    stored: str | None
    """Kind, value type and key type, as stored; None of a new one."""
    declared: str | None
    """The same as declared; None of one that is not declared."""
    notes: list[str] = []
    """What has changed, or what is in the way."""


def check_checkpoint(
    path: str,
    declare: Callable[[StateStore], object],
    *,
    key_type: Any = str,
    allow_pickle: bool = False,
    open_storage: OpenStorage = open_storage,
) -> list[StateReport]:
    """Compare a checkpoint with the states that a program declares.

    Parameters
    ----------
    path
        The checkpoint, as `restore` of `statestore.open` takes it.
    declare
        Called with an empty store in memory: registers the states as the program does.
    key_type, allow_pickle
        As of `statestore.open`.
    open_storage
        Opens the checkpoint's place, with the keys that go with it.

    Raises
    ------
    CheckpointNotFoundError, CorruptionError, UnavailableError
        The checkpoint can't be read.
    """
    checkpoints, number = locate_checkpoint(path, open_storage=open_storage)
    manifest = checkpoints.load(number)
    with open_memory("memory://", job=manifest.job, key_type=key_type, allow_pickle=allow_pickle) as store:
        declare(store)
        declared = dict(store.registry.declarations)
    view, groups = CheckpointView(checkpoints, manifest), range(manifest.max_parallelism)
    return compare_states(manifest.states, declared, lambda state_id: versions_in_use(view.scan, state_id, groups, {}))


def compare_states(
    stored: Sequence[StateDescriptor], declared: Mapping[str, Declaration], used: Callable[[int], set[int]]
) -> list[StateReport]:
    """Report of each state, the declared ones first; `used` as of `statestore.versions.fit`."""
    states, reports = {state.name: state for state in stored}, []
    for one in declared.values():
        state = find(states, one)
        if state is None:
            reports.append(StateReport(one.name, "new", None, _text(one.kind, one.codec.name, one.key_type)))
        else:
            del states[state.name]
            reports.append(_report(state, one, used))
    unread = [StateReport(state.name, "unread", _text_of(state), None) for state in states.values()]
    return reports + unread


def _report(state: StateDescriptor, declared: Declaration, used: Callable[[int], set[int]]) -> StateReport:
    notes = [] if state.name == declared.name else [f"it was named '{state.name}'"]
    try:
        check_kind(state, declared)
        status, changes = _summed_up(state.version, verdicts_of(state, declared, used))
        if status == "same" and notes:
            status = "compatible"
    except IncompatibleStateError as error:
        status, changes = "incompatible", [str(error)]
    text = _text(declared.kind, declared.codec.name, declared.key_type)
    return StateReport(declared.name, status, _text_of(state), text, notes + changes)


def _summed_up(newest: int, verdicts: dict[int, Verdict]) -> tuple[Status, list[str]]:
    """The worst verdict counts, and of older versions only what is in the way."""
    for status in ("incompatible", "upcast"):
        bad = [verdict for verdict in verdicts.values() if verdict.way == status]
        if bad:
            return status, [str(one) for verdict in bad for one in verdict.differences if one.problem]
    if newest not in verdicts:
        return "compatible", ["no value is stored with a type that does not fit"]
    if verdicts[newest].way == "same":
        return "same", []
    return "compatible", [str(one) for one in verdicts[newest].differences]


def _text_of(state: StateDescriptor) -> str:
    return _text(state.kind, state.type, state.key_type)


def _text(kind: str, type_: str, key_type: str) -> str:
    return f"{kind} of {type_} by {key_type}"
