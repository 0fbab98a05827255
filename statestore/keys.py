"""Keys as bytes: what the user's key becomes in the log, in a backend and in a checkpoint.

    entry key  = key group u16 BE · state id u16 BE · key length varint (LEB128) · key · sub-key
    key group  = xxh3_64(key, seed 0) mod max parallelism
    sub-key    = empty (value states, heads of lists), or the part of a collection (map key, list chunk)

The encoding of a key is injective within its declared type, and every type is checked exactly: `1`, `True` and `1.0` are equal to a
dict, so a key of another type than declared raises instead of sharing somebody's state.

    str    UTF-8 (lone surrogates kept)          bytes  as they are        bool  00 | 01
    int    big-endian two's complement, as short as possible
    tuple  for each element: its length varint · its encoding
    Struct (msgspec) like the tuple of its fields
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, get_args, get_origin

import msgspec
from xxhash import xxh3_64_intdigest

from statestore.errors import UsageError
from statestore.types import KeyGroup

MAX_PARALLELISM_LIMIT = 32768
DEFAULT_MAX_PARALLELISM = 128

KeyEncoder = Callable[[Any], bytes]


def varint(number: int) -> bytes:
    """LEB128 of a number >= 0."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """Number at `offset` and the offset behind it. Raises IndexError when the data ends in it."""
    number = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, offset
        shift += 7


_SHORT_LENGTHS = [varint(length) for length in range(256)]


def length_prefix(data: bytes) -> bytes:
    """Varint of the length of `data`."""
    return _SHORT_LENGTHS[len(data)] if len(data) < 256 else varint(len(data))


def _encode_str(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _encode_strs(keys: Iterable[str]) -> list[bytes]:
    keys = list(keys)
    try:
        return list(map(str.encode, keys))  # less than half the time, and the same, but for lone surrogates
    except UnicodeEncodeError:
        return list(map(_encode_str, keys))


def _encode_int(key: int) -> bytes:
    return key.to_bytes((key.bit_length() + 8) // 8, "big", signed=True)


def _encode_bool(key: bool) -> bytes:
    return b"\x01" if key else b"\x00"


def _decode_str(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _decode_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


_SCALARS: dict[type, tuple[KeyEncoder, Callable[[bytes], Any]]] = {
    str: (_encode_str, _decode_str),
    int: (_encode_int, _decode_int),
    bytes: (bytes, bytes),
    bool: (_encode_bool, lambda data: data == b"\x01"),
}


class KeyCodec:
    """Encodes, decodes and checks keys of one declared type.

    Parameters
    ----------
    declared
        `str`, `int`, `bytes`, `bool`, `tuple[...]` of these (fixed length), or a frozen `msgspec.Struct` of these.

    Raises
    ------
    UsageError
        Another type is declared.
    """

    __slots__ = ("declared", "decode", "encode", "is_scalar", "name", "parts", "runtime_type")

    def __init__(self, declared: Any):
        self.declared = declared
        self.parts: list[KeyCodec] = []  # of a tuple's elements or a Struct's fields
        self.runtime_type: type = get_origin(declared) or declared
        self.is_scalar = declared in _SCALARS
        self.encode: KeyEncoder
        self.decode: Callable[[bytes], Any]
        if self.is_scalar:
            self.encode, self.decode = _SCALARS[declared]
            self.name = declared.__name__
            return
        self.encode, self.decode = self._encode_parts, self._decode_parts
        args = get_args(declared)
        if self.runtime_type is tuple and args and Ellipsis not in args:
            self.parts = [KeyCodec(part) for part in args]
            self.name = f"tuple[{', '.join(part.name for part in self.parts)}]"
        elif isinstance(declared, type) and issubclass(declared, msgspec.Struct):
            if not declared.__struct_config__.frozen:
                raise UsageError(
                    f"key type {declared.__name__} must be a frozen Struct: class {declared.__name__}(Struct, frozen=True)"
                )
            hints = typing.get_type_hints(declared)
            self.parts = [KeyCodec(hints[field]) for field in declared.__struct_fields__]
            fields = zip(declared.__struct_fields__, self.parts, strict=True)
            self.name = f"{declared.__name__}({', '.join(f'{field}: {part.name}' for field, part in fields)})"
        else:
            raise UsageError(
                f"key type {declared!r} is not supported: use str, int, bytes, bool, a tuple of these, or a frozen Struct"
            )

    def _elements(self, key: Any) -> tuple[Any, ...]:
        return key if self.runtime_type is tuple else msgspec.structs.astuple(key)

    def _encode_parts(self, key: Any) -> bytes:
        return self._joined(self.parts, self._elements(key))

    def _joined(self, parts: list[KeyCodec], elements: tuple[Any, ...]) -> bytes:
        pieces = []
        for part, element in zip(parts, elements, strict=True):
            data = part.encode(element)
            pieces += [length_prefix(data), data]
        return b"".join(pieces)

    def encode_many(self, keys: Iterable[Any]) -> list[bytes]:
        """Encodings of several keys, in their order."""
        return _encode_strs(keys) if self.declared is str else list(map(self.encode, keys))

    def encode_prefix(self, prefix: Any) -> bytes:
        """What the encoding of every key begins with that begins with `prefix`: part of a str or bytes, or a tuple of the first elements.

        Raises
        ------
        UsageError
            It is none of these, or keys of this type have no beginning.
        """
        if self.declared in (str, bytes) and type(prefix) is self.declared:
            return self.encode(prefix)
        if self.parts and isinstance(prefix, tuple) and len(prefix) <= len(self.parts):
            parts = self.parts[: len(prefix)]
            for part, element in zip(parts, prefix, strict=True):
                part.check(element)
            return self._joined(parts, prefix)
        raise UsageError(f"{prefix!r} is no prefix of keys that are {self.name}")

    def _decode_parts(self, data: bytes) -> Any:
        elements, offset = [], 0
        for part in self.parts:
            length, offset = read_varint(data, offset)
            elements.append(part.decode(data[offset : offset + length]))
            offset += length
        return tuple(elements) if self.runtime_type is tuple else self.runtime_type(*elements)

    def check(self, key: Any) -> None:
        """Raise UsageError unless `key` is exactly of the declared type, in all its elements."""
        if type(key) is not self.runtime_type:
            raise UsageError(f"key {key!r} is {type(key).__name__}, the keys of this state are {self.name}")
        if not self.is_scalar:
            elements = self._elements(key)
            if len(elements) != len(self.parts):
                raise UsageError(f"key {key!r} has {len(elements)} elements, the keys of this state are {self.name}")
            for part, element in zip(self.parts, elements, strict=True):
                part.check(element)

    def check_all(self, keys: Sequence[Any]) -> None:
        """Raise UsageError unless all `keys` are exactly of the declared type."""
        if self.is_scalar and set(map(type, keys)) <= {self.runtime_type}:
            return
        for key in keys:
            self.check(key)


def key_group_of(key: bytes, max_parallelism: int) -> KeyGroup:
    """Key group of an encoded key."""
    return KeyGroup(xxh3_64_intdigest(key) % max_parallelism)


def split_key_groups(parallelism: int, max_parallelism: int) -> list[range]:
    """The key groups of each of several workers: ranges that follow each other, as equal as can be.

    Raises
    ------
    UsageError
        There are fewer key groups than workers.
    """
    if not 1 <= parallelism <= max_parallelism:
        raise UsageError(f"parallelism is {parallelism}, it must be from 1 to the max parallelism {max_parallelism}")
    ends = [worker * max_parallelism // parallelism for worker in range(parallelism + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


def group_start(group: int) -> bytes:
    """First entry key of a key group; of `max parallelism` itself, the end of all."""
    return group.to_bytes(2, "big")


def group_bounds(groups: range) -> tuple[bytes, bytes]:
    """First entry key of a range of key groups, and the first one behind them."""
    return group_start(groups.start), group_start(groups.stop)


def group_of_entry(entry_key: bytes) -> KeyGroup:
    """Key group an entry key belongs to."""
    return KeyGroup(int.from_bytes(entry_key[:2], "big"))


def split_entry(entry_key: bytes) -> tuple[KeyGroup, int, bytes, bytes]:
    """Key group, state id, key and sub-key of an entry key."""
    length, offset = read_varint(entry_key, 4)
    return (
        group_of_entry(entry_key),
        int.from_bytes(entry_key[2:4], "big"),
        entry_key[offset : offset + length],
        entry_key[offset + length :],
    )


def prefix_end(prefix: bytes) -> bytes | None:
    """Least key greater than all that start with `prefix`; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def foreign_key(key: bytes, group: KeyGroup, key_groups: range) -> UsageError:
    """The error of a key that belongs to another worker's store."""
    own = f"{key_groups.start} to {key_groups.stop - 1}"
    return UsageError(
        f"the key encoded as {key!r} is of key group {group}, this store keeps {own}: send it to its owner"
    )


class EntryKeys:
    """Makes the entry keys of one state; the tables it holds keep the cost per key to a hash and two concatenations.

    Parameters
    ----------
    key_groups
        Those that the store keeps; default all.
    """

    __slots__ = ("_key_groups", "_max_parallelism", "_prefixes", "state_id")

    def __init__(self, state_id: int, max_parallelism: int, key_groups: range | None = None):
        tail = state_id.to_bytes(2, "big")
        self._key_groups = range(max_parallelism) if key_groups is None else key_groups
        self._prefixes = {group: group_start(group) + tail for group in self._key_groups}
        self._max_parallelism, self.state_id = max_parallelism, state_id

    @property
    def are_shared(self) -> bool:
        """Whether other stores keep some of the key groups."""
        return len(self._key_groups) < self._max_parallelism

    def of(self, key: bytes, sub_key: bytes = b"") -> bytes:
        """Entry key of an encoded key and sub-key. Raises UsageError when the key is another store's."""
        try:
            prefix = self._prefixes[xxh3_64_intdigest(key) % self._max_parallelism]
        except KeyError as error:
            raise foreign_key(key, KeyGroup(error.args[0]), self._key_groups) from None
        return prefix + (_SHORT_LENGTHS[len(key)] if len(key) < 256 else varint(len(key))) + key + sub_key

    def of_many(self, keys: list[bytes]) -> list[bytes]:
        """Entry keys of encoded keys, in their order. Raises as `of` does."""
        prefixes, groups, lengths, digest = self._prefixes, self._max_parallelism, _SHORT_LENGTHS, xxh3_64_intdigest
        try:
            return [prefixes[digest(key) % groups] + lengths[len(key)] + key for key in keys]
        except (IndexError, KeyError):  # a long key, or another store's
            return list(map(self.of, keys))
