"""Values of every schema that a state was stored with are read; pickled ones are handed out as they are."""

from __future__ import annotations

import pickle

import msgspec
import numpy
import pytest

import statestore
from statestore import StateMigrationError
from statestore.reading.values import Pickled
from statestore_runtime.cli.values import to_json


class Canary:
    """Says when it is unpickled."""

    unpickled = False

    def __reduce__(self):
        return _sing, ()


def _sing():
    Canary.unpickled = True


def stored(tmp_path, *declarations):
    """A reader of a state that was declared with several types, and written with each; the first three keys of all belong to one each."""
    for number, (declared, value) in enumerate(declarations):
        with statestore.open("memory://", dir=tmp_path / "state", restore=None if number == 0 else "latest") as store:
            one, many = store.value_state("one", declared), store.list_state("many", declared)
            store.set_current_key(f"key-{number}")
            one.update(value)
            many.add(value)
            path = store.checkpoint().path
    return statestore.read(path)


def test_values_of_older_schemas(tmp_path):
    old = msgspec.defstruct("User", [("name", str)])
    new = msgspec.defstruct("User", [("name", str), ("age", int, 7)])
    reader = stored(tmp_path, (old, old("ann")), (new, new("bob", 30)))
    assert reader.state("one").to_dict() == {"key-0": {"name": "ann"}, "key-1": {"name": "bob", "age": 30}}
    assert reader.state("many", type=new).to_dict() == {"key-0": [new("ann", 7)], "key-1": [new("bob", 30)]}
    assert reader.states[0].value_type == "User"
    with pytest.raises(StateMigrationError, match="age"):
        strict = msgspec.defstruct("User", [("name", str), ("age", int)])
        reader.state("one", type=strict).to_dict()


def test_pickled_values_are_not_unpickled(tmp_path):
    with statestore.open("memory://", dir=tmp_path / "state", allow_pickle=True) as store:
        one = store.value_state("one", object, codec="pickle")
        many = store.list_state("many", object, codec="pickle")
        store.set_current_key("key")
        one.update({1, 2})
        many.add_all([{3}, {4}])
        before = store.checkpoint().path
        store.set_current_key("bad")
        one.update(Canary())
        path = store.checkpoint().path
    Canary.unpickled = False  # the store itself reads back what it writes
    reader = statestore.read(path)
    value = reader.state("one").get("key")
    assert isinstance(value, Pickled)
    assert pickle.loads(value) == {1, 2}
    assert isinstance(reader.state("one", type=set[int]).get("key"), Pickled)
    (chunk,) = reader.state("many").get("key")
    assert pickle.loads(chunk) == [{3}, {4}]
    assert len(reader.state("one").to_dict()) == 2
    assert [change.key for change in statestore.diff(before, path)] == ["bad"]
    assert reader.state("one").to_arrow().read_all().num_rows == 2
    assert not Canary.unpickled


def test_arrays(tmp_path):
    paths = []
    for step in range(2):
        with statestore.open("memory://", dir=tmp_path / "state", restore=None if step == 0 else "latest") as store:
            state = store.value_state("state", dict[str, numpy.ndarray], ttl="1h")
            state.update_many(["same", "changed", "longer"], [{"a": numpy.arange(3 + step * n)} for n in range(3)])
            if step:
                state.update_many(["changed"], [{"a": numpy.array([0, 1, 5])}])
            paths.append(store.checkpoint().path)
    reader = statestore.read(paths[0]).state("state")
    assert reader.get("same")["a"].tolist() == [0, 1, 2]
    assert sorted(change.key for change in statestore.diff(*paths)) == ["changed", "longer"]
    assert reader.to_arrow().read_all()["value"].to_pylist() == [{"a": [0, 1, 2]}] * 3
    assert to_json(reader.get("same")) == '{"a":[0,1,2]}'
