"""The pointer to the latest checkpoint: whole, and never changed by a leader of before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import fakeredis
import pytest

from statestore import CorruptionError, FencedError, UnavailableError
from statestore.io import LocalStorage, MemoryStorage
from statestore_runtime.ha.pointer import LatestPointer
from statestore_runtime.ha.redis_register import RedisRegister
from statestore_runtime.ha.storage_register import StorageRegister


@pytest.fixture(params=["memory", "local", "redis"])
def register(request, tmp_path):
    if request.param == "redis":
        return RedisRegister(fakeredis.FakeRedis(), "latest", "fake")
    return StorageRegister(MemoryStorage() if request.param == "memory" else LocalStorage(tmp_path), "latest", 4)


def told(latest):
    return latest.token, latest.checkpoint, latest.path


def test_it_points_to_what_was_written_last(register):
    pointer = LatestPointer(register)
    assert pointer.read() is None
    pointer.write(1, 7, "/checkpoints/job/chk-7")
    pointer.write(1, 8, "/checkpoints/job/chk-8")
    assert told(LatestPointer(register).read()) == (1, 8, "/checkpoints/job/chk-8")
    pointer.write(1, 8, "/checkpoints/job/chk-8")  # a repetition
    assert pointer.read().checkpoint == 8


def test_an_older_token_never_overwrites_a_newer_one(register):
    old, new = LatestPointer(register), LatestPointer(register)
    old.write(3, 7, "chk-7")
    new.write(5, 8, "chk-8")
    with pytest.raises(FencedError, match="attempt 3 is fenced") as raised:
        old.write(3, 9, "chk-9")
    assert raised.value.owner == 5
    with pytest.raises(FencedError):
        old.take_over(4)
    assert told(new.read()) == (5, 8, "chk-8")


def test_a_new_leader_shuts_out_the_one_before_and_keeps_its_checkpoint(register):
    old, new = LatestPointer(register), LatestPointer(register)
    assert old.take_over(1) is None
    old.write(1, 7, "chk-7")
    assert told(new.take_over(2)) == (1, 7, "chk-7")
    with pytest.raises(FencedError):
        old.write(1, 8, "chk-8")
    assert told(new.read()) == (2, 7, "chk-7")
    assert told(new.take_over(2)) == (2, 7, "chk-7")  # again, after a lost answer for instance


def test_shut_out_before_there_was_a_checkpoint(register):
    old, new = LatestPointer(register), LatestPointer(register)
    assert new.take_over(2) is None
    with pytest.raises(FencedError):
        old.write(1, 1, "chk-1")
    assert told(new.read()) == (2, None, None)


class Meanwhile:
    """A register in which something happens before the next replacement."""

    def __init__(self, register, happens):
        self._register, self._happens = register, [happens]
        self.where = register.where
        self.replacements = 0

    def read(self):
        return self._register.read()

    def replace(self, expected, value):
        self.replacements += 1
        if self._happens:
            self._happens.pop()()
        return self._register.replace(expected, value)


def test_a_leader_that_slept_before_writing_is_fenced(register):
    new = LatestPointer(register)
    sleeper = LatestPointer(Meanwhile(register, lambda: new.take_over(2)))
    with pytest.raises(FencedError):
        sleeper.write(1, 9, "chk-9")
    assert told(new.read()) == (2, None, None)


def test_a_leader_that_is_overtaken_by_an_older_one_tries_again(register):
    LatestPointer(register).write(1, 7, "chk-7")
    old = LatestPointer(register)
    interrupted = Meanwhile(register, lambda: old.write(1, 8, "chk-8"))
    assert told(LatestPointer(interrupted).take_over(2)) == (1, 8, "chk-8")
    assert interrupted.replacements == 2


def test_leaders_racing_end_with_the_newest(register):
    def write(token):
        try:
            LatestPointer(register).write(token, 10 + token, f"chk-{10 + token}")
        except FencedError:
            return token
        return 0

    with ThreadPoolExecutor(8) as pool:
        fenced = list(pool.map(write, range(1, 9)))
    assert fenced[-1] == 0
    assert told(LatestPointer(register).read()) == (8, 18, "chk-18")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"no json", "holds no latest"),
        (b"\xff\xfe", "holds no latest"),
        (b'{"token": "1"}', "holds no latest"),
        (b'{"token": 1, "surprise": 2}', "surprise"),
        (b'{"token": 1, "format": 2}', "format 2 is newer than this program"),
    ],
)
def test_what_is_no_pointer_is_not_taken_for_one(value, problem):
    storage = MemoryStorage()
    register = StorageRegister(storage, "latest")
    register.replace(None, value)
    with pytest.raises(CorruptionError, match=problem) as raised:
        LatestPointer(register).read()
    assert "memory:/latest" in str(raised.value)


def test_a_store_that_does_not_answer(tmp_path, monkeypatch):
    pointer = LatestPointer(StorageRegister(LocalStorage(tmp_path), "latest"))

    def full(self, name, data):
        raise UnavailableError("storage", "here", "disk full")

    monkeypatch.setattr(LocalStorage, "create", full)
    with pytest.raises(UnavailableError, match="disk full"):
        pointer.write(1, 1, "chk-1")
