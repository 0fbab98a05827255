"""Manifests and the storage of checkpoints: numbers, fencing, damage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from statestore.checkpoint.manifest import decode_manifest, encode_manifest
from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import CheckpointNotFoundError, CorruptionError, FencedError, UnavailableError, UsageError
from statestore.io import LocalStorage, MemoryStorage
from tests.unit.checkpoints import delta, manifest


def test_a_manifest_comes_back():
    assert decode_manifest(encode_manifest(manifest(3)), "file") == manifest(3)


def test_every_flipped_bit_and_every_truncation_is_noticed():
    good = encode_manifest(manifest(3))
    for position in range(len(good)):
        for bit in (0x01, 0x20, 0x80):
            with pytest.raises(CorruptionError, match="_metadata"):
                decode_manifest(good[:position] + bytes([good[position] ^ bit]) + good[position + 1 :], "_metadata")
        with pytest.raises(CorruptionError, match="_metadata"):
            decode_manifest(good[:position], "_metadata")
    with pytest.raises(CorruptionError):
        decode_manifest(good + b"\n", "_metadata")


@pytest.mark.parametrize("path", ["../other/d-1", "/etc/passwd", "shared/../../x", "", "shared//x", "a\\..\\b\0"])
def test_paths_that_leave_the_folder_are_refused(path):
    with pytest.raises(CorruptionError):
        decode_manifest(encode_manifest(manifest(3, [delta(path, 1, 3)])), "_metadata")


@pytest.mark.parametrize("epochs", [[(2, 3)], [(1, 1), (3, 3)]])
def test_epochs_that_no_file_covers_are_noticed(epochs):
    deltas = [delta(f"shared/d-{first}", first, last) for first, last in epochs]
    with pytest.raises(CorruptionError, match="no file covers the epochs"):
        decode_manifest(encode_manifest(manifest(3, deltas)), "_metadata")
    right = manifest(3)
    wrong_end = msgspec.structs.replace(right, parts=[msgspec.structs.replace(right.parts[0], epoch=4)])
    with pytest.raises(CorruptionError, match="end at epoch 3"):
        decode_manifest(encode_manifest(wrong_end), "_metadata")


@pytest.fixture
def checkpoints(tmp_path):
    return CheckpointStorage(LocalStorage(tmp_path), "job")


def test_attempts_are_dense_and_unique(checkpoints):
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: checkpoints.claim_attempt(), range(40)))
    assert sorted(claimed) == list(range(1, 41))


def test_an_older_attempt_completes_nothing(checkpoints):
    first, second = checkpoints.claim_attempt(), checkpoints.claim_attempt()
    with pytest.raises(FencedError):
        checkpoints.complete(manifest(1, attempt=first))
    checkpoints.complete(manifest(1, attempt=second))
    assert checkpoints.load(1).attempt == second


def test_of_two_writers_of_a_number_one_wins(checkpoints):
    first, second = checkpoints.claim_attempt(), checkpoints.claim_attempt()
    checkpoints.complete(manifest(1, attempt=second))
    with pytest.raises(FencedError):
        checkpoints.complete(manifest(1, attempt=first))
    with pytest.raises(FileExistsError):
        checkpoints.complete(msgspec.structs.replace(manifest(1, attempt=second), created=2.5))
    checkpoints.complete(manifest(1, attempt=second))  # the same again: a repetition
    third = checkpoints.claim_attempt()
    with pytest.raises(UnavailableError, match="attempt 2 completed it when attempt 3 had begun"):
        checkpoints.complete(manifest(1, attempt=third))
    assert checkpoints.load(1) == manifest(1, attempt=second)


def test_an_attempt_whose_folder_was_emptied_completes_nothing(checkpoints):
    attempt = checkpoints.claim_attempt()
    for name in checkpoints.storage.list():
        checkpoints.storage.delete(name)
    with pytest.raises(UnavailableError, match="was it emptied or moved"):
        checkpoints.complete(manifest(1, attempt=attempt))


@pytest.mark.parametrize("hint", [b"", b'{"attempt": 2, "checkpoint": 9}', None])
def test_attempts_go_on_counting_when_the_old_ones_were_removed(checkpoints, hint):
    """Also when the hint is lost: no attempt can have a number below that of the newest checkpoint."""
    for _ in range(4):
        attempt = checkpoints.claim_attempt()
    checkpoints.complete(manifest(1, attempt=attempt))
    for number in range(1, 4):
        checkpoints.storage.delete(f"job/attempts/{number}")
    with pytest.raises(FencedError, match="attempt 4 owns"):
        checkpoints.check_owner(2)
    if hint is None:
        checkpoints.storage.delete("job/_latest")
    else:
        checkpoints.storage.write("job/_latest", hint)
    checkpoints.storage.list = lambda folder="": []
    assert checkpoints.newest_attempt() == 4
    assert checkpoints.claim_attempt() == 5


@pytest.mark.parametrize(
    "hint", [b"", b"garbage", b'{"checkpoint": 1}', b'{"checkpoint": 99}', b'{"checkpoint": "x"}', None]
)
def test_the_newest_is_found_whatever_the_hint_says(checkpoints, hint):
    assert checkpoints.latest() is None
    checkpoints.claim_attempt()
    for number in range(1, 6):
        checkpoints.complete(manifest(number))
    if hint is None:
        checkpoints.storage.delete("job/_latest")
    else:
        checkpoints.storage.write("job/_latest", hint)
    assert checkpoints.latest() == 5
    assert checkpoints.retained() == [1, 2, 3, 4, 5]


def test_manifests_of_others_are_refused(checkpoints):
    with pytest.raises(CheckpointNotFoundError, match="chk-1"):
        checkpoints.load(1)
    checkpoints.storage.write("job/chk-1/_metadata", encode_manifest(manifest(2)))
    checkpoints.storage.write("job/chk-3/_metadata", encode_manifest(manifest(3, job="other")))
    for number in (1, 3):
        with pytest.raises(CorruptionError, match="it is the manifest of"):
            checkpoints.load(number)
    with pytest.raises(UsageError):
        CheckpointStorage(MemoryStorage("mem"), "../job")
