"""Keys: injective, exact about types, stable key groups."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import UsageError
from statestore.keys import EntryKeys, KeyCodec, key_group_of, prefix_end, split_entry


class Place(msgspec.Struct, frozen=True):
    region: str
    number: int


CASES = [
    (str, st.text()),
    (int, st.integers()),
    (bytes, st.binary()),
    (bool, st.booleans()),
    (tuple[str, int], st.tuples(st.text(), st.integers())),
    (tuple[bytes, tuple[str, bool]], st.tuples(st.binary(), st.tuples(st.text(), st.booleans()))),
    (Place, st.builds(Place, st.text(), st.integers())),
]


@pytest.mark.parametrize(("declared", "values"), CASES, ids=[str(case[0]) for case in CASES])
def test_round_trip_and_injective(declared, values):
    codec = KeyCodec(declared)

    @given(values, values)
    def check(one, other):
        codec.check(one)
        assert codec.decode(codec.encode(one)) == one
        assert (codec.encode(one) == codec.encode(other)) == (one == other)

    check()


@pytest.mark.parametrize(
    ("declared", "key"),
    [
        (int, True),
        (int, 1.0),
        (bool, 1),
        (str, b"a"),
        (bytes, "a"),
        (tuple[str, int], ("a", True)),
        (tuple[str, int], ("a",)),
        (Place, Place("a", True)),
    ],
)
def test_a_key_of_another_type_is_refused(declared, key):
    with pytest.raises(UsageError, match="the keys of this state are"):
        KeyCodec(declared).check(key)


def test_unsupported_key_types_are_refused():
    class Mutable(msgspec.Struct):
        a: int

    for declared in (float, list, tuple, tuple[str, ...], Mutable, None):
        with pytest.raises(UsageError):
            KeyCodec(declared)


@given(st.binary(max_size=600), st.binary(max_size=20), st.integers(0, 0xFFFE), st.sampled_from([1, 2, 128, 32768]))
def test_entry_keys_take_apart_again(key, sub_key, state_id, max_parallelism):
    entry = EntryKeys(state_id, max_parallelism).of(key, sub_key)
    assert split_entry(entry) == (key_group_of(key, max_parallelism), state_id, key, sub_key)


def test_key_groups_never_change():
    # Part of the stored format: another hash or seed would lose every key.
    assert [key_group_of(key, 128) for key in (b"", b"user-1", b"N14228", b"\x00\x01")] == [66, 73, 38, 87]


@given(st.binary(max_size=4), st.binary(max_size=4))
def test_prefix_end_bounds_exactly_the_prefixed(prefix, other):
    end = prefix_end(prefix)
    assert (other >= prefix and (end is None or other < end)) == other.startswith(prefix)


@pytest.mark.parametrize(("declared", "values"), CASES, ids=[str(case[0]) for case in CASES])
def test_many_keys_at_once_are_encoded_as_one_by_one(declared, values):
    codec = KeyCodec(declared)

    @given(st.lists(values, unique=True))
    def check(keys):
        assert codec.encode_many(dict.fromkeys(keys)) == [codec.encode(key) for key in keys]

    check()


def test_many_entry_keys_at_once():
    keys = EntryKeys(7, 128)
    encoded = [KeyCodec(str).encode(key) for key in ("", "a", "\ud800", "x" * 127, "x" * 128, "x" * 255)]
    assert keys.of_many(encoded) == [keys.of(key) for key in encoded]
    assert keys.of_many([*encoded, b"x" * 256]) == [keys.of(key) for key in [*encoded, b"x" * 256]]
    own = key_group_of(b"a", 128)
    with pytest.raises(UsageError, match="send it to its owner"):
        EntryKeys(7, 128, range(own, own + 1)).of_many([b"a", b"b"])
