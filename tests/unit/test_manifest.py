"""Manifests and the storage of checkpoints: numbers, fencing, collecting, damage."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from statestore.checkpoint.manifest import LogDelta, Manifest, Part, decode_manifest, encode_manifest
from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import CheckpointNotFoundError, CorruptionError, FencedError, UnavailableError, UsageError
from statestore.io import LocalStorage, MemoryStorage
from statestore.ttl import Times


def delta(path, first, last, data=b""):
    import hashlib

    return LogDelta(
        path=path,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        sequence=last,
        first_epoch=first,
        last_epoch=last,
    )


def manifest(number, deltas=None, *, attempt=1, job="job"):
    deltas = deltas if deltas is not None else [delta("shared/d-1", 1, number)]
    part = Part(
        first_key_group=0,
        last_key_group=127,
        epoch=deltas[-1].last_epoch,
        base=None,
        deltas=deltas,
        log_sequence=number,
        log_sha256="ab" * 32,
        uploaded_bytes=0,
    )
    return Manifest(
        job=job,
        checkpoint_id=number,
        attempt=attempt,
        created=1.5,
        kind="checkpoint",
        run="r",
        max_parallelism=128,
        states=[],
        parts=[part],
        meta={"sources": {"s": {"position": 7}}},
        times=Times(),
    )


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
    checkpoints.complete(manifest(1, attempt=2))
    with pytest.raises(FencedError):
        checkpoints.complete(manifest(1, attempt=1))
    with pytest.raises(UnavailableError, match="attempt 2 completed it when attempt 3 had begun"):
        checkpoints.complete(manifest(1, attempt=3))
    with pytest.raises(FileExistsError):
        checkpoints.complete(msgspec.structs.replace(manifest(1, attempt=2), created=2.5))
    checkpoints.complete(manifest(1, attempt=2))  # the same again: a repetition
    assert checkpoints.load(1) == manifest(1, attempt=2)


@pytest.mark.parametrize(
    "hint", [b"", b"garbage", b'{"checkpoint": 1}', b'{"checkpoint": 99}', b'{"checkpoint": "x"}', None]
)
def test_the_newest_is_found_whatever_the_hint_says(checkpoints, hint):
    assert checkpoints.latest() is None
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


def test_verify_names_what_is_wrong(checkpoints):
    files = {f"shared/d-{n}": b"data %d" % n for n in (1, 2, 3)}
    for path, data in files.items():
        checkpoints.storage.write(f"job/{path}", data)
    made = manifest(3, [delta(path, n, n, data) for n, (path, data) in enumerate(files.items(), 1)])
    assert checkpoints.verify(made) == []
    checkpoints.storage.write("job/shared/d-1", b"data 9")
    checkpoints.storage.write("job/shared/d-2", b"data")
    checkpoints.storage.delete("job/shared/d-3")
    problems = checkpoints.verify(made)
    assert ["d-1" in problems[0], "d-2" in problems[1], "d-3" in problems[2]] == [True] * 3
    assert ["hash" in problems[0], "4 bytes" in problems[1], "missing" in problems[2]] == [True] * 3


@pytest.mark.parametrize("seed", range(20))
def test_collecting_keeps_all_that_a_retained_checkpoint_needs(checkpoints, seed):
    """Checkpoints share files at random; an interrupted collection is finished by the next."""
    randomness = random.Random(seed)
    files, needed = 0, {}
    for number in range(1, 30):
        kept = needed.get(number - 1, [])[randomness.randrange(3) :]
        new = [f"shared/f-{files + n}" for n in range(randomness.randrange(1, 3))]
        files += len(new)
        for path in new:
            checkpoints.storage.write(f"job/{path}", b"")
        needed[number] = [*kept, *new]
        paths = needed[number]
        deltas = [delta(path, number if n == len(paths) - 1 else 1, number) for n, path in enumerate(paths)]
        checkpoints.complete(manifest(number, [delta(deltas[0].path, 1, number), *deltas[1:]]))
        keep = randomness.randrange(1, 4)
        if (
            randomness.random() < 0.3 and len(checkpoints.retained()) > keep
        ):  # a collection that died before it removed the oldest manifest
            oldest = checkpoints.retained()[0]
            later = {path for kept_number in checkpoints.retained()[1:] for path in needed[kept_number]}
            for path in set(needed[oldest]) - later:
                checkpoints.storage.delete(f"job/{path}")
        checkpoints.collect(keep)
        retained = checkpoints.retained()
        assert retained[-1] == number
        present = {name.removeprefix("job/") for name in checkpoints.storage.list("job/shared")}
        assert present == {path for kept_number in retained for path in needed[kept_number]}


def test_an_unreadable_manifest_collects_nothing(checkpoints):
    for number in range(1, 5):
        checkpoints.storage.write(f"job/shared/d-{number}", b"")
        checkpoints.complete(manifest(number, [delta(f"shared/d-{number}", 1, number)]))
    checkpoints.storage.write("job/chk-2/_metadata", b"{}")
    assert checkpoints.collect(1) == 0
    assert len(checkpoints.storage.list("job/shared")) == 4
