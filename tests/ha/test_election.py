"""The election's rules one by one, by a clock that only moves when told so."""

from __future__ import annotations

import pytest

from statestore.errors import ConfigError, UnavailableError
from statestore.testing.clock import FakeClock
from statestore_runtime.ha.election import Election, Read, Replace
from statestore_runtime.ha.lease import Lease


class MemoryStore:
    """A lease in memory that can be made to fail: before it does anything ("down"), or after ("lost")."""

    def __init__(self):
        self.lease, self.trouble, self.writes = None, None, 0

    def read(self):
        if self.trouble:
            raise UnavailableError("store", "here", self.trouble)
        return self.lease

    def replace(self, expected, lease):
        self.writes += 1
        if self.trouble == "down":
            raise UnavailableError("store", "here", "down")
        was_set = self.lease == expected
        if was_set:
            self.lease = lease
        if self.trouble == "lost":
            raise UnavailableError("store", "here", "lost")
        return was_set


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def candidate(clock):
    def make(name="a", **options):
        return Election(options.pop("clock", clock), name, **{"lease_seconds": 10.0, "renew_seconds": 3.0, **options})

    return make


def run(clock, seconds, store, *elections):
    """Let time pass in small steps, each election doing what is due before, between and after them."""
    for step in range(round(seconds * 10) + 1):
        clock.advance(0.1 if step else 0.0)
        for election in elections:
            election.tick(store)


def test_the_first_one_leads_at_once_and_the_second_knows_where(store, candidate):
    first, second = candidate("a", address="host-a:1"), candidate("b")
    assert (first.role, first.token, first.leader) == ("standby", None, None)
    assert first.tick(store) == pytest.approx(3.0)  # to its renewal
    assert second.tick(store) == pytest.approx(0.6)  # to its next look
    assert (first.role, first.is_leader(), first.token) == ("leader", True, 1)
    assert (second.role, second.is_leader(), second.token) == ("standby", False, None)
    assert second.leader.address == "host-a:1"


def test_tokens_are_above_what_is_known(store, candidate, clock):
    first = candidate("a", above=41)
    first.tick(store)
    assert first.token == 42
    second = candidate("b")
    run(clock, 10.7, store, second)
    assert second.token == 43


def test_a_leader_that_renews_leads_on_with_its_token(store, candidate, clock):
    first, second = candidate("a"), candidate("b")
    run(clock, 60, store, first, second)
    assert (first.token, second.token) == (1, None)
    assert 18 <= store.writes <= 21


def test_a_dead_leader_is_replaced_after_the_lease_and_not_before(store, candidate, clock):
    first, second = candidate("a"), candidate("b")
    run(clock, 5, store, first, second)  # renewed at 3.1, seen then
    run(clock, 8.0, store, second)
    assert not second.is_leader()
    assert not first.is_leader()  # by its own clock
    run(clock, 0.7, store, second)
    assert second.token == 2


def test_a_leader_steps_down_before_another_can_take_over(store, candidate, clock):
    first = candidate("a")
    first.tick(store)
    clock.advance(7.99)
    assert first.is_leader()
    clock.advance(0.02)
    assert not first.is_leader()
    assert (first.role, first.token) == ("standby", None)


def test_a_standby_waits_a_whole_lease_from_when_it_has_seen_it(store, candidate, clock):
    candidate("a").tick(store)
    clock.advance(9.0)  # the lease is old, but nobody knows how old
    late = candidate("b")
    late.tick(store)
    run(clock, 9.9, store, late)
    assert not late.is_leader()
    run(clock, 0.2, store, late)
    assert late.token == 2


def test_the_holder_says_how_long_its_lease_is(store, candidate, clock):
    candidate("a", lease_seconds=100.0, renew_seconds=30.0).tick(store)
    other = candidate("b")
    run(clock, 99.9, store, other)
    assert not other.is_leader()
    run(clock, 0.2, store, other)
    assert other.is_leader()


def test_a_lease_is_counted_from_before_it_was_written(candidate, clock):
    election = candidate()
    read = election.request()
    election.answer(read, None)
    write = election.request()
    assert (type(read), type(write)) == (Read, Replace)
    clock.advance(7.0)
    election.answer(write, True)
    assert election.token == 1
    assert election.seconds_to_next() == 0.0  # the renewal is overdue
    clock.advance(1.0)
    assert not election.is_leader()


def test_a_lease_that_took_too_long_to_write_makes_no_leader(store, candidate, clock):
    election = candidate()
    election.answer(election.request(), None)
    write = election.request()
    clock.advance(8.5)
    store.lease = write.lease
    election.answer(write, True)
    assert not election.is_leader()
    election.tick(store)
    assert election.token == 2


def test_a_woken_leader_knows_at_once_and_never_comes_back_with_its_token(store, candidate, clock):
    first, second = candidate("a"), candidate("b")
    first.tick(store)
    renewal = None
    clock.advance(3.0)
    renewal = first.request()  # stopped while this is on its way
    store.replace(renewal.expected, renewal.lease)
    clock.advance(20.0)
    assert not first.is_leader()
    first.answer(renewal, True)
    assert not first.is_leader()
    first.tick(store)
    assert first.token == 2
    run(clock, 1, store, second)
    assert second.leader.token == 2


def test_a_renewal_that_is_confirmed_too_late_does_not_bring_a_leadership_back(store, candidate, clock):
    election = candidate()
    election.tick(store)
    clock.advance(3.0)
    renewal = election.request()
    assert election.seconds_to_next() == pytest.approx(
        5.0
    )  # when the leadership ends, if there is no answer until then
    clock.advance(5.5)
    assert not election.is_leader()
    election.answer(renewal, store.replace(renewal.expected, renewal.lease))
    assert not election.is_leader()
    election.tick(store)
    assert election.token == 2


def test_whose_leadership_ended_leads_again_at_once_if_nobody_else_does(store, candidate, clock):
    election = candidate()
    election.tick(store)
    store.trouble = "down"
    run(clock, 9, store, election)
    assert not election.is_leader()
    store.trouble = None
    run(clock, 0.7, store, election)
    assert election.token == 2


def test_a_lease_of_long_ago_that_comes_back_is_nobodys(store, candidate, clock):
    """A store that was rolled back: the leader does not take its own older lease for the present one, and tokens grow on."""
    first, second = candidate("a", can_forget=True), candidate("b", can_forget=True)
    run(clock, 10.5, store, first)
    old = store.lease
    assert first.token == 1
    store.trouble = "down"
    run(clock, 9, store, first)
    store.trouble = None
    run(clock, 2, store, first, second)
    assert first.token == 2
    store.lease = old
    clock.advance(3.0)
    renewal = first.request()
    first.answer(renewal, store.replace(renewal.expected, renewal.lease))
    first.answer(first.request(), store.read())
    assert not first.is_leader()
    run(clock, 10.5, store, second)
    assert second.token == 3


def test_who_woke_up_in_the_middle_of_taking_over_changes_nothing(store, candidate, clock):
    candidate("dead").tick(store)
    first, second = candidate("a"), candidate("b")
    run(clock, 9.9, store, first, second)
    clock.advance(0.2)
    request = first.request()
    while isinstance(request, Read):
        first.answer(request, store.read())
        request = first.request()
    run(clock, 20, store, second)  # while the first one stands still
    assert second.token == 2
    first.answer(request, store.replace(request.expected, request.lease))
    first.tick(store)
    assert (first.role, first.leader.holder) == ("standby", "b")


@pytest.mark.parametrize("trouble", ["down", "lost"])
def test_a_leader_outlives_an_outage_that_is_short(store, candidate, clock, trouble):
    first, second = candidate("a"), candidate("b")
    run(clock, 2, store, first, second)
    store.trouble = trouble
    run(clock, 4, store, first, second)
    store.trouble = None
    run(clock, 20, store, first, second)
    assert (first.token, second.token) == (1, None)


@pytest.mark.parametrize("trouble", ["down", "lost"])
def test_an_outage_that_is_long_ends_the_leadership(store, candidate, clock, trouble):
    first, second = candidate("a"), candidate("b")
    run(clock, 2, store, first, second)
    store.trouble = trouble
    run(clock, 30, store, first, second)
    assert (first.token, second.token) == (None, None)
    store.trouble = None
    run(clock, 15, store, first, second)
    assert sorted([first.token or 0, second.token or 0])[0] == 0
    assert max(first.token or 0, second.token or 0) >= 2


def test_who_is_not_sure_reads_before_it_writes_again(store, candidate, clock):
    election = candidate()
    election.answer(election.request(), None)
    write = election.request()
    store.replace(write.expected, write.lease)
    election.answer(write, UnavailableError("store", "here", "lost"))
    assert not election.is_leader()
    clock.advance(1.0)
    assert isinstance(election.request(), Read)


def test_a_lost_lease_ends_the_leadership(store, candidate, clock):
    election = candidate()
    election.tick(store)
    store.lease = Lease(token=7, holder="somebody", sequence=1, seconds=10.0)
    clock.advance(3.0)
    election.tick(store)
    assert not election.is_leader()
    run(clock, 10.5, store, election)
    assert election.token == 8


def test_a_store_that_forgets_is_not_believed_to_be_new(store, candidate, clock):
    first, second = candidate("a", can_forget=True), candidate("b", can_forget=True)
    run(clock, 9.8, store, first)
    assert not first.is_leader()
    run(clock, 0.3, store, first)
    assert first.token == 1
    run(clock, 4, store, first, second)
    store.lease = None
    run(clock, 5, store, first, second)
    assert (first.token, second.token) == (None, None)
    run(clock, 6, store, second)
    assert second.token == 2  # it has seen 1


def test_resigning_lets_a_standby_in_at_once(store, candidate, clock):
    first, second = candidate("a"), candidate("b")
    run(clock, 1, store, first, second)
    first.resign()
    assert not first.is_leader()
    assert not first.is_over
    first.tick(store)
    assert first.is_over
    assert first.request() is None
    run(clock, 0.7, store, second)
    assert second.token == 2
    assert candidate("c").leader is None


def test_a_resigned_lease_has_no_leader(store, candidate):
    first, second = candidate("a"), candidate("b")
    first.tick(store)
    first.resign()
    first.tick(store)
    second.answer(second.request(), store.read())
    assert second.leader is None


def test_resigning_as_a_standby_writes_nothing(store, candidate):
    first, second = candidate("a"), candidate("b")
    first.tick(store)
    second.tick(store)
    writes = store.writes
    second.resign()
    second.tick(store)
    assert second.is_over
    assert (store.writes, store.lease.holder, store.lease.released) == (writes, "a", False)
    assert first.is_leader()


def test_resigning_while_a_request_is_on_its_way_comes_after_it(store, candidate, clock):
    election = candidate()
    election.answer(election.request(), None)
    write = election.request()
    election.resign()
    assert election.request() is None
    election.answer(write, store.replace(write.expected, write.lease))
    assert not election.is_leader()
    assert not election.is_over
    election.tick(store)
    assert election.is_over
    assert store.lease.released


def test_resigning_without_the_store_is_over_as_well(store, candidate):
    election = candidate()
    election.tick(store)
    store.trouble = "down"
    election.resign()
    election.tick(store)
    assert election.is_over
    assert not store.lease.released


def test_a_request_without_an_answer_is_given_up_and_its_answer_means_nothing(store, candidate, clock):
    election = candidate()
    election.answer(election.request(), None)
    hanging = election.request()
    assert election.seconds_to_next() == pytest.approx(10.0)
    clock.advance(9.9)
    assert election.request() is None
    clock.advance(0.2)
    assert election.request() is None  # given up; the next one comes a little later
    clock.advance(1.0)
    again = election.request()
    assert isinstance(again, Read)
    election.answer(hanging, True)
    assert not election.is_leader()
    assert election.request() is None  # it waits for the answer to the other one
    election.answer(again, None)
    assert election.request().lease.sequence > hanging.lease.sequence


@pytest.mark.parametrize("renew", [0.0, -1.0, 4.1, 10.0])
def test_an_interval_that_leaves_no_second_try_is_refused(candidate, renew):
    with pytest.raises(ConfigError, match=r"high-availability\.renew-interval.*not between 0 and 4 s"):
        candidate(renew_seconds=renew)


def test_clocks_a_fifth_apart_are_no_danger(store):
    """The slowest leader against the fastest standby."""
    slow, fast = FakeClock(), FakeClock()
    leader = Election(slow, "slow", lease_seconds=10.0, renew_seconds=3.0)
    standby = Election(fast, "fast", lease_seconds=10.0, renew_seconds=3.0)
    leader.tick(store)
    for _ in range(2000):
        slow.advance(0.009)
        fast.advance(0.011)
        standby.tick(store)
        assert not (leader.is_leader() and standby.is_leader())
    assert standby.is_leader()
