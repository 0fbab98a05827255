"""Values as bytes: typed MessagePack, and a fingerprint that tells whether stored bytes fit a declared type.

An integer beyond 64 bits, which MessagePack has no form for, is stored as the byte C1 (never used by MessagePack) and two's complement,
where the declared type is `int` itself.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import hashlib
import uuid
from collections.abc import Callable
from typing import Any, get_origin

import msgspec

from statestore.errors import CorruptionError, UsageError

_BIG_INT = b"\xc1"

# Handing the same object out twice can't do harm with these.
_IMMUTABLE = (
    type(None), bool, int, float, str, bytes, decimal.Decimal, uuid.UUID,
    datetime.datetime, datetime.date, datetime.time, datetime.timedelta,
)  # fmt: skip


def type_name(declared: Any) -> str:
    """Readable name of a type, as error messages and `checkpoint show` give it."""
    if get_origin(declared) is None and isinstance(declared, type):
        return declared.__qualname__
    return str(declared).replace("typing.", "")


class Codec:
    """Encodes and decodes the values of one declared type.

    Parameters
    ----------
    declared
        Any type msgspec supports: builtins, dataclass, msgspec.Struct, attrs, TypedDict, NamedTuple, Enum, datetime, Decimal, UUID, and
        containers of these.

    Raises
    ------
    UsageError
        The type can't be encoded.
    """

    __slots__ = ("declared", "decode", "encode", "fingerprint", "name", "value_class")

    def __init__(self, declared: Any):
        self.declared = declared
        self.name = type_name(declared)
        try:
            schema = (
                msgspec.json.encode(msgspec.json.schema(declared), order="deterministic")
                if declared is not Any
                else b"any"
            )
            decode = msgspec.msgpack.Decoder(declared).decode
        except (TypeError, msgspec.MsgspecError) as error:
            raise UsageError(f"values of type {self.name} can't be stored: {error}") from error
        self.fingerprint = hashlib.sha256(schema).hexdigest()[:16]
        self.encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
        self.decode: Callable[[bytes], Any] = decode
        self.value_class: type | None = _value_class(declared)
        if declared is int:
            self.encode, self.decode = _encode_int, _decode_int

    def decode_stored(self, data: bytes, state: str) -> Any:
        """Decode bytes that came from a backend.

        Raises
        ------
        CorruptionError
            They are no value of the declared type.
        """
        try:
            return self.decode(data)
        except (msgspec.MsgspecError, IndexError, UnicodeDecodeError) as error:
            raise CorruptionError(
                f"state '{state}'", f"a stored value can't be read as {self.name}: {error}"
            ) from error


_encode_any = msgspec.msgpack.Encoder().encode
_decode_small_int = msgspec.msgpack.Decoder(int).decode


def _encode_int(value: int) -> bytes:
    try:
        return _encode_any(value)
    except OverflowError:
        return _BIG_INT + value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True)


def _decode_int(data: bytes) -> int:
    return int.from_bytes(data[1:], "big", signed=True) if data[:1] == _BIG_INT else _decode_small_int(data)


def _value_class(declared: Any) -> type | None:
    """Class that every value must be an instance of, where that is cheap to tell."""
    if declared is float or declared is Any or not isinstance(declared, type) or get_origin(declared) is not None:
        return None  # a float state takes ints as well
    return None if issubclass(declared, dict) else declared  # a TypedDict can't be asked


def fresh_value(default: Any) -> Callable[[], Any] | None:
    """How to make a new equal object of a default that can be changed in place; None when the default itself can be handed out."""
    config = getattr(type(default), "__struct_config__", None)
    if isinstance(default, _IMMUTABLE) or default == () or (config is not None and config.frozen):
        return None
    return lambda: copy.deepcopy(default)
