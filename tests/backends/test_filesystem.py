"""The filesystem backend's files: merged, damaged, left over."""

from __future__ import annotations

import random

import pytest

from statestore import ConfigError, CorruptionError, FencedError
from statestore.backend import BackendContext
from statestore.keys import EntryKeys
from statestore_backends import filesystem
from statestore_backends.filesystem import FilesystemBackend

GROUPS = 8
KEYS = [EntryKeys(1, GROUPS).of(f"key-{n}".encode()) for n in range(300)]


def opened(folder, attempt=1, **options):
    return FilesystemBackend.open(BackendContext("job", str(folder), GROUPS, attempt, options))


def segments(folder):
    return sorted((folder / "segments").iterdir())


@pytest.mark.parametrize("most", [2, 3, 8])
def test_many_small_batches(tmp_path, most):
    randomness = random.Random(most)
    backend, model = opened(tmp_path, **{"segments-max": most}), {}
    for epoch in range(1, 120):
        keys = randomness.sample(KEYS, randomness.randrange(1, 40))
        batch = {key: None if randomness.random() < 0.3 else b"%d" % epoch for key in keys}
        backend.apply(batch, epoch)
        model.update(batch)
        if epoch % 20 == 0:
            backend.close()
            backend = opened(tmp_path, **{"segments-max": most})
            assert backend.applied_epoch() == epoch
        expected = {key: value for key, value in sorted(model.items()) if value is not None}
        assert dict(backend.scan(b"", None)) == expected
        assert backend.get_many(KEYS) == [model.get(key) for key in KEYS]
        assert len(segments(tmp_path)) <= most
    backend.close()


def test_files_that_a_scan_reads_stay_until_it_ends(tmp_path):
    backend = opened(tmp_path, **{"segments-max": 2})
    for epoch in range(1, 3):
        backend.apply({KEYS[epoch]: b"old"}, epoch)
    scan = backend.scan(b"", None)
    first = next(scan)
    for epoch in range(3, 30):
        backend.apply(dict.fromkeys(KEYS, b"%d" % epoch), epoch)
    assert dict([first, *scan]) == {KEYS[1]: b"old", KEYS[2]: b"old"}
    assert len(segments(tmp_path)) <= 2
    backend.close()


def test_every_flipped_byte_is_noticed(tmp_path):
    backend = opened(tmp_path)
    backend.apply(dict.fromkeys(KEYS[:20], b"value"), 3)
    backend.close()
    (segment,) = segments(tmp_path)
    good = segment.read_bytes()
    for position in range(len(good)):
        segment.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        backend = opened(tmp_path)
        with pytest.raises(CorruptionError, match=segment.name):
            backend.get_many(KEYS)
            list(backend.scan(b"", None))
        backend.close()


def test_a_damaged_manifest_means_restoring(tmp_path, caplog):
    backend = opened(tmp_path)
    backend.apply({KEYS[0]: b"value"}, 3)
    backend.close()
    manifest = tmp_path / "MANIFEST"
    good = manifest.read_bytes()
    for position in range(len(good)):
        manifest.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        backend = opened(tmp_path)
        assert (backend.applied_epoch(), list(backend.scan(b"", None))) == (0, [])
        backend.close()
    assert "has to be restored" in caplog.text


def test_leftovers_of_a_crash_are_ignored_and_removed(tmp_path):
    backend = opened(tmp_path)
    backend.apply({KEYS[0]: b"value"}, 3)
    backend.close()
    leftover = tmp_path / "segments" / "00000001-00000099.seg"
    leftover.write_bytes(b"half a segm")
    backend = opened(tmp_path, attempt=2)
    assert dict(backend.scan(b"", None)) == {KEYS[0]: b"value"}
    assert not leftover.exists()
    backend.close()


def test_an_older_attempt_is_fenced(tmp_path):
    old = opened(tmp_path, attempt=1)
    old.apply({KEYS[0]: b"1"}, 1)
    new = opened(tmp_path, attempt=2)
    with pytest.raises(FencedError, match="attempt 1 is fenced"):
        old.apply({KEYS[0]: b"2"}, 2)
    with pytest.raises(FencedError):
        opened(tmp_path, attempt=1)
    assert new.get_many(KEYS[:1]) == [b"1"]


def test_options(tmp_path):
    with pytest.raises(ConfigError, match="segments-max"):
        opened(tmp_path, **{"segments-max": 1})
    with pytest.raises(ConfigError, match="did you mean 'url'"):
        opened(tmp_path, ulr="x")


def test_a_state_of_many_full_segments(tmp_path, monkeypatch):
    """Merging can't make them fewer, and must not be tried for ever."""
    monkeypatch.setattr(filesystem, "SEGMENT_TARGET_BYTES", 4000)
    randomness = random.Random(1)
    backend, model = opened(tmp_path, **{"segments-max": 2}), {}
    for epoch in range(1, 40):
        batch = {key: randomness.randbytes(100) for key in randomness.sample(KEYS, 100)}
        backend.apply(batch, epoch)
        model.update(batch)
    assert dict(backend.scan(b"", None)) == dict(sorted(model.items()))
    assert len(segments(tmp_path)) < 60
    backend.close()
