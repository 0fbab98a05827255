"""Which changes of a type old values survive: what is said to be readable is read."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import attrs
import msgspec
import pytest

from statestore.codecs import Codec
from statestore.errors import CorruptionError
from statestore.evolution import differences
from statestore.schema import Schema, describe


def struct(name, /, *fields, **options):
    return msgspec.defstruct(name, fields, **options)


class Colors(enum.Enum):
    RED = "red"


class MoreColors(enum.Enum):
    ROT = "red"
    BLUE = "blue"


class Pair(NamedTuple):
    a: int
    b: int = 2


class Triple(NamedTuple):
    a: float
    b: int = 2
    c: int = 3


class Swapped(NamedTuple):
    b: int
    a: int


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


class FloatTree(msgspec.Struct):
    value: float
    children: list[FloatTree] = []


class TextTree(msgspec.Struct):
    value: str
    children: list[TextTree] = []


class Loose(TypedDict):
    a: int
    b: NotRequired[int]


class Tight(TypedDict):
    a: int
    b: int


A = struct("A", ("a", int))
AB = struct("AB", ("a", int), ("b", str))
Defaulting, Omitting = struct("A", ("a", int, 5)), struct("A", ("a", int, 1), omit_defaults=True)
Outer = struct("Outer", ("inner", list[A]))
TaggedA, TaggedB = struct("TaggedA", ("a", int), tag=True), struct("TaggedB", ("a", int), tag=True)

# Old type, an old value, new type, what is said of the changes.
READABLE = [
    (int, 3, float, ["the value was int and is float"]),
    (int, 3, int | None, ["the value was int and is int | None"]),
    (int | None, None, int | str | None, ["the value was int | None and is int | str | None"]),
    (int, 3, Any, ["the value was int and is Any"]),
    (bytes, b"x", bytearray, ["the value was bytes and is bytearray"]),
    (AB, AB(1, "x"), A, ["field 'b' was removed"]),
    (A, A(1), struct("AB", ("a", int), ("b", str, "x")), ["field 'b' was added, with a default"]),
    (A, A(1), struct("A", ("a", float)), ["field 'a' was int and is float"]),
    (A, A(1), struct("A", ("a", int, 5)), ["field 'a' has a default now"]),
    (Defaulting, Defaulting(), A, ["field 'a' is required now"]),
    (Outer, Outer([A(1)]), struct("Outer", ("inner", list[struct("A", ("a", int | None))])),
     ["field 'inner[].a' was int and is int | None"]),
    (dict[str, A], {"k": A(1)}, dict[str, struct("A", ("a", float))], ["field '{}.a' was int and is float"]),
    (Tree, Tree(1, [Tree(2)]), FloatTree, ["field 'value' was int and is float"]),
    (Pair, Pair(1), Triple, ["field 'a' was int and is float", "field 'c' was added, with a default"]),
    (Colors, Colors.RED, MoreColors, ["the value was Literal['red'] and is Literal['blue', 'red']"]),
    (Colors, Colors.RED, str, ["the value was Literal['red'] and is str"]),
    (Literal["a"], "a", Literal["a", "b"], ["the value was Literal['a'] and is Literal['a', 'b']"]),
    (list[int], [1], tuple[float, ...], ["the value was list[int] and is tuple[float, ...]", "field '[]' was int and is float"]),
    (set[int], {1}, frozenset[int], ["the value was set[int] and is frozenset[int]"]),
    (tuple[int, str], (1, "a"), tuple[float, str], ["field '[0]' was int and is float"]),
    (Annotated[int, msgspec.Meta(ge=0)], 3, int, ["the value was int (ge 0) and is int"]),
    (TaggedA, TaggedA(1), TaggedA | TaggedB, ["the value was TaggedA and is TaggedA | TaggedB"]),
    (Tight, {"a": 1, "b": 2}, Loose, ["field 'b' has a default now"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "value", "new", "said"), READABLE, ids=lambda part: getattr(part, "__name__", None))
def test_readable_changes(old, value, new, said):
    found = differences(describe(old), describe(new))
    assert [str(one) for one in found] == said
    assert not any(one.problem for one in found)
    Codec(new).decode_stored(Codec(old).checked(value, "s"), 0, "s")  # which raises if it is not readable


UNREADABLE = [
    (int, 3, str, "", "was int and is str"),
    (float, 1.5, int, "", "was float and is int"),
    (bool, True, int, "", "was bool and is int"),
    (str, "x", bytes, "", "was str and is bytes"),
    (int | None, None, int, "", "was int | None and is int"),
    (A, A(1), AB, "b", "is new, and has no default"),
    (A, A(1), struct("A", ("a", str)), "a", "was int and is str"),
    (A, A(1), dict[str, str], "", "was A and is dict[str, str]"),
    (AB, AB(1, "x"), struct("A", ("a", int), forbid_unknown_fields=True), "b", "takes no field it does not have"),
    (Omitting, Omitting(), A, "a", "is not always stored, and has no default now"),
    (Tree, Tree(1), TextTree, "value", "was int and is str"),
    (Pair, Pair(1), Swapped, "a", "is where 'b' is now, in an array"),
    (Triple, Triple(1, 2), Pair, "a", "was float and is int"),
    (Colors, Colors.RED, Literal["blue"], "", "has lost 'red'"),
    (tuple[int, str], (1, "a"), tuple[int], "", "was tuple[int, str] and is tuple[int]"),
    (int, -1, Annotated[int, msgspec.Meta(ge=0)], "", "was int and is int (ge 0)"),
    (A, A(1), TaggedA | TaggedB, "", "was A and is TaggedA | TaggedB"),
    (TaggedB, TaggedB(1), TaggedA, "", "has another tag"),
    (A, A(1), struct("A", ("a", int), array_like=True), "", "is stored otherwise"),
    (Loose, {"a": 1}, Tight, "b", "is not always stored, and has no default now"),
    (list[A], [A(1)], list[struct("A", ("a", str))], "[].a", "was int and is str"),
    (datetime.datetime, datetime.datetime(2026, 1, 1), datetime.date, "", "was datetime and is date"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "value", "new", "field", "problem"), UNREADABLE, ids=lambda part: getattr(part, "__name__", None)
)
def test_unreadable_changes(old, value, new, field, problem):
    first = next(one for one in differences(describe(old), describe(new)) if one.problem)
    assert first.field == field
    assert problem in first.change
    if new is Swapped:
        return  # it could be read, as something else
    with pytest.raises(CorruptionError):
        Codec(new).decode_stored(Codec(old).checked(value, "s"), 0, "s")


@pytest.mark.parametrize(
    ("old", "new"),
    [(list[int], set[int]), (str, datetime.datetime), (dict[str, int], A)], ids=str,
)  # fmt: skip
def test_changes_that_would_lose_something_are_problems(old, new):
    assert any(one.problem for one in differences(describe(old), describe(new)))


def test_a_default_that_is_not_stored_must_stay():
    def omitting(default):
        return struct("A", ("a", int, default), omit_defaults=True)

    (found,) = differences(describe(omitting(1)), describe(omitting(2)))
    assert found.problem
    assert "which was 1 and is 2" in str(found)
    assert differences(describe(omitting(1)), describe(struct("A", ("a", int, 1)))) == []
    assert describe(struct("A", ("a", int, 1))).fingerprint == describe(struct("A", ("a", int, 2))).fingerprint


def test_what_makes_no_difference():
    @dataclasses.dataclass
    class OfDataclass:
        a: int
        b: str

    @attrs.define
    class OfAttrs:
        a: int
        b: str

    renamed = struct("New", ("number", int), ("text", str), rename={"number": "a", "text": "b"})
    fingerprints = {describe(one).fingerprint for one in (AB, OfDataclass, OfAttrs, renamed)}
    assert len(fingerprints) == 1
    assert describe(int | str).fingerprint == describe(str | int).fingerprint


def test_a_renamed_field_keeps_its_name_in_store():
    new = struct("A", ("number", int), rename={"number": "a"})
    assert Codec(new).decode_stored(Codec(A).checked(A(3), "s"), 0, "s").number == 3


def test_descriptions_are_stored_and_read():
    for declared in (Tree, Loose, Triple, MoreColors, TaggedA | TaggedB | None, dict[tuple[int, str], list[A]], Any):
        schema = describe(declared)
        for codec in (msgspec.json, msgspec.msgpack):
            assert codec.decode(codec.encode(schema), type=Schema) == schema
        assert schema.text(schema.root)
