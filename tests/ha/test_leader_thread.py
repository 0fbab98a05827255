"""An election in its own thread: a store that hangs stalls nobody, and ends a leadership by the clock."""

from __future__ import annotations

import threading

import pytest

from statestore import ClosedError, CorruptionError, UnavailableError
from statestore.io import MemoryStorage
from statestore.testing.clock import FakeClock
from statestore_runtime.ha import leader_thread
from statestore_runtime.ha.election import Election
from statestore_runtime.ha.leader_thread import HANGING_MAX, LeaderThread, LeaseClock
from statestore_runtime.ha.lease import RegisterLeaseStore
from statestore_runtime.ha.storage_register import StorageRegister

FOREVER = 30.0
"""Seconds after which a test that waits for something fails; nothing takes so long."""


class Gate:
    """A lease store that hangs, or fails, when it is told to."""

    def __init__(self, storage):
        self._inner = RegisterLeaseStore(StorageRegister(storage, "lease"))
        self.is_open, self.hanging = threading.Event(), threading.Semaphore(0)
        self.is_open.set()
        self.error, self.calls = None, 0

    def _pass(self):
        self.calls += 1
        if not self.is_open.is_set():
            self.hanging.release()
            self.is_open.wait()
        if self.error is not None:
            raise self.error

    def read(self):
        self._pass()
        return self._inner.read()

    def replace(self, expected, lease):
        self._pass()
        return self._inner.replace(expected, lease)


@pytest.fixture
def storage():
    return MemoryStorage()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def start(storage, clock, monkeypatch):
    monkeypatch.setattr(leader_thread, "LOOK_SECONDS", 0.002)
    started = []

    def make(name="a", store=None, **options):
        election = Election(clock, name, address=f"{name}:1", lease_seconds=10.0, renew_seconds=3.0)
        gate = store or Gate(storage)
        thread = LeaderThread(election, gate, **options)
        thread.gate = gate
        started.append(thread)
        thread.start()
        return thread

    yield make
    for thread in started:
        thread.gate.is_open.set()
        thread.close(FOREVER)
        assert not thread._thread.is_alive()


class Lost:
    """For `on_lost`: waits for it, and keeps the tokens."""

    def __init__(self):
        self.tokens, self._some = [], threading.Semaphore(0)

    def __call__(self, token):
        self.tokens.append(token)
        self._some.release()

    def wait(self):
        assert self._some.acquire(timeout=FOREVER)


def until(condition):
    """Wait for what is about to happen."""
    done = threading.Event()
    for _ in range(round(FOREVER / 0.002)):
        if condition():
            return
        done.wait(0.002)
    raise AssertionError("it does not happen")


def is_idle(thread):
    """Whether nothing is to be done before the clock moves."""
    return thread._election._in_flight is None and thread._election.seconds_to_next() > 0


def pass_time(clock, thread, condition):
    """Let time pass until something is so, in steps in which the thread keeps up."""
    for _ in range(1000):
        until(lambda: is_idle(thread))
        if condition():
            return
        clock.advance(0.5)
    raise AssertionError("it does not happen")


def test_the_first_leads_and_the_second_waits(start):
    first = start("a")
    assert first.wait_for_leadership(FOREVER) == 1
    assert (first.is_leader(), first.token) == (True, 1)
    second = start("b")
    until(lambda: second.leader is not None)
    assert second.leader.address == "a:1"
    assert second.wait_for_leadership(0.0) is None
    assert not second.is_leader()


def test_it_renews(start, clock):
    lost = Lost()
    first = start("a", on_lost=lost)
    assert first.wait_for_leadership(FOREVER) == 1
    calls, start_seconds = first.gate.calls, clock.monotonic()
    pass_time(clock, first, lambda: clock.monotonic() - start_seconds >= 60.0)
    assert (first.token, lost.tokens) == (1, [])
    assert first.gate.calls - calls == 20


def test_closing_lets_the_other_in_at_once(start, clock):
    lost = Lost()
    first = start("a", on_lost=lost)
    assert first.wait_for_leadership(FOREVER) == 1
    second = start("b")
    until(lambda: second.leader is not None)
    first.close(FOREVER)
    assert not first.is_leader()
    clock.advance(0.7)
    assert second.wait_for_leadership(FOREVER) == 2
    assert lost.tokens == []
    with pytest.raises(ClosedError):
        first.wait_for_leadership(FOREVER)
    first.close()


@pytest.mark.parametrize("seconds", [8.0, 100.0])
def test_a_hanging_store_ends_the_leadership_by_the_clock(start, clock, seconds):
    lost = Lost()
    first = start("a", on_lost=lost)
    assert first.wait_for_leadership(FOREVER) == 1
    first.gate.is_open.clear()
    clock.advance(3.0)
    assert first.gate.hanging.acquire(timeout=FOREVER)
    assert first.is_leader()
    clock.advance(seconds - 3.0)
    assert not first.is_leader()  # at once, whatever the thread does
    lost.wait()
    assert lost.tokens == [1]
    second = start("b")
    pass_time(clock, second, second.is_leader)
    assert second.token == 2
    first.gate.is_open.set()
    until(lambda: not first._unanswered)
    assert not first.is_leader()
    assert lost.tokens == [1]


def test_only_so_many_calls_hang_at_a_time(start, clock):
    first = start("a")
    assert first.wait_for_leadership(FOREVER) == 1
    first.gate.is_open.clear()
    for _ in range(HANGING_MAX):
        until(lambda: clock.advance(0.1) or first.gate.hanging.acquire(blocking=False))
    clock.advance(10.0)  # the last one is given up
    calls = first.gate.calls
    for _ in range(100):
        until(lambda: is_idle(first))
        clock.advance(5.0)
    assert first.gate.calls == calls
    first.gate.is_open.set()
    until(lambda: not first._unanswered)
    pass_time(clock, first, first.is_leader)
    assert first.token > 1


def test_an_outage_is_waited_for(start, clock):
    gate = Gate(MemoryStorage())
    gate.error = UnavailableError("store", "here", "down")
    first = start("a", gate)
    pass_time(clock, first, lambda: gate.calls > 5)
    assert first.wait_for_leadership(0.0) is None
    gate.error = None
    pass_time(clock, first, first.is_leader)
    assert first.token == 1


def test_what_no_waiting_mends_ends_the_election(start, clock):
    lost = Lost()
    first = start("a", on_lost=lost)
    assert first.wait_for_leadership(FOREVER) == 1
    first.gate.error = CorruptionError("lease", "it is no lease")
    clock.advance(3.0)
    lost.wait()
    assert not first.is_leader()
    with pytest.raises(CorruptionError, match="it is no lease"):
        first.wait_for_leadership(FOREVER)


def test_each_leadership_that_ends_is_told_once(start, clock, storage):
    lost = Lost()
    first = start("a", on_lost=lost)
    for token in (1, 2, 3):
        pass_time(clock, first, first.is_leader)
        assert first.token == token
        first.gate.is_open.clear()
        clock.advance(9.0)
        lost.wait()
        first.gate.is_open.set()
    assert lost.tokens == [1, 2, 3]


def test_a_callback_that_fails_or_closes_harms_nothing(start, clock):
    called = Lost()

    def fail(token):
        called(token)
        raise RuntimeError("broken")

    first = start("a", on_lost=fail)
    assert first.wait_for_leadership(FOREVER) == 1
    clock.advance(9.0)
    called.wait()
    pass_time(clock, first, first.is_leader)

    second = start("b", on_lost=lambda token: second.close() or called(token))
    first.close(FOREVER)
    pass_time(clock, second, second.is_leader)
    clock.advance(9.0)
    called.wait()
    with pytest.raises(ClosedError):
        second.wait_for_leadership(FOREVER)


def test_closing_does_not_wait_for_a_store_that_hangs(start, clock):
    first = start("a")
    assert first.wait_for_leadership(FOREVER) == 1
    first.gate.is_open.clear()
    clock.advance(3.0)
    assert first.gate.hanging.acquire(timeout=FOREVER)
    first.close(0.0)
    assert not first.is_leader()


def test_one_that_was_never_started_can_be_closed(storage, clock):
    election = Election(clock, "a", lease_seconds=10.0, renew_seconds=3.0)
    LeaderThread(election, Gate(storage)).close()


def test_the_clock_of_leases_goes_on_while_the_machine_sleeps():
    import time

    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = LeaseClock().monotonic()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)
