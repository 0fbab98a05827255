"""The record of a run: whole, and no leader's with a smaller token than that of the last one."""

from __future__ import annotations

import pytest

from statestore.errors import FencedError
from statestore.io import MemoryStorage
from statestore_runtime.ha import RunEnd, RunRecord, RunRecorder, StorageRegister


@pytest.fixture
def recorder():
    return RunRecorder(StorageRegister(MemoryStorage("memory:ha"), "run"))


def test_what_is_written_is_read(recorder):
    assert recorder.read() is None
    written = recorder.write(RunRecord(token=1, run="a"))
    assert recorder.read() == written
    end = RunEnd(state="failed", by="me", exit_code=11, problem="it broke", checkpoint=4)
    ended = recorder.write(RunRecord(token=1, run="a", parallelism=3, end=end))
    assert recorder.read() == ended
    assert (ended.end, ended.parallelism) == (end, 3)


def test_an_earlier_leader_changes_nothing(recorder):
    recorder.write(RunRecord(token=1, run="a"))
    after = recorder.write(RunRecord(token=3, run="a"))
    with pytest.raises(FencedError):
        recorder.write(RunRecord(token=2, run="b"))
    assert recorder.read() == after


def test_no_two_writings_are_alike(recorder):
    """Else a late writing of an earlier leader could replace what looks like what it read."""
    first = recorder.write(RunRecord(token=1, run="a"))
    assert recorder.write(RunRecord(token=1, run="a")) != first
