"""Verification finds every damage, and says where it is."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
import zstandard
from xxhash import xxh3_64_intdigest

from statestore.checkpoint.manifest import BaseEntry, InheritedBase, LogDelta, PackedDelta, SegmentEntry
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.verify import verify
from statestore.errors import CorruptionError, UnavailableError
from statestore.io import LocalStorage, MemoryStorage
from statestore.segment import SegmentReader, SegmentWriter
from statestore.testing.clock import FakeClock
from statestore.ttl import Times
from statestore.wal import record
from statestore.wal.log import Log
from statestore.wal.record import Columns, CommitRecord
from tests.conftest import SOAK_EXAMPLES
from tests.unit.checkpoints import manifest

GROUPS = range(40)


def key(group, number):
    return group.to_bytes(2, "big") + b"\0\1key-%03d" % number


def segment_bytes(groups, **options):
    writer = SegmentWriter(**options)
    for group in groups:
        writer.add([(key(group, number), b"value %d" % number) for number in range(10)])
    return writer.finish(), writer


def log_bytes(epochs, groups=GROUPS):
    storage = MemoryStorage("log")
    log = Log(storage, "job", 128, FakeClock())
    log.begin(attempt=1, epoch=epochs[0] - 1, sequence=1, previous="")
    for epoch in epochs:
        log.append(Columns.of({key(group, epoch): b"x" for group in groups}), epoch, CommitRecord({}, Times()))
    log.seal()
    return log.read_sealed(log.sealed[0])


class Made:
    """A checkpoint with a base of two files, a packed delta and a log delta."""

    def __init__(self, storage):
        self.checkpoints = CheckpointStorage(storage, "job")
        self.files = {}
        base = [self.segment(f"shared/base-1-1-{n}.seg", groups) for n, groups in enumerate([range(20), range(20, 40)])]
        packed = self.segment("shared/pack-1-2.seg", range(5, 30))
        data = log_bytes([3, 4])
        log = LogDelta(**self.described("shared/delta-1-1-ab.log", data), sequence=1, first_epoch=3, last_epoch=4)
        deltas = [PackedDelta(first_epoch=2, last_epoch=2, segments=[packed]), log]
        made = manifest(7, [log])
        part = msgspec.structs.replace(
            made.parts[0], base=BaseEntry(epoch=1, created=0.0, segments=base), deltas=deltas, last_key_group=39
        )
        self.manifest = msgspec.structs.replace(made, parts=[part])

    def segment(self, path, groups):
        data, writer = segment_bytes(groups, block_bytes=600)
        described = self.described(path, data)
        return SegmentEntry(**described, first_key=writer.first_key, last_key=writer.last_key, entries=writer.entries)

    def described(self, path, data):
        self.files[path] = data
        self.checkpoints.storage.write(f"job/{path}", data)
        return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def put(self, path, data):
        self.checkpoints.storage.write(f"job/{path}", data)

    def problems(self, **options):
        return verify(self.checkpoints, self.manifest, **options).problems


@pytest.fixture
def made():
    return Made(MemoryStorage("mem"))


def test_what_is_whole(made):
    seen = []
    found = verify(made.checkpoints, made.manifest, on_progress=seen.append)
    assert (found.problems, found.files, found.bytes) == ([], 4, sum(map(len, made.files.values())))
    assert sorted(seen) == sorted(map(len, made.files.values()))


@pytest.mark.parametrize("path", ["shared/base-1-1-1.seg", "shared/pack-1-2.seg"])
def test_a_flipped_bit_in_a_segment_is_named_by_its_block(made, path):
    good = made.files[path]
    blocks = SegmentReader(made.checkpoints.storage, f"job/{path}")._blocks
    assert len(blocks) > 3
    for position in range(0, len(good), 1 if SOAK_EXAMPLES else 5):
        made.put(path, good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        (problem,) = made.problems(threads=1)
        assert problem.file == f"mem/job/{path}"
        block = next((item for item in blocks if item[1] <= position < item[1] + item[2]), None)
        if block is not None:
            group = int.from_bytes(block[0][:2], "big")
            assert (problem.offset, problem.first_key_group) == (block[1], group)
            assert problem.last_key_group <= group + 10
        else:  # header, index, filter: the whole file
            assert problem.last_key_group - problem.first_key_group >= 19
            assert problem.offset is not None


def test_a_flipped_bit_in_a_log_is_named_by_its_record(made):
    path = "shared/delta-1-1-ab.log"
    good = made.files[path]
    _, start = record.decode_header(good, "file")
    records = []
    while start < len(good):
        records.append(record.next_record(good, start, "file"))
        start = records[-1].end
    assert len(records) == 4
    for position in range(len(good)):
        made.put(path, good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        found = made.problems(threads=1)
        hit = next((item.offset for item in records if item.offset <= position < item.end), None)
        assert [problem.file for problem in found] == [f"mem/job/{path}"]
        assert hit is None or found[0].offset == hit
        assert (found[0].first_key_group, found[0].last_key_group) == (0, 39)


def test_all_damage_is_reported_each_in_its_place(made):
    base, path = made.files["shared/base-1-1-0.seg"], "shared/base-1-1-0.seg"
    blocks = SegmentReader(made.checkpoints.storage, f"job/{path}")._blocks
    damaged = bytearray(base)
    for block in (blocks[1], blocks[3]):
        damaged[block[1] + 3] ^= 1
    made.put(path, bytes(damaged))
    log = bytearray(made.files["shared/delta-1-1-ab.log"])
    offset = record.decode_header(bytes(log), "file")[1]
    first = record.next_record(bytes(log), offset, "file")
    second = record.next_record(bytes(log), record.next_record(bytes(log), first.end, "file").end, "file")
    for item in (first, second):
        log[item.offset + record.HEAD_BYTES] ^= 1
    made.put("shared/delta-1-1-ab.log", bytes(log))
    made.checkpoints.storage.delete("job/shared/pack-1-2.seg")
    found = made.problems()
    assert [(problem.file.rsplit("/")[-1], problem.offset) for problem in found] == [
        ("base-1-1-0.seg", blocks[1][1]),
        ("base-1-1-0.seg", blocks[3][1]),
        ("pack-1-2.seg", None),
        ("delta-1-1-ab.log", first.offset),
        ("delta-1-1-ab.log", second.offset),
    ]
    assert "does not match its checksum (key group" in str(found[0])
    assert str(found[2]) == "mem/job/shared/pack-1-2.seg: the file is missing (key groups 5 to 29)"


@pytest.mark.parametrize("path", ["shared/base-1-1-0.seg", "shared/delta-1-1-ab.log"])
@pytest.mark.parametrize("cut", [0, 1, 9, 100, -1])
def test_a_truncated_file(made, path, cut):
    made.put(path, made.files[path][:cut])
    (problem,) = made.problems()
    assert problem.file.endswith(path)


@pytest.mark.parametrize("path", ["shared/base-1-1-0.seg", "shared/delta-1-1-ab.log", "shared/pack-1-2.seg"])
def test_another_file_in_its_place_that_is_sound_itself(made, path):
    other = log_bytes([3, 4], GROUPS[1:]) if path.endswith("log") else segment_bytes(range(20), block_bytes=900)[0]
    made.put(path, other)
    (problem,) = made.problems()
    assert problem.file.endswith(path)


def test_key_groups_of_another_part(made):
    part = msgspec.structs.replace(made.manifest.parts[0], last_key_group=34)
    made.manifest = msgspec.structs.replace(made.manifest, parts=[part])
    texts = [str(problem) for problem in made.problems()]
    assert any("holds key groups 20 to 39, its part 0 to 34" in text for text in texts)
    assert any("a record holds an entry of key group 35" in text for text in texts)


def test_what_a_part_has_inherited_may_hold_key_groups_of_others(made):
    (part,) = made.manifest.parts
    halves = [
        msgspec.structs.replace(
            part,
            first_key_group=first,
            last_key_group=first + 19,
            base=InheritedBase(epoch=4, parts=[part]),
            deltas=[],
        )
        for first in (0, 20)
    ]
    made.manifest = msgspec.structs.replace(made.manifest, parts=halves, max_parallelism=40)
    found = verify(made.checkpoints, made.manifest)
    assert (found.files, found.problems) == (4, [])
    made.checkpoints.storage.delete("job/shared/pack-1-2.seg")
    assert len(made.problems()) == 1


def test_epochs_that_the_manifest_does_not_name(made):
    deltas = [*made.manifest.parts[0].deltas]
    deltas[1] = msgspec.structs.replace(deltas[1], last_epoch=5)
    part = msgspec.structs.replace(made.manifest.parts[0], deltas=deltas)
    made.manifest = msgspec.structs.replace(made.manifest, parts=[part])
    (problem,) = made.problems()
    assert "ends with epoch 4, not 5" in problem.problem


class Segment(SegmentWriter):
    """Writes what a sound writer never would, with right checksums."""

    def scrambled(self, change):
        write, entries = self._write_block, []

        def write_block(keys, values):
            whole = list(keys)
            change(keys, values)
            entries.append(len(whole))
            write(keys, values)
            self._filter = self._filter[: sum(entries[:-1])]
            self._filter.extend(sorted(xxh3_64_intdigest(key) & 0xFFFF for key in whole))
            self._index[-1] = (whole[0], *self._index[-1][1:4], len(whole))

        self._write_block = write_block
        return self


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda keys, values: keys.reverse(), "out of order"),
        (lambda keys, values: keys.pop() and values.pop() and None, "the footer says"),
        (lambda keys, values: values.pop(), "values"),
        (lambda keys, values: keys.__setitem__(-1, keys[-1] + b"?"), "the filter does not fit"),
    ],
)
def test_a_segment_whose_checksums_hold_and_whose_content_does_not(change, problem):
    writer = Segment(block_bytes=600).scrambled(change)
    writer.add([(key(3, number), b"value") for number in range(100)])
    storage = MemoryStorage("mem")
    storage.write("x", writer.finish())
    flaws = [str(error) for error, groups in SegmentReader(storage, "x").flaws()]
    assert flaws
    assert any(problem in flaw for flaw in flaws), flaws


def test_a_decompression_bomb_is_not_unpacked(made, monkeypatch):
    """What a frame declares bounds what is unpacked, and is itself bounded."""
    path = "shared/delta-1-1-ab.log"
    good = made.files[path]
    _, offset = record.decode_header(good, "file")
    bomb = zstandard.ZstdCompressor().compress(bytes(record.RECORD_RAW_MAX_BYTES + 1))
    assert len(bomb) < 1 << 20
    head = record._head.pack(len(bomb), record.BATCH, 3, record.google_crc32c.value(bomb))
    data = good[:offset] + head + record._u32.pack(record.google_crc32c.value(head)) + bomb
    made.put(path, data)
    assert f"declares {record.RECORD_RAW_MAX_BYTES + 1} bytes" in made.problems()[0].problem


def test_a_symbolic_link_is_no_file_of_a_checkpoint(tmp_path):
    made = Made(LocalStorage(tmp_path / "checkpoints"))
    path = tmp_path / "checkpoints" / "job" / "shared" / "base-1-1-0.seg"
    path.rename(tmp_path / "moved.seg")
    path.symlink_to(tmp_path / "moved.seg")
    (problem,) = made.problems()
    assert "symbolic link" in problem.problem
    with pytest.raises(CorruptionError, match="symbolic link"):
        made.checkpoints.read_file(made.manifest.files()[0])


def test_a_storage_that_does_not_answer_says_nothing_about_the_checkpoint(made):
    def read(name, start=0, length=None):
        raise UnavailableError("storage", name, "no answer")

    made.checkpoints.storage.read = read
    with pytest.raises(UnavailableError):
        made.problems()
