"""Who reads which split, and who has been silent for too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from statestore.testing.clock import FakeClock
from statestore_runtime.jobmanager.heartbeats import HeartbeatMonitor
from statestore_runtime.jobmanager.splits import SplitAssigner, restored_share

names = st.lists(st.text("abcdef", min_size=1, max_size=3), unique=True, max_size=12)


@given(names, st.integers(1, 5))
def test_restored_splits_have_one_owner_each_and_workers_about_the_same_number(splits, parallelism):
    shares = [restored_share(splits, subtask, parallelism) for subtask in range(parallelism)]
    assert sorted(split for share in shares for split in share) == sorted(splits)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shares == [restored_share(reversed(splits), subtask, parallelism) for subtask in range(parallelism)]


@given(names, st.lists(names, max_size=4), st.integers(1, 5))
def test_each_new_split_is_assigned_once_and_evenly(restored, discovered, parallelism):
    assigner = SplitAssigner(restored, parallelism)
    counts = [len(restored_share(restored, subtask, parallelism)) for subtask in range(parallelism)]
    known = set(restored)
    for splits in discovered:
        assigned = assigner.assign(splits)
        new = [split for split in splits if split not in known]
        assert sorted(split for share in assigned.values() for split in share) == sorted(new)
        known.update(new)
        for worker, share in assigned.items():
            assert share == [split for split in splits if split in share], "not in the order in which they were found"
            counts[worker] += len(share)
        assert max(counts) - min(counts) <= 1


def test_who_is_not_heard_for_the_time_out_is_silent():
    clock = FakeClock()
    monitor = HeartbeatMonitor(clock, 50.0)
    assert monitor.silent() is None and monitor.seconds_left() is None
    monitor.watch(3)
    clock.advance(20.0)
    monitor.heard(1)
    assert monitor.seconds_left() == 30.0
    clock.advance(30.0)
    assert monitor.silent() == 0
    monitor.ended(0)
    assert monitor.silent() == 2
    monitor.ended(2)
    assert monitor.silent() is None and monitor.seconds_left() == 20.0


def test_nobody_is_expected_who_is_not_watched():
    clock = FakeClock()
    monitor = HeartbeatMonitor(clock, 50.0)
    monitor.watch(2)
    monitor.forget()
    monitor.heard(1)
    clock.advance(100.0)
    assert monitor.silent() is None
    monitor.watch(1)
    assert monitor.silent() is None and monitor.seconds_left() == 50.0
