"""Keys and values as text: what commands take, and what they print.

Text keys are written as they are, all others as JSON (bytes in base64, tuples as arrays, Structs as objects or arrays).
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from statestore.keys import KeyCodec


def parse_key(text: str, codec: KeyCodec) -> Any:
    """The key that a text stands for. Raises UsageError."""
    from statestore.errors import UsageError

    if codec.declared is str:
        return text
    try:
        if codec.is_scalar:
            return msgspec.convert(text, codec.declared, strict=False)
        return _elements(msgspec.json.decode(text), codec)
    except msgspec.MsgspecError as error:
        raise UsageError(f"'{text}' is no key: the keys of this state are {codec.name}; {error}") from None


def parse_prefix(text: str, codec: KeyCodec) -> Any:
    """The beginning of keys that a text stands for: of a tuple or Struct, a JSON array of its first elements. Raises UsageError."""
    from statestore.errors import UsageError

    if not codec.parts:
        return parse_key(text, codec)
    try:
        first = msgspec.json.decode(text, type=list)
        types = tuple(part.declared for part in codec.parts[: len(first)])
        return msgspec.convert(first, tuple[types])  # type: ignore[valid-type]
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"'{text}' is no beginning of keys that are {codec.name}: expected a JSON array of the first elements; {error}"
        ) from None


def _elements(value: Any, codec: KeyCodec) -> Any:
    if isinstance(value, list) and codec.runtime_type is not tuple:
        return codec.runtime_type(*msgspec.convert(value, tuple[tuple(part.declared for part in codec.parts)]))  # type: ignore[misc]
    return msgspec.convert(value, codec.declared)


def parse_key_groups(text: str | None) -> range | None:
    """The key groups that `N` or `N-M` stands for. Raises UsageError."""
    from statestore.errors import UsageError

    if text is None:
        return None
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise UsageError(f"'{text}' is no key group: expected a number, or two as in 0-63")
    return range(int(first), int(last or first) + 1)


def key_text(key: Any) -> str:
    """A key as text."""
    return key if isinstance(key, str) and key.isprintable() else to_json(key)


def to_json(value: Any) -> str:
    """A value as JSON in one line; a dict whose keys JSON can't have as an array of pairs."""
    try:
        return _encode(value).decode()
    except (TypeError, ValueError, OverflowError):
        return json.dumps(_plain(value), separators=(",", ":"))


_encode = msgspec.json.Encoder().encode


def _plain(value: Any) -> Any:
    match value:
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _plain(item) for key, item in value.items()}
        case dict():
            return [[_plain(key), _plain(item)] for key, item in value.items()]
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case msgspec.msgpack.Ext():
            return {"extension": value.code, "data": _plain(value.data)}
        case msgspec.Struct():
            return _plain(msgspec.structs.asdict(value))
        case float():
            return value if math.isfinite(value) else None
        case bool() | int() | str() | None:
            return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def print_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as a JSON array, one in a line, as they come."""
    separator = "[\n"
    for row in rows:
        sys.stdout.write(separator + to_json(row))
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")
