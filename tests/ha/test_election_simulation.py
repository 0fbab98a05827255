"""Many elections in a simulated world: whatever stalls, dies or is lost, there are never two leaders, and in the end there is one."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import pytest
from msgspec.structs import replace as lease_replace

from statestore.errors import UnavailableError
from statestore_runtime.ha.election import Election, Read, Replace
from tests.conftest import SOAK_EXAMPLES
from tests.ha.simulated import CLOCK_RATES, LEASE_SECONDS, RENEW_SECONDS, Candidate, Judge, SimulatedStore
from tests.simulation.world import World, explore

SEEDS = 10 * SOAK_EXAMPLES or 700
TROUBLE_SECONDS = 40.0
SLOWEST_SECONDS = 1.2 * LEASE_SECONDS
PATIENCE_SECONDS = SLOWEST_SECONDS + (LEASE_SECONDS + RENEW_SECONDS) / CLOCK_RATES[0]
"""What is on its way when peace begins has its effect, or is given up; then the lease that is there runs out."""


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, logger="statestore.ha")


class Trouble:
    """What befalls the candidates and their store."""

    def __init__(self, world, store, judge, election):
        self._world, self._store, self._judge, self._election = world, store, judge, election
        self._names = itertools.count(1)
        for _ in range(world.random.randint(1, 4)):
            self.start()
        self._befall = [self._pause, self._pause, self._kill, self._resign, self._outage, self._slowness, self._losses]
        self._later(self._next, (0.0, 5.0))

    def start(self):
        Candidate(self._world, self._store, self._judge, f"c{next(self._names)}", self._election)

    def _later(self, action, span):
        self._world.schedule(self._world.between(span), action)

    def _next(self):
        if self._world.now < TROUBLE_SECONDS:
            self._world.random.choice(self._befall)()
            self._later(self._next, (0.0, 5.0))

    def _victim(self):
        """Anybody; the leader as often as not."""
        alive = self._judge.leaders() if self._world.chance(0.5) else self._judge.alive()
        return self._world.random.choice(alive) if alive else None

    def _pause(self):
        if (victim := self._victim()) is not None:
            victim.process.pause()
            self._later(victim.process.resume, (0.1, 2.5 * LEASE_SECONDS))

    def _kill(self):
        if (victim := self._victim()) is not None:
            victim.process.kill()
            self._later(self.start, (0.0, LEASE_SECONDS))

    def _resign(self):
        if (victim := self._victim()) is not None and not victim.process.is_paused:
            victim.resign()
            self._later(self.start, (0.0, LEASE_SECONDS))

    def _outage(self):
        self._disturb(is_down=True, silence=self._world.random.choice([0.0, 0.5, 1.0]))

    def _slowness(self):
        self._disturb(delay_seconds=(0.0, self._world.between((0.1, SLOWEST_SECONDS))))

    def _losses(self):
        self._disturb(loss=self._world.between((0.05, 0.6)), silence=self._world.random.choice([0.0, 0.3]))

    def _disturb(self, **how):
        self._world.note("store", how)
        for name, value in how.items():
            setattr(self._store, name, value)
        self._later(self._store.be_well, (0.5, 1.5 * LEASE_SECONDS))


def simulate(world: World, election=Election):
    """Trouble, then peace, in which there must soon be one leader, who stays. Returns the trace and all tokens."""
    store, judge = SimulatedStore(world), Judge(world)
    trouble = Trouble(world, store, judge, election)
    world.run(until=TROUBLE_SECONDS)
    store.be_well()
    for candidate in judge.alive():
        candidate.process.resume()
    trouble.start()
    world.run(until=world.now + PATIENCE_SECONDS)
    assert judge.leaders(), "nobody leads in the end"
    (leader,) = judge.leaders()
    acts = len(judge.acts)
    for _ in range(4):
        world.run(until=world.now + RENEW_SECONDS / 2)
        assert judge.leaders() == [leader], "the leader has changed in peace"
    known = {candidate.election.leader.token for candidate in judge.alive()}
    assert known == {leader.election.token}, "not everybody knows the leader"
    assert len(judge.acts) > acts, "the leader does nothing"
    assert sorted(set(store.tokens)) == store.tokens, "tokens don't grow"
    return world.trace, store.tokens


def test_never_two_leaders_and_in_the_end_one():
    runs = explore(simulate, range(SEEDS))
    changes = sum(len(tokens) for _, tokens in runs)
    assert changes > 3 * SEEDS, "too little happens"


def test_the_same_seed_gives_the_same_trace():
    (first, _), (again, _), (other, _) = explore(simulate, [11, 11, 12])
    assert first == again != other
    assert len(first) > 10


# That the simulation would notice: elections with a mistake each.


class UsesAllOfItsLease(Election):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.usable_seconds = self.lease_seconds


class CountsItsLeaseFromTheAnswer(Election):
    def _after_replace(self, request, was_set, now):
        super()._after_replace(replace(request, begun=now), was_set, now)


class CountsAnothersLeaseFromTheQuestion(Election):
    def _after_read(self, lease, now):
        super()._after_read(lease, now)
        self._seen_since = min(self._seen_since, self._asked)

    def request(self):
        request = super().request()
        self._asked = request.begun if isinstance(request, Read) else getattr(self, "_asked", None)
        return request


class TakesWhatItHasNotWaitedFor(Election):
    def _is_free(self, lease, now):
        return super()._is_free(lease, now + 0.4 * self.lease_seconds)


class TrustsALostAnswer(Election):
    def answer(self, request, outcome):
        was_lost = isinstance(request, Replace) and isinstance(outcome, UnavailableError)
        super().answer(request, True if was_lost else outcome)


class RenewsWhatIsOver(Election):
    def _is_good(self, request):
        return True


class KeepsLeading(Election):
    def _end_leadership_if_over(self, now):
        pass

    @property
    def token(self):
        return self._leadership.token if self._leadership is not None else None


class NeverGivesUpARequest(Election):
    def request(self):
        return None if self._in_flight is not None else super().request()

    def seconds_to_next(self):
        return super().seconds_to_next() or self.retry_seconds


class TakesTheSameTokenAgain(Election):
    def _new_lease(self):
        return lease_replace(super()._new_lease(), token=self._greatest_token or 1)

    def _is_good(self, request):
        return True


UNSAFE = "two leaders|token \\d+ after|came back"


@pytest.mark.parametrize(
    ("mistaken", "noticed"),
    [
        (UsesAllOfItsLease, UNSAFE),
        (CountsItsLeaseFromTheAnswer, UNSAFE),
        (CountsAnothersLeaseFromTheQuestion, UNSAFE),
        (TakesWhatItHasNotWaitedFor, UNSAFE),
        (TrustsALostAnswer, UNSAFE),
        (RenewsWhatIsOver, UNSAFE),
        (KeepsLeading, UNSAFE),
        (TakesTheSameTokenAgain, UNSAFE),
        (NeverGivesUpARequest, "not everybody knows"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_mistake_would_be_noticed(mistaken, noticed):
    with pytest.raises(AssertionError, match=rf"SIMULATION_SEED=\d+: .*({noticed})"):
        explore(lambda world: simulate(world, mistaken), range(SEEDS))
