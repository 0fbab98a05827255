"""Values as bytes: typed MessagePack, which reads every schema that its state was ever stored with.

    value        = MessagePack, or where it has no form for a part: C1 (never used by MessagePack) · MessagePack with extensions
    extension 1    an integer beyond 64 bits: two's complement, big-endian
              2    text with lone surrogates: UTF-8 that keeps them
              3    an array or number of numpy (`statestore.arrays`)
              4    a map with such keys: array of keys and values in turn
    pickled value = pickle, where the state is declared so and the configuration allows it

Invariants:
- what can't be read again is not written: a value of anything but the simplest types is read back once when it is encoded;
- nothing is ever unpickled unless both the declaration and the configuration say so.
"""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import pickle
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_origin

import msgspec

from statestore.arrays import ARRAY, array_type_name, as_declared, decode_array, encode_array
from statestore.errors import ConfigError, CorruptionError, IncompatibleStateError, UsageError
from statestore.schema import Schema, describe, has_any, pickled, type_name

CodecName = Literal["msgpack", "pickle"]

_ESCAPE = b"\xc1"
_INTEGER, _TEXT, _PAIRS = 1, 2, 4

_EXACT: tuple[Any, ...] = (int, str, bytes, float, bool)
"""Types whose values, if their class is just that, are always read back as they are."""


class Reader(NamedTuple):
    """Reads bytes stored under one schema as values of the declared type."""

    one: Callable[[bytes], Any]
    many: Callable[[bytes], list[Any]]


class Codec:
    """Encodes and decodes the values of one state.

    Parameters
    ----------
    declared
        Builtins, dataclass, msgspec.Struct, attrs, TypedDict, NamedTuple, Enum, datetime, Decimal, UUID, numpy's numbers and arrays, and
        containers of these.
    name
        "msgpack", or "pickle" for values of any other type.
    allow_pickle
        Whether the configuration allows the latter.

    Attributes
    ----------
    schema
        Describes the declared type.
    version
        Number of the schema among those of the state.
    encode
        Bytes of a value, unchecked.

    Raises
    ------
    UsageError
        The type can't be encoded.
    ConfigError
        Pickle is not allowed.
    """

    def __init__(self, declared: Any, name: CodecName = "msgpack", *, allow_pickle: bool = False):
        self.declared, self.name, self.version = declared, type_name(declared), 0
        self._is_pickled = name == "pickle"
        self.encode: Callable[[Any], bytes]
        if self._is_pickled:
            _check_allowed(allow_pickle)
            self.schema = pickled(self.name)
            self.encode, reader = _pickle, Reader(_unpickle, _unpickle)
        elif name == "msgpack":
            self.schema, reader = _typed(declared, self.name)
            self.encode = msgspec.msgpack.Encoder(enc_hook=encode_array).encode
        else:
            raise UsageError(f"there is no codec {name!r}: it is 'msgpack' or 'pickle'")
        self._reader = reader
        self._readers = {0: reader}
        self._value_class = None if self._is_pickled else _value_class(declared)
        self._exact = declared if declared in _EXACT and not self._is_pickled else None
        self._is_open = not self._is_pickled and has_any(self.schema)
        # Of values of just this class `encode` is enough, if what is to verify it, where anything is, can read the bytes.
        self._fast_class = None if self._is_open else self._value_class
        self._verify = None if self._exact else reader.many

    # Writing

    def checked(self, value: Any, state: str) -> bytes:
        """Bytes of a value. Raises UsageError when it is not of the declared type, or could not be read again."""
        self._check_class(value, state)
        try:
            data = self._encoded(value)
            if value.__class__ is not self._exact:
                self._compare(value, self._read(data, self._reader.one, self.declared))
        except Exception as error:  # whatever a class of the user's raises
            raise UsageError(f"a value of state '{state}' can't be encoded as {self.name}: {error}") from error
        return data

    def checked_each(self, values: list[Any], head: bytes, state: str) -> list[bytes]:
        """Bytes of each of several values, behind `head`. Raises as `checked` does."""
        if set(map(type, values)) == {self._fast_class}:
            try:
                encoded = list(map(self.encode, values))
                if self._verify is not None:
                    self._verify(_array_head(len(encoded)) + b"".join(encoded))
                return list(map(head.__add__, encoded))
            except Exception:  # whatever a class of the user's raises; one by one they show which it was
                pass
        return [head + self.checked(value, state) for value in values]

    def checked_many(self, values: list[Any], checked_before: int, state: str) -> bytes:
        """Bytes of an array of values, the first of which were checked before. Raises as `checked` does."""
        new = values[checked_before:] if checked_before else values
        for value in new:
            self._check_class(value, state)
        try:
            data = self._encoded(values)
            if any(value.__class__ is not self._exact for value in new):
                self._compare(
                    new, self._read(self._encoded(new) if checked_before else data, self._reader.many, self._list_type)
                )
        except Exception as error:
            raise UsageError(f"an element of state '{state}' can't be encoded as {self.name}: {error}") from error
        return data

    def _check_class(self, value: Any, state: str) -> None:
        expected = self._value_class
        if expected is None or value.__class__ is expected:
            return
        # An int in place of a float may pass, if it comes back equal; but a Struct's subclass would come back as the Struct.
        if self._exact is None or not isinstance(value, (expected, int) if expected is float else expected):
            raise UsageError(f"state '{state}' holds {self.name}, not {type(value).__name__}: {value!r}")

    def _encoded(self, value: Any) -> bytes:
        try:
            return self.encode(value)
        except (OverflowError, UnicodeEncodeError):
            if self._is_pickled:
                raise
            return _escaped(value)

    def _compare(self, value: Any, again: Any) -> None:
        """Raise ValueError when a value comes back changed, where that can be though it comes back."""
        if (self._is_open or self._exact is not None) and not _is_same(value, again):
            raise ValueError(f"it would come back as {again!r}; declare a type that says what it is")

    # Reading

    def reads(self, version: int, others: dict[int, Callable[[Any], Any] | None]) -> None:
        """Say which number the schema has, and which other versions are stored: with a function from builtin types, or None if all fits."""
        self.version = version
        self._readers = {
            other: self._reader if upcast is None else _upcasting(upcast) for other, upcast in others.items()
        }
        self._readers[version] = self._reader

    def decode_stored(self, data: bytes, version: int, state: str) -> Any:
        """Value in a payload of a schema version that came from a backend.

        Raises
        ------
        CorruptionError
            It is no value of that schema.
        StateMigrationError
            The state's `upcast` failed on it.
        """
        reader = self._readers.get(version)
        if reader is None:
            raise _unlisted(version, state)
        try:
            return reader.one(data)
        except _UNREADABLE as error:
            return self._read_again(data, self.declared, state, error)

    def decode_stored_each(self, payloads: list[bytes], version: int, state: str) -> list[Any]:
        """Values in several payloads. Raises as `decode_stored` does."""
        reader = self._readers.get(version)
        if reader is not None:
            try:
                return list(map(reader.one, payloads))
            except _UNREADABLE:  # one by one they show which it was, or that it is only escaped
                pass
        return [self.decode_stored(data, version, state) for data in payloads]

    def decode_stored_many(self, data: bytes, version: int, state: str) -> list[Any]:
        """Values in a payload of many. Raises as `decode_stored` does."""
        reader = self._readers.get(version)
        if reader is None:
            raise _unlisted(version, state)
        try:
            return reader.many(data)
        except _UNREADABLE as error:
            return self._read_again(data, self._list_type, state, error)  # type: ignore[no-any-return]

    @property
    def _list_type(self) -> Any:
        return list[self.declared]  # type: ignore[name-defined]

    def _read(self, data: bytes, read: Callable[[bytes], Any], declared: Any) -> Any:
        return _convert_escaped(data, declared) if data[:1] == _ESCAPE else read(data)

    def _read_again(self, data: bytes, declared: Any, state: str, error: Exception) -> Any:
        """What typed reading does not know: an escaped value, if it is one."""
        if data[:1] == _ESCAPE and not self._is_pickled:
            try:
                return _convert_escaped(data, declared)
            except _UNREADABLE as later:
                error = later
        raise CorruptionError(f"state '{state}'", f"a stored value can't be read as {self.name}: {error}") from error


def _array_head(count: int) -> bytes:
    """What stands in MessagePack before the values of an array."""
    return b"\xdd" + count.to_bytes(4, "big")


def decode_plain(data: bytes) -> Any:
    """Payload as values of builtin types, whatever it was declared as: a map for a class, a list for a tuple or set.

    Raises
    ------
    ValueError, msgspec.MsgspecError
        It is no MessagePack, as pickled values are not.
    """
    return _decode_any(data[1:] if data[:1] == _ESCAPE else data)


_UNREADABLE = (msgspec.MsgspecError, ValueError, IndexError, OverflowError)


def _typed(declared: Any, name: str) -> tuple[Schema, Reader]:
    hooks: Any = {"dec_hook": as_declared, "ext_hook": _extension}
    try:
        one = msgspec.msgpack.Decoder(declared, **hooks).decode
        many = msgspec.msgpack.Decoder(list[declared], **hooks).decode
        return describe(declared), Reader(one, many)
    except (TypeError, msgspec.MsgspecError) as error:
        raise UsageError(f'values of type {name} can\'t be stored: {error}; codec="pickle" takes any type') from error


def _upcasting(upcast: Callable[[Any], Any]) -> Reader:
    return Reader(lambda data: upcast(decode_plain(data)), lambda data: [upcast(value) for value in decode_plain(data)])


def _unlisted(version: int, state: str) -> CorruptionError:
    return CorruptionError(
        f"state '{state}'", f"a stored value has schema version {version}, which the state does not list"
    )


# Escaped values


def _escaped(value: Any) -> bytes:
    """Bytes of a value that has parts MessagePack has no form for."""
    arrays: dict[int, tuple[bytearray, msgspec.msgpack.Ext]] = {}

    def stand_in(array: Any) -> bytearray:
        place = bytearray()
        arrays[id(place)] = place, encode_array(array)
        return place

    plain = msgspec.to_builtins(value, builtin_types=(bytes, bytearray, datetime.datetime), enc_hook=stand_in)

    def wrapped(value: Any) -> Any:
        if id(value) in arrays:
            return arrays[id(value)][1]
        return _wrapped(value, wrapped)

    return _ESCAPE + _encode_any(wrapped(plain))


def _wrapped(value: Any, inner: Callable[[Any], Any]) -> Any:
    match value:
        case int() if not -(1 << 63) <= value < 1 << 64:
            return msgspec.msgpack.Ext(_INTEGER, value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True))
        case str():
            data = value.encode("utf-8", "surrogatepass")
            return value if data.decode("utf-8", "ignore") == value else msgspec.msgpack.Ext(_TEXT, data)
        case list() | tuple() | set() | frozenset():
            return [inner(item) for item in value]
        case dict():
            pairs = [(inner(key), inner(item)) for key, item in value.items()]
            if any(isinstance(key, msgspec.msgpack.Ext | list) for key, _ in pairs):
                return msgspec.msgpack.Ext(_PAIRS, _encode_any([part for pair in pairs for part in pair]))
            return dict(pairs)
    return value


def _extension(code: int, data: memoryview) -> Any:
    if code == _INTEGER:
        return int.from_bytes(data, "big", signed=True)
    if code == _TEXT:
        return bytes(data).decode("utf-8", "surrogatepass")
    if code == ARRAY:
        return decode_array(data)
    if code == _PAIRS:
        parts = _decode_any(data)
        return {_hashable(key): value for key, value in zip(parts[::2], parts[1::2], strict=True)}
    raise ValueError(f"unknown extension {code}")


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if isinstance(key, list) else key


def _convert_escaped(data: bytes, declared: Any) -> Any:
    return msgspec.convert(decode_plain(data), declared, dec_hook=as_declared)


_encode_any = msgspec.msgpack.Encoder().encode
_decode_any = msgspec.msgpack.Decoder(ext_hook=_extension).decode

# Pickled values


def _check_allowed(allow_pickle: bool) -> None:
    if not allow_pickle:
        raise ConfigError(
            'a state is declared with codec="pickle", whose values run code when they are read',
            key="state.allow-pickle",
            hint='where the state is trusted, set state.allow-pickle = true, or open(..., allow_pickle=True), beside codec="pickle"',
        )


def _pickle(value: Any) -> bytes:
    return pickle.dumps(value, 5)


def _unpickle(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except (AttributeError, ImportError) as error:
        raise IncompatibleStateError(f"a pickled value needs what the program does not have: {error}") from error
    except Exception as error:
        raise ValueError(f"it can't be unpickled: {error}") from error


# Classes


def _value_class(declared: Any) -> type | None:
    """Class that every value must be of, where that is cheap to tell."""
    origin = get_origin(declared)
    cls = declared if origin is None else origin
    if not isinstance(cls, type) or cls is Any or inspect.isabstract(cls):
        return None
    is_known = origin in (None, *_CONTAINERS) or hasattr(cls, "__struct_config__") or dataclasses.is_dataclass(cls)
    array = array_type_name(cls)
    if not (array == "numpy.ndarray" if array else is_known):
        return None
    return dict if issubclass(cls, dict) else cls  # a TypedDict is a dict


_CONTAINERS = (list, tuple, set, frozenset, dict)


def _is_same(one: Any, other: Any) -> bool:
    """Whether a value came back as it was, types included; an int and an equal float are the same."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return bool(one == other or one != one) and isinstance(one, bool) == isinstance(other, bool)
    if one.__class__ is not other.__class__:
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(_is_same, _parts(one), _parts(other)))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if hasattr(one, "__struct_fields__") or dataclasses.is_dataclass(one) or hasattr(one, "__attrs_attrs__"):
        return all(map(_is_same, _fields(one), _fields(other)))
    return array_type_name(one.__class__) is not None or bool(one == other)


def _parts(value: dict[Any, Any]) -> Iterable[Any]:
    return (part for pair in value.items() for part in pair)


def _fields(value: Any) -> Iterable[Any]:
    names = getattr(value, "__struct_fields__", None)
    if names is None:
        declared = getattr(value, "__attrs_attrs__", None) or dataclasses.fields(value)
        names = [field.name for field in declared]
    return [getattr(value, name, None) for name in names]
