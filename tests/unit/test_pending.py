"""What is committed waits for the backend in batches: the newest value is found, wherever it waits."""

import pytest

from statestore.errors import UsageError
from statestore.pending import ENTRY_OVERHEAD_BYTES, LAYERS_MAX, EpochBatch, Pending


def batch(**entries):
    made = EpochBatch()
    for key, value in entries.items():
        made.put_collection(key[:1].encode(), key.encode(), value)
    return made


def added(pending, epoch, **entries):
    made = batch(**entries)
    made.epoch = epoch
    pending.add(made)


def test_a_look_up_finds_the_newest_value_wherever_it_waits():
    pending = Pending()
    added(pending, 1, a1=b"old", a2=b"2", a3=b"3")
    added(pending, 2, a1=b"older", a2=None)
    pending.complete(2)
    assert pending.take().entries == {b"a1": b"older", b"a2": None, b"a3": b"3"}
    added(pending, 3, a3=b"ready", b1=b"b")
    pending.complete(3)
    added(pending, 4, a1=b"waiting")
    assert pending.find([b"a1", b"a2", b"a3", b"b1", b"b2"]) == {
        b"a1": b"waiting",
        b"a2": None,
        b"a3": b"ready",
        b"b1": b"b",
    }
    assert pending.collection(b"a") == {b"a1": b"waiting", b"a2": None, b"a3": b"ready"}
    assert pending.everything() == {b"a1": b"waiting", b"a2": None, b"a3": b"ready", b"b1": b"b"}
    pending.finish()
    assert pending.find([b"a1", b"a2", b"a3"]) == {b"a1": b"waiting", b"a3": b"ready"}


def test_what_failed_to_be_applied_is_taken_again_without_what_came_later():
    pending = Pending()
    added(pending, 1, a=b"1")
    pending.complete(1)
    taken = pending.take()
    added(pending, 2, a=b"2")
    pending.complete(2)
    assert pending.take() is taken
    assert (taken.epoch, taken.entries) == (1, {b"a": b"1"})
    pending.finish()
    assert pending.take().entries == {b"a": b"2"}
    pending.finish()
    assert pending.take() is None


def test_many_batches_are_looked_up_as_one():
    pending = Pending()
    last = 2 * LAYERS_MAX
    for epoch in range(1, last + 1):
        added(pending, epoch, a=b"%d" % epoch, **{f"b{epoch}": b"b"})
        pending.complete(epoch)
    waiting = pending.ready_bytes
    assert pending.find([b"a", b"b1", b"b2", b"c"]) == {b"a": b"%d" % last, b"b1": b"b", b"b2": b"b"}
    assert len(pending.collection(b"b")) == last
    assert pending.ready_bytes == waiting
    taken = pending.take()
    assert (taken.epoch, taken.entries[b"a"], len(taken.entries)) == (last, b"%d" % last, last + 1)


def test_keys_are_encoded_when_somebody_needs_them():
    encoded = []

    def encode(keys):
        encoded.extend(keys)
        return [key.encode() for key in keys]

    late, pending = EpochBatch(), Pending()
    late.put(b"a", b"swept")
    late.put_later(["a", "b"], encode, [b"1", None])
    late.epoch, late.value_bytes = 1, 1
    pending.add(late)
    pending.complete(1)
    assert (late.count, pending.ready_bytes, encoded) == (3, 1 + 3 * ENTRY_OVERHEAD_BYTES, [])
    assert pending.find([b"a", b"b", b"c"]) == {b"a": b"1", b"b": None}
    assert pending.take().entries == {b"a": b"1", b"b": None}
    assert (late.count, encoded) == (2, ["a", "b"])


def test_a_key_that_can_not_be_encoded_is_said_each_time():
    def encode(keys):
        raise UsageError(f"no key: {keys}")

    batch = EpochBatch()
    batch.put_later(["a"], encode, [b"1"])
    for _ in range(2):
        with pytest.raises(UsageError, match="no key"):
            batch.entries  # noqa: B018
