"""Fits what a program declares of a state to what is stored of it.

Invariants:
- `StateDescriptor.schemas` lists the schemas that values may be stored with; a value's head says which (`statestore.envelope`);
- a number is given to another schema only when no value is stored with it any more;
- values stay as they were stored until they are written again, with the declared schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from msgspec.structs import replace

from statestore.codecs import Codec, CodecName
from statestore.envelope import SCHEMA_VERSION_MAX, version_of
from statestore.errors import IncompatibleStateError, StateMigrationError, UsageError
from statestore.evolution import Difference, differences
from statestore.keys import group_start, prefix_end
from statestore.schema import PICKLE, Scalar, Schema
from statestore.ttl import Ttl
from statestore.wal.record import StateDescriptor

Upcast = Callable[[Any], Any]
"""From a value of builtin types, as it was stored (a map for a class, a list for a tuple), to one of the declared type."""

Scan = Callable[[bytes, bytes | None], Iterable[tuple[bytes, bytes]]]

Way = Literal["same", "compatible", "upcast", "incompatible"]


class StateOptions(TypedDict, total=False):
    """What may be said of any state when it is registered."""

    ttl: Ttl
    """How long values live after the last touch: "1h", seconds, a timedelta or a `TimeToLive`; 0 is for ever, None as `state.ttl` says."""
    upcast: Upcast | None
    """Makes values of the declared type of those that were stored with a type it can't read; see `Upcast`."""
    renamed_from: str | Iterable[str]
    """Names that the state had before, in this scope; or with their scope, as in "operator/name"."""
    codec: CodecName
    """"msgpack", or "pickle" for types it does not know; the configuration must allow the latter (`state.allow-pickle`)."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a program declares of a state."""

    name: str
    kind: str
    key_type: str
    codec: Codec
    upcast: Upcast | None = None
    former_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How values stored with one schema are read as what is declared."""

    way: Way
    differences: list[Difference]


def judge(stored: Schema, declared: Declaration) -> Verdict:
    """Compare a stored schema with the declared one."""
    new = declared.codec.schema
    if stored.fingerprint == new.fingerprint:
        return Verdict("same", [])
    if stored.root == Scalar(PICKLE):
        change = (
            f"was {stored.name}: pickled values are read only where the state is declared with "
            'codec="pickle" and the configuration says state.allow-pickle = true'
        )
        return Verdict("incompatible", [Difference("", stored.name, new.name, change, True)])
    found = differences(stored, new)
    if not any(one.problem for one in found):
        return Verdict("compatible", found)
    return Verdict("incompatible" if declared.upcast is None else "upcast", found)


def find(states: dict[str, StateDescriptor], declared: Declaration) -> StateDescriptor | None:
    """The stored state that is declared, by its name or one it had before."""
    return next((states[name] for name in (declared.name, *declared.former_names) if name in states), None)


def check_kind(stored: StateDescriptor, declared: Declaration) -> None:
    """Raise IncompatibleStateError when a state was stored as another kind, or with other keys."""
    if (stored.kind, stored.key_type) != (declared.kind, declared.key_type):
        raise IncompatibleStateError(
            f"state '{stored.name}' was stored as {stored.kind} state keyed by {stored.key_type}, "
            f"and is declared as {declared.kind} state keyed by {declared.key_type}"
        )


def first_descriptor(state_id: int, declared: Declaration) -> StateDescriptor:
    """What to store of a new state."""
    return StateDescriptor(state_id, declared.name, declared.kind, declared.key_type, [declared.codec.schema], 0)


def fit(
    stored: StateDescriptor, declared: Declaration, used: Callable[[int], set[int]], *, is_whole: bool
) -> StateDescriptor:
    """What to store of a known state from now on; the declared codec learns to read all that is stored.

    Parameters
    ----------
    used
        Gives the versions that values of a state, by its id, are stored with. It may have to read all of them, and is called only when
        a version is in the way.
    is_whole
        Whether that is all there is of the state. Numbers that are free in one store's share alone are not given away, since all stores of
        a job must count alike.

    Raises
    ------
    IncompatibleStateError
        It was stored as another kind of state, or values with too many schemas are stored.
    StateMigrationError
        Values are stored that can't be read as the declared type.
    """
    check_kind(stored, declared)
    verdicts, codec = verdicts_of(stored, declared, used), declared.codec
    for version, verdict in verdicts.items():
        if verdict.way == "incompatible":
            raise _migration_error(stored, version, declared, verdict)
    schemas = [schema if version in verdicts else None for version, schema in enumerate(stored.schemas)]
    same = [version for version, verdict in verdicts.items() if verdict.way == "same"]
    current = same[0] if same else _free_version(stored, schemas, used if is_whole else None)
    schemas[current : current + 1] = [codec.schema]
    others = {version: verdicts[version] for version in verdicts if version != current and schemas[version] is not None}
    codec.reads(current, {version: _reader(stored, version, declared, verdict) for version, verdict in others.items()})
    return replace(stored, name=declared.name, schemas=schemas, version=current)


def verdicts_of(stored: StateDescriptor, declared: Declaration, used: Callable[[int], set[int]]) -> dict[int, Verdict]:
    """Verdict on each schema version that values are stored with; `used` as of `fit`. One that is not used can't be in the way."""
    listed = [(version, schema) for version, schema in enumerate(stored.schemas) if schema is not None]
    verdicts = {version: judge(schema, declared) for version, schema in listed}
    if any(verdict.way == "incompatible" for verdict in verdicts.values()):
        in_use = used(stored.id)
        verdicts = {
            version: verdict
            for version, verdict in verdicts.items()
            if version in in_use or verdict.way != "incompatible"
        }
    return verdicts


def _free_version(stored: StateDescriptor, schemas: list[Schema | None], used: Callable[[int], set[int]] | None) -> int:
    """Number for one more schema; `schemas` is rid of those that are not needed, if there are too many."""
    if used is not None and None not in schemas and len(schemas) > SCHEMA_VERSION_MAX:
        in_use = used(stored.id)
        schemas[:] = [schema if version in in_use else None for version, schema in enumerate(schemas)]
    if None in schemas:
        return schemas.index(None)
    if len(schemas) <= SCHEMA_VERSION_MAX:
        return len(schemas)
    raise IncompatibleStateError(
        f"state '{stored.name}' has values of {len(schemas)} schemas, more there can't be: declare its last type again, read and update "
        "the oldest values, which stores them anew, and open it once with all key groups in one store"
    )


def _migration_error(
    stored: StateDescriptor, version: int, declared: Declaration, verdict: Verdict
) -> StateMigrationError:
    problems = [one for one in verdict.differences if one.problem]
    schema, first = stored.schemas[version], problems[0]
    assert schema is not None
    return StateMigrationError(
        stored.name,
        schema.name,
        declared.codec.name,
        "; ".join(map(str, problems)),
        field=first.field,
        hint="declare the stored type, or give the state an upcast= function",
    )


def _reader(stored: StateDescriptor, version: int, declared: Declaration, verdict: Verdict) -> Upcast | None:
    """What makes values of the declared type out of what was stored with an older schema; None where they are read as they are."""
    if verdict.way != "upcast":
        return None
    upcast, codec, name, schema = declared.upcast, declared.codec, declared.name, stored.schemas[version]
    assert upcast is not None
    assert schema is not None

    def convert(old: Any) -> Any:
        try:
            value = upcast(old)
            codec.checked(value, name)
        except Exception as error:
            problem = f"upcast failed on {old!r}: {type(error).__name__}: {error}"
            raise StateMigrationError(name, schema.name, codec.name, problem) from error
        return value

    return convert


def versions_in_use(scan: Scan, state_id: int, groups: range, waiting: dict[bytes, bytes | None]) -> set[int]:
    """Schema versions that values of a state are stored with, by reading all of it.

    Parameters
    ----------
    scan
        Entries with start <= key < stop.
    waiting
        Newer ones, of whatever state; None deletes.
    """
    found: set[int] = set()
    for group in groups:
        prefix = group_start(group) + state_id.to_bytes(2, "big")
        stored = scan(prefix, prefix_end(prefix))
        found.update(version_of(value) for key, value in stored if key not in waiting)
        found.update(version_of(value) for key, value in waiting.items() if value and key.startswith(prefix))
    return found


def full_names(prefix: str, names: str | Iterable[str]) -> tuple[str, ...]:
    """Names as `renamed_from` gives them, in full. Raises UsageError when one is no text."""
    given = (names,) if isinstance(names, str) else tuple(names)
    for name in given:
        if not isinstance(name, str):
            raise UsageError(f"renamed_from takes the names that a state had, not {name!r}")
    return tuple(full for name in given for full in ((f"{prefix}/{name}", name) if prefix else (name,)))
