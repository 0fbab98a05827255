"""What the values of a declared type look like in bytes: the description that is stored with a state.

It says what reading depends on, and nothing else: names as they are stored, which fields are always there, limits, tags. How a class is
called, and whether it is a dataclass, a Struct, an attrs class or a TypedDict, makes no difference to the fingerprint.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Any, get_origin

import msgspec
from msgspec import inspect as types
from msgspec.structs import replace

from statestore.arrays import array_type_name


class Scalar(msgspec.Struct, frozen=True, omit_defaults=True, tag="scalar"):
    """A type without parts."""

    name: str
    limits: dict[str, Any] = {}


class Array(msgspec.Struct, frozen=True, omit_defaults=True, tag="array"):
    """Any number of items of one type."""

    form: str
    """list, tuple, set or frozenset."""
    item: Node
    limits: dict[str, Any] = {}


class Tuple(msgspec.Struct, frozen=True, tag="tuple"):
    """A fixed number of items."""

    items: list[Node]


class Map(msgspec.Struct, frozen=True, omit_defaults=True, tag="map"):
    """A dict."""

    key: Node
    value: Node
    limits: dict[str, Any] = {}


class Choices(msgspec.Struct, frozen=True, tag="choices"):
    """An Enum or a Literal, by its values."""

    values: list[int | str | None]


class Union(msgspec.Struct, frozen=True, tag="union"):
    """One of several types."""

    members: list[Node]


class Reference(msgspec.Struct, frozen=True, tag="object"):
    """A class with fields."""

    index: int
    """In `Schema.objects`."""


Node = Scalar | Array | Tuple | Map | Choices | Union | Reference


class Field(msgspec.Struct, frozen=True, omit_defaults=True):
    """A field of a class."""

    name: str
    """As it is stored."""
    type: Node
    required: bool = True
    is_always_stored: bool = True
    default: str | None = None
    """Of no importance where it is always stored."""


class Object(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of a class."""

    fields: list[Field]
    tag: tuple[str, str | int] | None = None
    """Name and value of the field that tells the classes of a union apart."""
    is_positional: bool = False
    """Stored as an array, not as a map by field names."""
    is_strict: bool = False
    """Can't be read when there is a field it does not have."""


class Schema(msgspec.Struct, frozen=True):
    """Description of a type."""

    name: str
    """Readable name of the type."""
    root: Node
    objects: list[Object] = []
    object_names: list[str] = []
    fingerprint: str = ""
    """Equal for equal descriptions, whatever the classes are called."""

    def text(self, node: Node) -> str:
        """A part of the description, as Python writes such a type."""
        match node:
            case Scalar(name, limits):
                return f"{name}{_limits_text(limits)}"
            case Array(form, item, limits):
                more = ", ..." if form == "tuple" else ""
                return f"{form}[{self.text(item)}{more}]{_limits_text(limits)}"
            case Tuple(items):
                return f"tuple[{', '.join(map(self.text, items))}]"
            case Map(key, value, limits):
                return f"dict[{self.text(key)}, {self.text(value)}]{_limits_text(limits)}"
            case Choices(values):
                return f"Literal[{', '.join(map(repr, values))}]"
            case Union(members):
                return " | ".join(map(self.text, members))
            case Reference(index):
                return self.object_names[index]


PICKLE = "pickle"
NONE = Scalar("None")


def pickled(name: str) -> Schema:
    """Schema of values that are pickled."""
    return _finished(f"pickled {name}", Scalar(PICKLE), [], [])


def describe(declared: Any) -> Schema:
    """Schema of a type. Raises TypeError when values of it can't be stored."""
    describer = _Describer()
    root = describer.node(types.type_info(declared))
    return _finished(type_name(declared), root, describer.objects, describer.names)


def type_name(declared: Any) -> str:
    """Readable name of a type, as error messages and `checkpoint show` give it."""
    if get_origin(declared) is None and isinstance(declared, type):
        return declared.__qualname__
    return str(declared).replace("typing.", "")


def has_any(schema: Schema) -> bool:
    """Whether the type of some part is left open."""
    nodes = [schema.root, *(field.type for one in schema.objects for field in one.fields)]
    while nodes:
        match nodes.pop():
            case Scalar("Any"):
                return True
            case Array(_, item):
                nodes.append(item)
            case Tuple(items) | Union(items):
                nodes += items
            case Map(key, value):
                nodes += (key, value)
    return False


_encode = msgspec.json.Encoder(order="deterministic").encode


def _finished(name: str, root: Node, objects: list[Object], object_names: list[str]) -> Schema:
    bare = [replace(one, fields=[_without_unused_default(field) for field in one.fields]) for one in objects]
    fingerprint = hashlib.sha256(_encode([root, bare])).hexdigest()[:16]
    return Schema(name, root, objects, object_names, fingerprint)


def _without_unused_default(field: Field) -> Field:
    return replace(field, default=None) if field.is_always_stored else field


def _limits_text(limits: dict[str, Any]) -> str:
    return f" ({', '.join(f'{name} {limit}' for name, limit in limits.items())})" if limits else ""


_SCALARS: dict[type, str] = {
    types.AnyType: "Any", types.NoneType: "None", types.BoolType: "bool", types.IntType: "int", types.FloatType: "float",
    types.StrType: "str", types.BytesType: "bytes", types.ByteArrayType: "bytearray", types.DateTimeType: "datetime",
    types.DateType: "date", types.TimeType: "time", types.TimeDeltaType: "timedelta", types.UUIDType: "UUID",
    types.DecimalType: "Decimal",
}  # fmt: skip

_ARRAYS: dict[type, str] = {
    types.ListType: "list", types.VarTupleType: "tuple", types.SetType: "set", types.FrozenSetType: "frozenset",
}  # fmt: skip

_LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "tz")


def _limits(info: types.Type) -> dict[str, Any]:
    found = {name: getattr(info, name, None) for name in _LIMITS}
    return {name: limit for name, limit in found.items() if limit is not None}


class _Describer:
    def __init__(self) -> None:
        self.objects: list[Object] = []
        self.names: list[str] = []
        self._seen: dict[int, int] = {}

    def node(self, info: types.Type) -> Node:
        if name := _SCALARS.get(type(info)):
            return Scalar(name, _limits(info))
        if form := _ARRAYS.get(type(info)):
            return Array(form, self.node(info.item_type), _limits(info))  # type: ignore[attr-defined]
        match info:
            case types.TupleType(items):
                return Tuple([self.node(item) for item in items])
            case types.DictType(key, value):
                return Map(self.node(key), self.node(value), _limits(info))
            case types.UnionType(members):
                return Union(sorted(map(self.node, members), key=lambda node: (node == NONE, _encode(node))))
            case types.EnumType(cls):
                return _choices(member.value for member in cls)
            case types.LiteralType(values):
                return _choices(values)
            case types.Metadata(inner):
                return self.node(inner)
            case types.StructType() | types.DataclassType() | types.TypedDictType() | types.NamedTupleType():
                return self._reference(info)
            case types.CustomType(cls) if name := array_type_name(cls):
                return Scalar(name)
        kind = getattr(info, "cls", type(info))
        raise TypeError(
            f"{type_name(kind)} is none of the types that can be: builtins, dataclass, msgspec.Struct, attrs, TypedDict, NamedTuple, Enum, "
            "datetime, Decimal, UUID, numpy's numbers and arrays, and containers of these"
        )

    def _reference(self, info: Any) -> Reference:
        if id(info) in self._seen:
            return Reference(self._seen[id(info)])
        index = self._seen[id(info)] = len(self.objects)
        self.objects.append(Object([]))  # its place, for a field that refers to it
        self.names.append(type_name(info.cls))
        config = getattr(info.cls, "__struct_config__", None)
        fields = [self._field(field, omits=config is not None and config.omit_defaults) for field in info.fields]
        is_struct, is_tuple = isinstance(info, types.StructType), isinstance(info, types.NamedTupleType)
        self.objects[index] = Object(
            fields,
            tag=(info.tag_field, info.tag) if is_struct and info.tag is not None else None,
            is_positional=is_tuple or (is_struct and info.array_like),
            is_strict=is_tuple or (is_struct and info.forbid_unknown_fields),
        )
        return Reference(index)

    def _field(self, field: types.Field, *, omits: bool) -> Field:
        has_default = field.default is not msgspec.NODEFAULT or field.default_factory is not msgspec.NODEFAULT
        is_omitted = not field.required and (omits or not has_default)  # without one it is UNSET, or a TypedDict's
        return Field(
            field.encode_name,
            self.node(field.type),
            required=field.required,
            is_always_stored=not is_omitted,
            default=_default_text(field) if has_default else None,
        )


def _choices(values: Any) -> Choices:
    return Choices(sorted(values, key=lambda value: (type(value).__name__, value)))


def _default_text(field: types.Field) -> str:
    if field.default is msgspec.NODEFAULT:
        return f"{type_name(field.default_factory)}()"
    if isinstance(field.default, enum.Enum):
        return repr(field.default.value)
    plain = isinstance(field.default, int | float | str | bytes | None)
    return repr(field.default) if plain else type_name(type(field.default))
