"""Keys and values by what is stored about their types, for who does not have the types."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from statestore.codecs import Codec, decode_plain
from statestore.envelope import open_envelope
from statestore.errors import CorruptionError, IncompatibleStateError, StateMigrationError
from statestore.keys import KeyCodec
from statestore.schema import PICKLE, Scalar, Schema
from statestore.versions import Declaration, judge
from statestore.wal.record import StateDescriptor

_token = re.compile(r"\s*([A-Za-z_]\w*|[][(),:])")
_scalars: dict[str, type] = {scalar.__name__: scalar for scalar in (str, int, bytes, bool)}


def key_codec_of(name: str, declared: Any, state: str) -> KeyCodec:
    """What reads keys of the type with a stored name; without the declared type, a Struct's keys come as Structs made up of its fields.

    Raises
    ------
    IncompatibleStateError
        The declared type is another one.
    """
    if declared is None:
        return KeyCodec(_TypeName(name, state).parse())
    codec = KeyCodec(declared)
    if codec.name != name:
        raise IncompatibleStateError(f"state '{state}' is keyed by {name}, not by {codec.name}")
    return codec


class _TypeName:
    """Parser of what `KeyCodec.name` gives: `str`, `tuple[str, int]`, `Place(country: str, id: int)`."""

    def __init__(self, name: str, state: str):
        self._name, self._state = name, state
        self._tokens = _token.findall(name)

    def parse(self) -> Any:
        parsed = self._type()
        if self._tokens or "".join(_token.findall(self._name)) != self._name.replace(" ", ""):
            raise self._unreadable()
        return parsed

    def _type(self) -> Any:
        name = self._next()
        if name in _scalars:
            return _scalars[name]
        if name == "tuple":
            self._expect("[")
            parts = [self._type()]
            while self._next_of(",", "]") == ",":
                parts.append(self._type())
            return tuple[tuple(parts)]  # type: ignore[misc]
        self._expect("(")
        fields = [self._field()]
        while self._next_of(",", ")") == ",":
            fields.append(self._field())
        return msgspec.defstruct(name, fields, frozen=True)

    def _field(self) -> tuple[str, Any]:
        name = self._next()
        self._expect(":")
        return name, self._type()

    def _next(self) -> str:
        if not self._tokens:
            raise self._unreadable()
        token: str = self._tokens.pop(0)
        return token

    def _next_of(self, *tokens: str) -> str:
        token = self._next()
        if token not in tokens:
            raise self._unreadable()
        return token

    def _expect(self, token: str) -> None:
        self._next_of(token)

    def _unreadable(self) -> CorruptionError:
        return CorruptionError(f"state '{self._state}'", f"its key type '{self._name}' is none that is known")


def as_key(key: Any, codec: KeyCodec) -> Any:
    """`key` as one of the codec's type, where it may be given as the tuple of a Struct's fields. Raises UsageError."""
    fields = getattr(codec.runtime_type, "__struct_fields__", None)
    if fields is not None and isinstance(key, tuple) and len(key) == len(fields):
        key = codec.runtime_type(*key)
    codec.check(key)
    return key


class Pickled(bytes):
    """What is stored of a pickled value, or of those in a chunk of a list. Reading state runs no code: unpickle it if you trust it."""


class ValueReader:
    """Decodes a state's values: into builtins, where a dataclass or Struct comes as a dict, or into a declared type."""

    def __init__(self, state: StateDescriptor, declared: Any = None):
        self._name = state.name
        schemas = {version: schema for version, schema in enumerate(state.schemas) if schema is not None}
        self._pickled = {version for version, schema in schemas.items() if schema.root == Scalar(PICKLE)}
        self._codec: Codec | None = None
        self._misfits: dict[int, StateMigrationError] = {}
        if declared is not None:
            self._codec = Codec(declared)
            self._fit(Declaration(state.name, state.kind, state.key_type, self._codec), schemas)

    def _fit(self, declared: Declaration, schemas: dict[int, Schema]) -> None:
        """Have the codec read what it can."""
        for version, schema in schemas.items():
            problems = [one for one in judge(schema, declared).differences if one.problem]
            if problems:
                text = "; ".join(map(str, problems))
                self._misfits[version] = StateMigrationError(
                    self._name, schema.name, declared.codec.name, text, field=problems[0].field
                )
        fitting = dict.fromkeys(schemas.keys() - self._misfits.keys())
        declared.codec.reads(next(iter(fitting), 0), fitting)

    def one(self, stored: bytes) -> Any:
        """A stored value, its envelope included. Raises StateMigrationError or CorruptionError."""
        version, payload = open_envelope(stored, self._name)
        if version in self._pickled:
            return Pickled(payload)
        if self._codec is None:
            return self._plain(payload)
        self._check(version)
        return self._codec.decode_stored(payload, version, self._name)

    def many(self, version: int, payload: bytes) -> list[Any]:
        """The elements in the payload of a list's chunk. Raises likewise."""
        if version in self._pickled:
            return [Pickled(payload)]
        if self._codec is None:
            return list(self._plain(payload))
        self._check(version)
        return self._codec.decode_stored_many(payload, version, self._name)

    def _check(self, version: int) -> None:
        if version in self._misfits:
            raise self._misfits[version]

    def _plain(self, payload: bytes) -> Any:
        try:
            return decode_plain(payload)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"state '{self._name}'", f"a stored value can't be read: {error}") from error
