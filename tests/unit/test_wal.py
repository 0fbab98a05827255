"""The log: what is committed comes back, a torn tail goes, damage is named."""

import logging
import random

import msgspec
import pytest
import zstandard

from statestore.errors import ClosedError, CorruptionError, UnavailableError, UsageError
from statestore.io import LocalStorage, MemoryStorage
from statestore.schema import describe
from statestore.testing.clock import FakeClock
from statestore.ttl import Times
from statestore.wal import record
from statestore.wal.log import Log, segment_name
from statestore.wal.record import Columns, CommitRecord, StateDescriptor

STATES = [StateDescriptor(1, "counts", "value", "str", [describe(int)], 0)]


def new_log(storage, *, attempt=1, epoch=0, sequence=1, previous=""):
    log = Log(storage, "job", 128, FakeClock())
    log.begin(attempt=attempt, epoch=epoch, sequence=sequence, previous=previous)
    return log


def commit(log, epoch, **entries):
    batch = {key.encode(): None if value is None else str(value).encode() for key, value in entries.items()}
    log.append(
        Columns.of(batch), epoch, CommitRecord({"position": epoch}, Times(), STATES if log.needs_states else None)
    )


def recovered(storage):
    log = Log(storage, "job", 128, FakeClock())
    log.recover()
    return log


def history(log, after=0):
    return [(group.epoch, {k: v for part in group.entries() for k, v in part.items()}) for group in log.groups(after)]


@pytest.fixture
def three_epochs():
    storage = MemoryStorage("mem")
    log = new_log(storage)
    commit(log, 1, a=1, b=2)
    commit(log, 2, a=None)
    commit(log, 3, c=3)
    return storage


EXPECTED = [(1, {b"a": b"1", b"b": b"2"}), (2, {b"a": None}), (3, {b"c": b"3"})]


def test_commits_come_back_with_meta_and_states(three_epochs):
    log = recovered(three_epochs)
    assert history(log) == EXPECTED
    assert history(log, after=1) == EXPECTED[1:]
    groups = list(log.groups(0))
    assert [group.commit.meta for group in groups] == [{"position": n} for n in (1, 2, 3)]
    assert groups[0].commit.states == STATES
    assert groups[1].commit.states is None


def test_every_truncation_gives_whole_epochs_only(three_epochs, caplog):
    caplog.set_level(logging.ERROR)
    data = three_epochs.read(segment_name(1))
    ends = [group.commit and group.batches[-1].end for group in recovered(three_epochs).groups(0)]
    for length in range(len(data)):
        storage = MemoryStorage("mem")
        storage.write(segment_name(1), data[:length])
        found = history(recovered(storage))
        assert found == EXPECTED[: len(found)]
        assert len(found) < 3
        if length < ends[0]:
            assert found == []


def test_every_truncation_can_be_continued(three_epochs):
    data = three_epochs.read(segment_name(1))
    for length in range(0, len(data), 3):
        storage = MemoryStorage("mem")
        storage.write(segment_name(1), data[:length])
        log = recovered(storage)
        last = log.sealed[-1] if log.sealed else None
        epoch = last.last_epoch if last else 0
        log.begin(
            attempt=2, epoch=epoch, sequence=(last.sequence if last else 0) + 1, previous=last.sha256 if last else ""
        )
        commit(log, epoch + 1, z=9)
        assert history(recovered(storage)) == [*EXPECTED[:epoch], (epoch + 1, {b"z": b"9"})]


@pytest.mark.parametrize("bit", [0, 7])
def test_every_flipped_byte_is_named_never_a_short_replay(three_epochs, bit):
    data = three_epochs.read(segment_name(1))
    for offset in range(len(data)):
        storage = MemoryStorage("mem")
        flipped = bytearray(data)
        flipped[offset] ^= 1 << bit
        storage.write(segment_name(1), bytes(flipped))
        with pytest.raises(CorruptionError) as caught:
            recovered(storage)
        assert caught.value.file.endswith(segment_name(1)), offset
        assert caught.value.offset is not None
        assert caught.value.offset <= offset


def test_zeros_behind_the_last_commit_are_a_torn_tail(three_epochs):
    data = three_epochs.read(segment_name(1))
    for zeros in (1, 20, 21, 100, 4096):
        storage = MemoryStorage("mem")
        storage.write(segment_name(1), data + b"\0" * zeros)
        assert history(recovered(storage)) == EXPECTED
        assert storage.size(segment_name(1)) == len(data)


def two_segments():
    storage = MemoryStorage("mem")
    log = new_log(storage)
    commit(log, 1, a=1)
    log.seal()
    commit(log, 2, b=2)
    log.seal()
    commit(log, 3, c=3)
    return storage


def test_segments_chain():
    storage = two_segments()
    log = recovered(storage)
    assert [epoch for epoch, _ in history(log)] == [1, 2, 3]
    assert [(s.sequence, s.first_epoch, s.last_epoch) for s in log.sealed] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    assert log.read_sealed(log.sealed[1]) == storage.read(segment_name(2))


def test_a_missing_segment_is_named():
    storage = two_segments()
    storage.delete(segment_name(2))
    with pytest.raises(CorruptionError, match="this one is missing") as caught:
        recovered(storage)
    assert caught.value.file == "mem/" + segment_name(2)


def test_a_sealed_segment_may_not_be_torn():
    storage = two_segments()
    storage.truncate(segment_name(2), storage.size(segment_name(2)) - 1)
    with pytest.raises(CorruptionError, match="not a whole commit"):
        recovered(storage)


def test_swapped_and_foreign_segments_are_refused():
    storage = two_segments()
    one, two = storage.read(segment_name(1)), storage.read(segment_name(2))
    storage.write(segment_name(1), two)
    storage.write(segment_name(2), one)
    with pytest.raises(CorruptionError, match="it is segment 2 of job 'job'"):
        recovered(storage)
    other = MemoryStorage("mem")
    foreign = new_log(other)
    commit(foreign, 1, a=2)
    foreign.seal()
    storage.write(segment_name(1), other.read(segment_name(1)))
    storage.write(segment_name(2), two)
    with pytest.raises(CorruptionError, match="does not continue segment 1"):
        recovered(storage)
    log = Log(other, "another", 128, FakeClock())
    with pytest.raises(CorruptionError, match="of job 'job'"):
        log.recover()


def test_a_changed_sealed_segment_is_not_uploaded():
    storage = two_segments()
    log = recovered(storage)
    storage.write(segment_name(1), storage.read(segment_name(1)) + b"x")
    with pytest.raises(CorruptionError, match="changed since"):
        log.read_sealed(log.sealed[0])


def test_dropping_and_keeping():
    storage = two_segments()
    log = recovered(storage)
    log.drop_before(2)
    assert storage.list() == [segment_name(2), segment_name(3)]
    log.keep_to(2)
    assert storage.list() == [segment_name(2)]
    assert [epoch for epoch, _ in history(recovered(storage))] == [2]
    log.reset()
    assert storage.list() == []


class FailingSync(MemoryStorage):
    """Its appenders fail the sync number `failing`."""

    def __init__(self, failing):
        super().__init__("mem")
        self.failing = failing

    def appender(self, name):
        appender = super().appender(name)
        sync = appender.sync

        def failing_sync():
            self.failing -= 1
            if self.failing == 0:
                raise UnavailableError("storage", name, "Input/output error")
            sync()

        appender.sync = failing_sync
        return appender


def test_a_failed_sync_poisons_the_log():
    storage = FailingSync(2)
    log = new_log(storage)
    commit(log, 1, a=1)
    with pytest.raises(UnavailableError):
        commit(log, 2, a=2)
    with pytest.raises(ClosedError, match="failed before"):
        commit(log, 2, a=2)
    assert history(recovered(storage))[:1] == [(1, {b"a": b"1"})]


def deferred(log, epoch, **entries):
    batch = {key.encode(): str(value).encode() for key, value in entries.items()}
    log.defer(lambda: Columns.of(batch), epoch, CommitRecord({}, Times(), STATES if log.needs_states else None))


def test_what_is_deferred_is_logged_and_sealed_when_it_is_settled():
    storage = MemoryStorage("mem")
    log = new_log(storage)
    commit(log, 1, a=1)
    deferred(log, 2, a=2)
    assert [epoch for epoch, _ in history(recovered(storage))] == [1]
    assert log.sealed == []
    assert log.settle() > 0
    assert log.settle() == 0
    assert [(segment.first_epoch, segment.last_epoch) for segment in log.sealed] == [(1, 2)]
    deferred(log, 3, a=3)
    log.settle()
    commit(log, 4, a=4)
    assert [segment.last_epoch for segment in log.sealed] == [2, 3]
    log.seal()
    assert log.sealed[-1].previous == log.sealed[-2].sha256
    assert history(recovered(storage)) == [(epoch, {b"a": b"%d" % epoch}) for epoch in (1, 2, 3, 4)]


def test_a_failure_while_settling_poisons_the_log_for_both_threads():
    storage = FailingSync(2)
    log = new_log(storage)
    commit(log, 1, a=1)
    deferred(log, 2, a=2)
    with pytest.raises(UnavailableError):
        log.settle()
    with pytest.raises(ClosedError, match="failed before"):
        log.settle()
    with pytest.raises(ClosedError, match="failed before"):
        commit(log, 3, a=3)
    log.close()
    assert log.sealed == []


def test_what_is_deferred_when_the_log_is_closed_is_dropped():
    storage = MemoryStorage("mem")
    log = new_log(storage)
    commit(log, 1, a=1)
    deferred(log, 2, a=2)
    log.close()
    with pytest.raises(ClosedError):
        log.settle()
    assert [epoch for epoch, _ in history(recovered(storage))] == [1]


class NotingSteps(MemoryStorage):
    """Its appenders note what is done with them."""

    def __init__(self):
        super().__init__("mem")
        self.steps = []

    def appender(self, name):
        appender = super().appender(name)
        write, sync = appender.write, appender.sync
        appender.write = lambda data: (self.steps.append("write"), write(data))
        appender.sync = lambda: (self.steps.append("sync"), sync())
        return appender


def test_what_is_to_be_done_meanwhile_is_done_before_the_sync():
    storage = NotingSteps()
    log = new_log(storage)
    log.append(
        Columns.of({b"a": b"1"}), 1, CommitRecord({}, Times(), STATES), lambda: storage.steps.append("meanwhile")
    )
    assert storage.steps == ["write", "write", "meanwhile", "sync"]
    with pytest.raises(ZeroDivisionError):
        log.append(Columns.of({b"a": b"2"}), 2, CommitRecord({}, Times()), lambda: 1 / 0)
    with pytest.raises(ClosedError, match="failed before"):
        commit(log, 2, a=2)


def test_a_group_of_many_records(monkeypatch):
    monkeypatch.setattr(record, "ENTRIES_PER_RECORD", 10)
    storage = MemoryStorage("mem")
    log = new_log(storage)
    entries = {f"k{n}": n for n in range(95)}
    commit(log, 1, **entries)
    ((epoch, found),) = history(recovered(storage))
    assert (epoch, found) == (1, {key.encode(): str(n).encode() for key, n in entries.items()})
    assert len(next(iter(recovered(storage).groups(0))).batches) == 10


def test_records_are_written_as_they_are_made_and_synced_together(monkeypatch):
    monkeypatch.setattr(record, "ENTRIES_PER_RECORD", 10)
    monkeypatch.setattr(record, "COPIED_MAX_BYTES", 1)
    storage = NotingSteps()
    log = new_log(storage)
    entries = {b"k%d" % n: b"v" for n in range(35)}
    log.append(Columns.of(entries), 1, CommitRecord({}, Times(), STATES), lambda: storage.steps.append("meanwhile"))
    assert storage.steps == ["write", *["write"] * 9, "meanwhile", "sync"]
    assert history(recovered(storage)) == [(1, entries)]


def test_a_value_that_is_too_large_behind_others_that_are_written_already(monkeypatch):
    monkeypatch.setattr(record, "ENTRIES_PER_RECORD", 10)
    monkeypatch.setattr(record, "RECORD_RAW_MAX_BYTES", 1000)
    storage = MemoryStorage("mem")
    log = new_log(storage)
    commit(log, 1, a=1)
    with pytest.raises(UsageError, match="over the limit"):
        log.append(
            Columns.of({b"%d" % n: b"x" * (1100 if n == 30 else 1) for n in range(40)}), 2, CommitRecord({}, Times())
        )
    with pytest.raises(ClosedError, match="failed before"):
        commit(log, 2, a=2)
    assert history(recovered(storage)) == [(1, {b"a": b"1"})]


def test_a_batch_with_more_keys_than_values():
    payload = zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(([b"a", b"b"], [b"1"])))
    with pytest.raises(CorruptionError, match="a batch can't be read"):
        record.batch_of(record.Record(record.BATCH, 1, payload, 0, len(payload)), "file")


def test_large_batches_are_split_by_bytes_and_a_too_large_value_refused(monkeypatch):
    monkeypatch.setattr(record, "RECORD_RAW_MAX_BYTES", 1000)
    log = new_log(MemoryStorage("mem"))
    log.append(Columns.of({b"%d" % n: b"x" * 300 for n in range(9)}), 1, CommitRecord({}, Times()))
    log.seal()
    assert sum(map(len, (part for _, part in history(log)))) == 9
    with pytest.raises(UsageError, match="over the limit"):
        log.append(Columns.of({b"k": b"x" * 1100}), 2, CommitRecord({}, Times()))


def test_what_does_not_shrink_takes_no_more_than_its_bytes():
    sizes = {}
    for name, value in (("noise", random.Random(1).randbytes), ("zeros", bytes)):
        storage = MemoryStorage("mem")
        log = new_log(storage)
        batch = {b"%d" % n: value(100_000) for n in range(5)}
        sizes[name] = log.append(Columns.of(batch), 1, CommitRecord({}, Times()))
        assert history(recovered(storage)) == [(1, batch)]
        assert (batch[b"0"] in storage.read(segment_name(1))) == (
            name == "noise"
        )  # which is within the first block of the frame
    assert sizes["noise"] < 500_500
    assert sizes["zeros"] < 5000


def test_random_values_are_compressed_hastily_and_their_keys_shrink_nevertheless(monkeypatch):
    randomness = random.Random(1)
    batch = {b"key-%012d" % n: randomness.randbytes(100) for n in range(5000)}
    sizes = []
    for worthwhile in (0.0, 1.0):  # everything hastily, nothing
        monkeypatch.setattr(record, "WORTHWHILE", worthwhile)
        sizes.append(new_log(MemoryStorage("mem")).append(Columns.of(batch), 1, CommitRecord({}, Times())))
    monkeypatch.undo()
    storage = MemoryStorage("mem")
    size = new_log(storage).append(Columns.of(batch), 1, CommitRecord({}, Times()))
    assert size == sizes[0] != sizes[1]
    assert size < 1.02 * sizes[1] < 0.95 * sum(len(key) + len(value) for key, value in batch.items())
    assert history(recovered(storage)) == [(1, batch)]


def test_a_decompression_bomb_is_refused():
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (record.RECORD_RAW_MAX_BYTES + 1))
    with pytest.raises(CorruptionError, match="declares"):
        record.decode_payload(bomb, "file", 0)


def test_on_the_local_disk(tmp_path):
    log = new_log(LocalStorage(tmp_path))
    commit(log, 1, a=1)
    log.seal()
    commit(log, 2, a=2)
    log.close()
    log.close()
    assert [epoch for epoch, _ in history(recovered(LocalStorage(tmp_path)))] == [1, 2]
    with pytest.raises(ClosedError):
        commit(log, 3, a=1)
