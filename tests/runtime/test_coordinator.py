"""When a checkpoint is due, overdue or one failure too many: a state machine and a clock that the test owns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import CorruptionError, FencedError, StateStoreError, UnavailableError
from statestore_runtime import CheckpointFailedError
from statestore_runtime.jobmanager.coordinator import CheckpointCoordinator


class Clock:
    def __init__(self):
        self.now = 1000.0

    def time(self):
        raise AssertionError("only monotonic time counts")

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        raise AssertionError("the coordinator does not wait")


@pytest.fixture
def clock():
    return Clock()


def coordinator(clock, **settings):
    return CheckpointCoordinator(clock, **{"interval_seconds": 10.0, **settings})


def after(clock, seconds, question):
    clock.now += seconds
    return question()


DOWN = UnavailableError("storage", "s3://bucket", "no answer")


def test_the_first_comes_one_interval_after_the_start(clock):
    it = coordinator(clock)
    assert not it.is_due()
    assert not after(clock, 9.99, it.is_due)
    assert after(clock, 0.01, it.is_due)


def test_the_interval_runs_from_beginning_to_beginning(clock):
    it = coordinator(clock)
    clock.now += 10
    it.begin()
    clock.now += 7
    it.complete()
    assert not after(clock, 2.99, it.is_due)
    assert after(clock, 0.01, it.is_due)


def test_a_checkpoint_longer_than_the_interval_is_followed_at_once(clock):
    it = coordinator(clock)
    it.begin()
    assert not after(clock, 25, it.is_due)
    it.complete()
    assert it.is_due()


def test_none_is_due_while_one_is_pending(clock):
    it = coordinator(clock)
    it.begin()
    assert it.is_pending
    assert not after(clock, 1e9, it.is_due)
    with pytest.raises(AssertionError):
        it.begin()


def test_only_a_pending_one_can_end(clock):
    it = coordinator(clock)
    for end in (it.complete, lambda: it.fail(DOWN)):
        with pytest.raises(AssertionError):
            end()


def test_no_interval_is_no_checkpoint_by_the_clock(clock):
    it = coordinator(clock, interval_seconds=0.0)
    assert not after(clock, 1e9, it.is_due)
    it.begin()  # the final one
    it.complete()
    assert it.completed == 1


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_pause_runs_from_any_end_to_the_beginning(clock, ends_well):
    it = coordinator(clock, min_pause_seconds=30.0, tolerable_failed=1)
    assert it.seconds_to_pause() == 0
    clock.now += 10
    it.begin()
    clock.now += 5
    it.complete() if ends_well else it.fail(DOWN)
    assert it.seconds_to_pause() == 30
    assert not after(clock, 29, it.is_due)
    assert it.seconds_to_pause() == 1
    assert after(clock, 1, it.is_due)
    assert after(clock, 1000, it.seconds_to_pause) == 0


def test_a_pause_shorter_than_the_interval_delays_nothing(clock):
    it = coordinator(clock, min_pause_seconds=3.0)
    it.begin()
    clock.now += 1
    it.complete()
    assert not after(clock, 8.5, it.is_due)
    assert after(clock, 0.5, it.is_due)


def test_the_timeout_runs_from_the_beginning(clock):
    it = coordinator(clock, timeout_seconds=60.0, tolerable_failed=1)
    assert not after(clock, 1000, it.is_overdue)
    it.begin()
    assert not after(clock, 59.5, it.is_overdue)
    assert after(clock, 0.5, it.is_overdue)
    assert not after(clock, 59.5, it.is_stuck)
    assert after(clock, 0.5, it.is_stuck)
    it.fail(DOWN)
    assert not it.is_stuck()
    assert not it.is_overdue()
    it.begin()
    assert not it.is_overdue()


@pytest.mark.parametrize("tolerable", [0, 1, 3])
def test_as_many_failures_in_a_row_as_are_tolerated(clock, tolerable):
    it = coordinator(clock, tolerable_failed=tolerable)
    for _ in range(2):
        for _ in range(tolerable):
            it.begin()
            it.fail(DOWN)
        it.begin()
        it.complete()  # begins the count again
    for _ in range(tolerable):
        it.begin()
        it.fail(DOWN)
    it.begin()
    with pytest.raises(CheckpointFailedError, match="no answer") as caught:
        it.fail(DOWN)
    assert (caught.value.failures, caught.value.reason, caught.value.exit_code) == (tolerable + 1, DOWN, 3)
    assert caught.value.__cause__ is DOWN
    assert (it.completed, it.failed) == (2, 3 * tolerable + 1)
    assert not it.is_pending


def test_fenced_is_raised_however_many_may_fail(clock):
    it = coordinator(clock, tolerable_failed=1000)
    fenced = FencedError("s3://bucket", 1, 2)
    it.begin()
    with pytest.raises(FencedError) as caught:
        it.fail(fenced)
    assert caught.value is fenced
    assert not it.is_pending


@pytest.mark.parametrize("error", [CorruptionError("log", "bad checksum"), StateStoreError("other")])
def test_what_waiting_can_not_mend_is_raised_itself(clock, error):
    it = coordinator(clock, tolerable_failed=1)
    it.begin()
    it.fail(error)
    it.begin()
    with pytest.raises(type(error)) as caught:
        it.fail(error)
    assert caught.value is error


def test_a_foreign_exception_is_a_failure_like_others(clock):
    it = coordinator(clock, tolerable_failed=1)
    it.begin()
    it.fail(ZeroDivisionError("a bug"))
    it.begin()
    with pytest.raises(CheckpointFailedError, match="2 checkpoints in a row failed: a bug"):
        it.fail(ZeroDivisionError("a bug"))


settings = st.fixed_dictionaries(
    {
        "interval_seconds": st.integers(0, 20),
        "min_pause_seconds": st.integers(0, 20),
        "timeout_seconds": st.integers(1, 20),
        "tolerable_failed": st.integers(0, 3),
    }
)
steps = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["look", "complete", "fail"])), max_size=60)


@given(settings, steps)
def test_whatever_happens_the_rules_hold(settings, steps):
    """Against times written down by the test: one at a time, interval, pause, timeout, failures in a row."""
    clock = Clock()
    it = CheckpointCoordinator(clock, **settings)
    begun, ended, pending, in_a_row = clock.now, None, False, 0
    for seconds, action in steps:
        clock.now += seconds
        paused = ended is None or clock.now >= ended + settings["min_pause_seconds"]
        may_begin = settings["interval_seconds"] > 0 and not pending and paused
        assert it.is_due() == (may_begin and clock.now >= begun + settings["interval_seconds"])
        assert it.is_pending == pending
        assert it.is_overdue() == (pending and clock.now >= begun + settings["timeout_seconds"])
        if action == "look":
            if it.is_due():
                it.begin()
                begun, pending = clock.now, True
        elif pending:
            ended, pending = clock.now, False
            if action == "complete":
                it.complete()
                in_a_row = 0
                continue
            in_a_row += 1
            if in_a_row <= settings["tolerable_failed"]:
                it.fail(DOWN)
                continue
            with pytest.raises(CheckpointFailedError):
                it.fail(DOWN)
            return


@given(st.floats(0, 1e9), st.floats(0.001, 1e6), st.floats(0.001, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_whoever_sleeps_until_a_moment_finds_that_it_has_come(start, interval, timeout, pause, share):
    def wait(question):
        clock.now += it.seconds_to_due() * share  # from wherever it wakes up in between
        for _ in range(3):
            if question():
                return
            left = it.seconds_to_due()
            assert clock.now + left > clock.now
            clock.now += left
        assert question()

    clock = Clock()
    clock.now = start
    it = coordinator(clock, interval_seconds=interval, timeout_seconds=timeout, min_pause_seconds=pause)
    wait(it.is_due)
    it.begin()
    wait(it.is_overdue)
    wait(it.is_stuck)
    it.complete()
    wait(it.is_due)
