"""Sorted segments: what was added is found, by scan and by key; damage is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import CorruptionError
from statestore.io import MemoryStorage
from statestore.segment import BlockCache, SegmentReader, SegmentWriter, merged

ENTRIES = {b"%05d" % n: None if n % 7 == 0 else b"value %d" % n * (n % 5) for n in range(0, 900, 3)}


def written(entries, **options):
    writer = SegmentWriter(**options)
    writer.add(sorted(entries.items()))
    return writer.finish()


def reader(data, **options):
    storage = MemoryStorage("mem")
    storage.write("x.seg", data)
    return SegmentReader(storage, "x.seg", **options)


def everything(data):
    segment = reader(data)
    return dict(segment.scan(b"", None)), segment.get_many(ENTRIES)


keys = st.binary(max_size=12)


@given(st.dictionaries(keys, st.none() | st.binary(max_size=50), min_size=1), keys, keys, st.integers(1, 200))
def test_any_entries_and_ranges(entries, start, stop, block_bytes):
    segment = reader(written(entries, block_bytes=block_bytes))
    assert list(segment.scan(b"", None)) == sorted(entries.items())
    assert list(segment.scan(start, stop)) == sorted((k, v) for k, v in entries.items() if start <= k < stop)
    wanted = [*entries, start, stop, start + b"\0"]
    assert segment.get_many(wanted) == {key: entries[key] for key in wanted if key in entries}


@pytest.mark.parametrize("capacity", [0, 500, 1 << 20])
def test_a_cache_changes_nothing(capacity):
    segment = reader(written(ENTRIES, block_bytes=300), cache=BlockCache(capacity))
    for _ in range(3):
        assert dict(segment.scan(b"", None)) == ENTRIES
        assert segment.get_many(ENTRIES) == ENTRIES


def test_every_flipped_byte_is_noticed():
    good = written(dict(list(ENTRIES.items())[:40]), block_bytes=200)
    for position in range(len(good)):
        with pytest.raises(CorruptionError, match=r"x\.seg"):
            everything(good[:position] + bytes([good[position] ^ 0x04]) + good[position + 1 :])


def test_every_truncation_is_noticed():
    good = written(dict(list(ENTRIES.items())[:40]), block_bytes=200)
    for length in range(len(good)):
        with pytest.raises(CorruptionError, match=r"x\.seg"):
            everything(good[:length])


def test_a_missing_file():
    with pytest.raises(CorruptionError, match="missing"):
        dict(SegmentReader(MemoryStorage("mem"), "x.seg").scan(b"", None))


def test_keys_must_ascend():
    writer = SegmentWriter()
    writer.add([(b"b", b"")])
    for keys in ([b"b"], [b"a"], [b"c", b"c"], [b"d", b"e", b"c"]):
        with pytest.raises(AssertionError):
            writer.add([(key, b"") for key in keys])


@given(st.lists(st.dictionaries(st.binary(max_size=2), st.none() | st.integers()), max_size=5))
def test_merged_scans(layers):
    expected = {}
    for layer in reversed(layers):
        expected |= layer
    assert list(merged([iter(sorted(layer.items())) for layer in layers])) == sorted(expected.items())
