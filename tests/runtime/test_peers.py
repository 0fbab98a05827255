"""Frames on their way from one worker process to another: what comes out is what went in."""

from __future__ import annotations

import pickle

import msgspec
import numpy
import pytest

from statestore_runtime.deployment.peers import pack, unpack
from statestore_runtime.task.network import BATCH, WATERMARK


class Plain(msgspec.Struct):
    name: str
    count: int = 0
    tags: list[str] = []


class Frozen(msgspec.Struct, frozen=True):
    key: str


class Child(Plain):
    more: float = 0.5


class ByName(msgspec.Struct, kw_only=True):
    key: str
    count: int = 0


class Reduced(msgspec.Struct):
    key: str

    def __reduce__(self):
        return Reduced, (self.key.upper(),)


class Checked(msgspec.Struct):
    count: int

    def __post_init__(self):
        self.count += 100


class Array(msgspec.Struct):
    name: str
    values: numpy.ndarray

    def __eq__(self, other):
        return self.name == other.name and (self.values == other.values).all()


BATCHES = {
    "structs": [Plain("a", 1), Plain("b", 2, ["x"]), Plain("c")],
    "one": [Frozen("a")],
    "of two classes": [Plain("a", 1), Child("a", 1, ["x"], 2.5)],
    "of a child class": [Child("a", 1, ["x"], 2.5), Child("b")],
    "fields by name": [ByName(key="a"), ByName(key="b", count=3)],
    "reduced by themselves": [Reduced("a"), Reduced("b")],
    "with work after they are made": [Checked(1), Checked(2)],
    "arrays": [Array("a", numpy.arange(5)), Array("b", numpy.arange(3.0))],
    "no structs": [("a", 1), {"b": 2}, None],
    "none": [],
}


def sent(frame):
    buffers = pack(frame)
    return unpack(b"".join(bytes(buffer) for buffer in buffers)), sum(map(len, buffers))


@pytest.mark.parametrize("events", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("times", [None, [1, 2, 3]])
def test_a_batch_arrives_as_a_pickle_would(events, times):
    keys = [str(number) for number in range(len(events))]
    frame = (BATCH, 7, keys, events, times)
    arrived, _ = sent(frame)
    assert arrived[:3] == (BATCH, 7, keys)
    expected = pickle.loads(pickle.dumps(events))
    assert (type(arrived[3]), [type(event) for event in arrived[3]]) == (list, [type(event) for event in expected])
    assert arrived[3] == expected
    assert arrived[4] == times


def test_other_frames():
    assert sent((WATERMARK, 1, 123))[0] == (WATERMARK, 1, 123)
    assert sent((BATCH, 1, None, [Plain("a")], None))[0] == (BATCH, 1, None, [Plain("a")], None)


def test_structs_of_one_class_name_it_once():
    _, size = sent((BATCH, 1, None, [Plain("a", n) for n in range(1000)], None))
    _, of_tuples = sent((BATCH, 1, None, [("a", n, []) for n in range(1000)], None))
    assert size < of_tuples + 200
