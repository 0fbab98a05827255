"""A state as Arrow record batches."""

from __future__ import annotations

import builtins
import datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest

import statestore
from statestore import ConfigError, UsageError


class Profile(msgspec.Struct):
    name: str
    born: datetime.datetime
    age: int | None = None


class Place(msgspec.Struct, frozen=True):
    country: str
    number: int


BORN = datetime.datetime(2000, 1, 2, tzinfo=datetime.UTC)


def as_dict(table):
    return dict(zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True))


@pytest.fixture
def reader(stores):
    store = stores.open("memory", "none")
    value, items, entries = (
        store.value_state("value", int),
        store.list_state("list", float),
        store.map_state("map", int, str),
    )
    profile, empty, timers = (
        store.value_state("profile", Profile),
        store.value_state("empty", int),
        store.timers("timers"),
    )
    for n in range(100):
        store.set_current_key(f"key-{n:02}")
        value.update(n)
        items.add_all([n / 2] * (n % 3))
        entries.put_all({n + i: str(i) for i in range(n % 4)})
        profile.update(Profile(f"name {n}", BORN, n if n % 2 else None))
        timers.register(float(n))
    assert empty.value() is None
    return statestore.read(store.checkpoint().path)


def test_every_kind(reader):
    for name in ("value", "list", "profile", "timers"):
        state = reader.state(name)
        table = state.to_arrow().read_all()
        assert as_dict(table) == dict(state.items())
        assert table["key"].type == pa.string()
    assert reader.state("value").to_arrow().schema.field("value").type == pa.int64()
    assert reader.state("profile").to_arrow().schema.field("value").type.num_fields == 3
    table = reader.state("map").to_arrow().read_all()
    assert table["value"].type == pa.map_(pa.int64(), pa.string())
    assert {key: dict(entries) for key, entries in as_dict(table).items()} == reader.state("map").to_dict()
    assert reader.state("empty").to_arrow().read_all().num_rows == 0


def test_declared_types_make_no_difference(reader):
    plain, typed = reader.state("profile"), reader.state("profile", type=Profile)
    assert sorted(as_dict(typed.to_arrow().read_all())) == sorted(as_dict(plain.to_arrow().read_all()))
    assert typed.get("key-01").born == BORN


def test_batches(reader):
    state = reader.state("value")
    batches = list(state.to_arrow(batch_rows=30))
    assert [batch.num_rows for batch in batches] == [30, 30, 30, 10]
    assert as_dict(pa.Table.from_batches(batches)) == state.to_dict()
    part = state.to_arrow(prefix="key-1", key_groups=range(4)).read_all()
    assert as_dict(part) == state.to_dict(prefix="key-1", key_groups=range(4))


def test_keys_of_several_parts(stores):
    store = stores.open("memory", "none", key_type=Place)
    store.value_state("state", int).update_many([Place("ch", 1)], [1])
    tuples = store.keyed("scope", tuple[tuple[str, bool], int]).value_state("state", int)
    tuples.update_many([(("a", True), 5)], [2])
    reader = statestore.read(store.checkpoint().path)
    assert reader.state("state").to_arrow().read_all().to_pylist() == [
        {"key": {"country": "ch", "number": 1}, "value": 1}
    ]
    (row,) = reader.state("scope/state").to_arrow().read_all().to_pylist()
    assert row == {"key": {"0": {"0": "a", "1": True}, "1": 5}, "value": 2}


def test_values_without_a_common_type(stores):
    store = stores.open("memory", "none")
    store.value_state("mixed", int | str).update_many(["a", "b"], [1, "x"])
    store.value_state("large", int).update_many(["a"], [2**70])
    reader = statestore.read(store.checkpoint().path)
    for name in ("mixed", "large"):
        with pytest.raises(UsageError, match=f"'{name}' have no common Arrow type"):
            reader.state(name).to_arrow().read_all()


@pytest.mark.parametrize(
    ("early", "late", "value_type"),
    [
        (1, 0.5, pa.float64()),
        ({"a": 1}, {"a": 1, "b": 2}, pa.struct([("a", pa.int64()), ("b", pa.int64())])),
        ([], ["x"], pa.list_(pa.string())),
        (None, 1, pa.int64()),
        (1, "x", None),
    ],
)
def test_later_values_are_not_cut_to_fit_the_first_batch(stores, early, late, value_type):
    store = stores.open("memory", "none")
    single, entries = store.value_state("single", Any), store.map_state("map", str, list[Any])
    keys = [f"key-{n}" for n in range(20)]
    single.update_many(keys, [early] * 20)
    for key in keys:
        store.set_current_key(key)
        entries["entry"] = [early]
    reader = statestore.read(store.checkpoint().path)
    last = list(reader.state("single").keys())[-1]
    single.update_many([last], [late])
    store.set_current_key(last)
    entries["entry"] = [late]
    reader = statestore.read(store.checkpoint().path)
    for name in ("single", "map"):
        with pytest.raises(UsageError, match="give `value_type`"):
            reader.state(name).to_arrow(batch_rows=10).read_all()
    if value_type is not None:
        table = reader.state("single").to_arrow(batch_rows=10, value_type=value_type).read_all()
        assert as_dict(table)[last] == late


def test_later_values_that_conform(stores):
    store = stores.open("memory", "none")
    single, entries = store.value_state("single", float | int), store.map_state("map", str, list[int | float])
    keys = [f"key-{n}" for n in range(20)]
    single.update_many(keys, [0.5] * 20)
    for key in keys:
        store.set_current_key(key)
        entries["entry"] = [0.5]
    last = list(statestore.read(store.checkpoint().path).state("single").keys())[-1]
    single.update_many([last], [3])
    store.set_current_key(last)
    entries["entry"] = []
    reader = statestore.read(store.checkpoint().path)
    assert as_dict(reader.state("single").to_arrow(batch_rows=10).read_all())[last] == 3
    assert as_dict(reader.state("map").to_arrow(batch_rows=19).read_all())[last] == [("entry", [])]


def test_without_the_package(reader, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pyarrow":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"statestore\[arrow\]"):
        reader.state("value").to_arrow()
