"""Values come back exactly as they were given, or are refused when they are given."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import pickle
import subprocess
import sys
import uuid
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import attrs
import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from statestore.codecs import Codec, decode_plain
from statestore.errors import ConfigError, CorruptionError, IncompatibleStateError, UnavailableError, UsageError
from statestore.schema import type_name


class Profile(msgspec.Struct):
    name: str
    visits: int = 0
    extra: dict[str, Any] = {}


class Older(Profile):
    age: int = 0


@dataclasses.dataclass
class Point:
    x: float
    y: float
    tags: tuple[str, ...] = ()


@attrs.define
class Order:
    id: uuid.UUID
    price: decimal.Decimal


class Place(TypedDict):
    city: str
    seen: set[int]


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


UserId = NewType("UserId", int)
HUGE = 2**70
LONE = "a\ud800b"
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)


def type_name_of(part):
    """The same in every process, as sets and objects are not."""
    return type_name(part) if isinstance(part, type) else type(part).__name__


VALUES = [
    (int, 0), (int, -(2**63)), (int, 2**64 - 1), (int, HUGE), (int, -HUGE), (float, 1.5), (float, math.inf), (float, -0.0), (float, 3),
    (str, "é"), (str, LONE), (bytes, b"\xc1\x00"), (bytearray, bytearray(b"x")), (bool, True), (None, None), (Any, None),
    (list[int], [1, HUGE]), (tuple[int, str], (1, LONE)), (tuple[int, ...], (1, 2)), (set[int], {1, HUGE}),
    (frozenset[str], frozenset("ab")), (dict[str, int], {"a": 1, LONE: HUGE}), (dict[int, str], {HUGE: "x", 1: "y"}),
    (dict[tuple[int, int], int], {(1, HUGE): 3}), (list, [1, "a", None, [2.5]]), (dict, {"a": [1], 2: b"x"}),
    (Any, {"a": [1, 2.0, True, None, b"x", LONE, HUGE]}), (int | None, None), (int | str, "x"), (Literal["a", 1], 1),
    (Annotated[int, msgspec.Meta(ge=0)], 3), (UserId, UserId(7)),
    (Profile, Profile("a", 3, {"k": [1, 2]})), (Profile, Profile(LONE, HUGE, {LONE: HUGE})), (Point, Point(1.0, math.inf, ("t",))),
    (Order, Order(uuid.UUID(int=5), decimal.Decimal("1.50"))), (Place, {"city": "x", "seen": {1}}), (Pair, Pair(1)), (Color, Color.BLUE),
    (Level, Level.LOW), (dict[Color, int], {Color.RED: 1}), (Tree, Tree(1, [Tree(HUGE)])), (Circle | Square, Square(2.0)),
    (datetime.datetime, NOW), (datetime.datetime, NOW.replace(tzinfo=datetime.UTC)), (datetime.date, NOW.date()),
    (datetime.time, NOW.time()),
    (datetime.timedelta, datetime.timedelta(days=-1, microseconds=7)), (decimal.Decimal, decimal.Decimal("-Infinity")),
    (decimal.Decimal, decimal.Decimal("1.2300")), (uuid.UUID, uuid.UUID(int=1)),
]  # fmt: skip


def again(codec, value):
    """The value as it comes back, alone and among others."""
    one = codec.decode_stored(codec.checked(value, "s"), 0, "s")
    many = codec.decode_stored_many(codec.checked_many([value, value], 0, "s"), 0, "s")
    each = [
        codec.decode_stored(data.removeprefix(b"head"), 0, "s")
        for data in codec.checked_each([value, value], b"head", "s")
    ]
    assert len(many) == len(each) == 2
    return [one, *many, *each]


@pytest.mark.parametrize(("declared", "value"), VALUES, ids=type_name_of)
def test_values_come_back(declared, value):
    for found in again(Codec(declared), value):
        assert found == value
        assert type(found) is (float if declared is float else type(value))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()) | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner),
    )
)
def test_whatever_is_of_builtin_types_comes_back(value):
    assert all(found == value for found in again(Codec(Any), value))


def test_not_a_number_comes_back():
    for declared, value in ((float, math.nan), (Any, [math.nan]), (Point, Point(math.nan, 1.0))):
        for found in again(Codec(declared), value):
            assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("declared", "value", "problem"),
    [
        (int, "5", "holds int, not str"), (int, True, "got `bool`"), (float, 2**63 + 1, "would come back as"), (str, b"x", "holds str"),
        (float, numpy.float64(1), "float"), (Profile, Profile(5), "Expected `str`, got `int`"), (Profile, Older("a"), "not Older"),
        (Profile, {"name": "a"}, "holds Profile, not dict"), (Point, Point("1", 2.0), "Expected `float`, got `str`"),
        (Order, Order(uuid.UUID(int=5), "dear"), "Invalid decimal"), (Place, {"city": "x"}, "missing required field `seen`"),
        (tuple[int, str], [1, "a"], "not list"), (set[int], [1], "not list"), (dict[str, int], {"a": "b"}, "Expected `int`"),
        (list[int], [1, None], "Expected `int`, got"), (Any, (1, 2), "would come back as [1, 2]"), (Any, {"a": {1}}, "come back as"),
        (Profile, Profile("a", 1, {"k": (1,)}), "come back as"), (Any, Point(1.0, 2.0), "come back as"), (Color, "red", "not str"),
        (Annotated[int, msgspec.Meta(ge=0)], -1, ">= 0"), (Literal["a"], "b", "Invalid enum value"), (int | None, "x", "Expected `int |"),
        (list, [object()], "object can't be stored"),
    ],
    ids=type_name_of,
)  # fmt: skip
def test_what_could_not_be_read_again_is_refused(declared, value, problem):
    codec = Codec(declared)
    with pytest.raises(UsageError, match="state 's'") as caught:
        codec.checked(value, "s")
    assert problem in str(caught.value)
    with pytest.raises(UsageError, match="state 's'"):
        codec.checked_many([value], 0, "s")
    with pytest.raises(UsageError, match="state 's'"):
        codec.checked_each([value, value], b"", "s")


@pytest.mark.parametrize(
    ("declared", "values"), [(int, [1, HUGE]), (float, [1, 2.5]), (Any, [1, "a"]), (Profile, [Profile(LONE)])]
)
def test_each_of_several_values_is_encoded_as_one_alone(declared, values):
    codec = Codec(declared)
    assert codec.checked_each(values, b"h", "s") == [b"h" + codec.checked(value, "s") for value in values]


def test_what_was_checked_before_is_not_looked_at_again():
    codec = Codec(Profile)
    assert codec.checked_many([Profile(5), Profile("a")], 1, "s")
    with pytest.raises(UsageError, match="Expected `str`"):
        codec.checked_many([Profile("a"), Profile(5)], 1, "s")


def test_types_that_can_not_be_stored():
    for declared in (complex, object, type, list[complex], msgspec.Raw):
        with pytest.raises(UsageError, match="can't be stored"):
            Codec(declared)
    with pytest.raises(UsageError, match="'msgpack' or 'pickle'"):
        Codec(int, "json")


def test_bytes_that_are_no_value():
    for data in (b"", b"\xc1", b"\xc1\xc7\x01\x63\x00", b"\xa3ab", b"\xc7\x01\x03\x00"):
        with pytest.raises(CorruptionError, match="state 's'"):
            Codec(Profile).decode_stored(data, 0, "s")
        with pytest.raises(CorruptionError, match="state 's'"):
            Codec(Profile).decode_stored_many(data, 0, "s")
    with pytest.raises(CorruptionError, match="schema version 3"):
        Codec(int).decode_stored(b"\x01", 3, "s")


def test_plain_values():
    codec = Codec(Order)
    data = codec.checked(Order(uuid.UUID(int=5), decimal.Decimal("1.5")), "s")
    assert decode_plain(data) == {"id": str(uuid.UUID(int=5)), "price": "1.5"}


# numpy

ARRAYS = [
    numpy.arange(6, dtype="<i2").reshape(2, 3), numpy.array([], dtype=float), numpy.array(3.5), numpy.zeros((2, 0), dtype="u1"),
    numpy.array(["ab", "c"]), numpy.array(["2026-01-01"], dtype="M8[us]"), numpy.array([1 + 2j]), numpy.asfortranarray(numpy.eye(3)),
    numpy.array([(1, [2.0, 3.0])], dtype=[("a", "<i4"), ("b", "<f8", (2,))]), numpy.arange(10)[::3], numpy.array([True, False]),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_arrays_come_back(array):
    for found in again(Codec(numpy.ndarray), array):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()
        assert found.flags.writeable


@pytest.mark.parametrize(
    "number",
    [numpy.int8(-3), numpy.float32(1.5), numpy.float64("nan"), numpy.bool_(True), numpy.datetime64("2026-01-01"), numpy.complex64(1j)],
    ids=repr,
)  # fmt: skip
def test_numbers_of_numpy_come_back(number):
    for found in again(Codec(type(number)), number):
        assert (type(found), found.tobytes()) == (type(number), number.tobytes())


def test_arrays_within_values():
    @dataclasses.dataclass
    class Features:
        name: str
        vector: NDArray[numpy.float32]
        scale: numpy.float64 | None = None

    value = Features(LONE, numpy.arange(3, dtype="f4"), numpy.float64(2))  # the name makes it an escaped value
    for name in (LONE, "a"):
        for found in again(Codec(Features), dataclasses.replace(value, name=name)):
            assert (found.name, list(found.vector), type(found.scale)) == (name, [0, 1, 2], numpy.float64)


def test_arrays_that_are_refused():
    for array in (numpy.array([object()]), numpy.ma.array([1]), [1, 2], 1.5):
        with pytest.raises(UsageError, match="state 's'"):
            Codec(numpy.ndarray).checked(array, "s")
    with pytest.raises(UsageError, match="float32"):
        Codec(numpy.float32).checked(1.5, "s")


@pytest.mark.parametrize("dtype", ["|O", "nonsense", "[('a', '|O')]", "[__import__('os')]"])
def test_arrays_that_nobody_wrote(dtype):
    packed = msgspec.msgpack.encode((dtype, [1], b"\0" * 8))
    data = msgspec.msgpack.encode(msgspec.msgpack.Ext(3, packed))
    with pytest.raises(CorruptionError, match="can't be read"):
        Codec(numpy.ndarray).decode_stored(data, 0, "s")


def test_numpy_is_imported_only_where_it_is_needed():
    program = "import statestore, sys; statestore.open('memory://').value_state('s', dict[str, int]); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_numpy_the_error_names_the_extra(monkeypatch):
    data = Codec(numpy.ndarray).checked(numpy.arange(3), "s")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(UnavailableError, match=r"statestore\[numpy\]"):
        decode_plain(data)


# Pickle


class Odd:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return type(other) is Odd and self.value == other.value


def test_pickled_values_come_back():
    for found in again(Codec(Odd, "pickle", allow_pickle=True), Odd((1, {2}))):
        assert found == Odd((1, {2}))


def test_pickle_takes_both_switches():
    with pytest.raises(ConfigError, match=r"codec=\"pickle\".*state.allow-pickle") as caught:
        Codec(Odd, "pickle")
    assert caught.value.key == "state.allow-pickle"


def test_pickled_values_that_are_refused():
    codec = Codec(Odd, "pickle", allow_pickle=True)
    with pytest.raises(UsageError, match="can't be encoded"):
        codec.checked(Odd(lambda: 1), "s")
    with pytest.raises(CorruptionError, match="can't be unpickled"):
        codec.decode_stored(b"\x80\x05nonsense", 0, "s")
    gone = pickle.dumps(Odd(1)).replace(b"Odd", b"Bad")
    with pytest.raises(IncompatibleStateError, match="Bad"):
        codec.decode_stored(gone, 0, "s")
