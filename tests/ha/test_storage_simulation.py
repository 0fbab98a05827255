"""Elections in a simulated world by a chain of objects in a storage, whose every operation is slow, fails, or outlives its caller."""

from __future__ import annotations

import contextlib
import logging

import pytest

from statestore.errors import UnavailableError
from statestore.io import MemoryStorage
from statestore_runtime.ha.election import Election
from statestore_runtime.ha.lease import RegisterLeaseStore
from statestore_runtime.ha.storage_register import StorageRegister
from tests.ha.simulated import CLOCK_RATES, LEASE_SECONDS, RENEW_SECONDS, Judge
from tests.simulation.world import World, explore

SEEDS = 120
BLOCK_VALUES = 2
"""So few that who sleeps for a lease or two finds all that it knew removed."""
TROUBLE_SECONDS = 120.0
PEACE_SECONDS = 4 * LEASE_SECONDS
SHORT, LONG = (0.0, 0.05), (0.0, 2.5 * LEASE_SECONDS)
TROUBLES = None, "late", "late answer", "request lost", "answer lost"
WEIGHTS = 88, 2, 2, 4, 4


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, logger="statestore.ha")


class SlowStorage(MemoryStorage):
    """What one process sees of the objects that all share. While one of its operations goes on, others do theirs."""

    def __init__(self, process, objects):
        super().__init__()
        self._process, self._world, self.objects = process, process.world, objects
        self.is_troubled = True

    def _take_time(self, operation, *arguments):
        """Do an operation between two delays, of which a few are long; it fails now and then, before or after it is done."""
        trouble = self._world.random.choices(TROUBLES, WEIGHTS)[0] if self.is_troubled else None
        self._process.wait(self._world.between(LONG if trouble == "late" else SHORT))
        if trouble == "request lost":
            raise UnavailableError("storage", "simulated", trouble)
        try:
            return operation(*arguments)
        finally:
            self._process.wait(self._world.between(LONG if trouble == "late answer" else SHORT))
            if trouble == "answer lost":
                raise UnavailableError("storage", "simulated", trouble)

    def create(self, name, data):
        self._take_time(super().create, name, data)

    def read(self, name, start=0, length=None):
        return self._take_time(super().read, name, start, length)

    def size(self, name):
        return self._take_time(super().size, name)

    def delete(self, name):
        self._take_time(super().delete, name)


class Watched(Election):
    """Is looked at whenever something may have changed."""

    judge: Judge

    def answer(self, request, outcome):
        super().answer(request, outcome)
        self.judge.look()


class Candidate:
    """A process that drives its election with a storage, one call after the other."""

    def __init__(self, world, objects, judge, name):
        self._judge, self._world = judge, world
        self.process = world.process(name, clock_rate=world.between(CLOCK_RATES))
        self.storage = SlowStorage(self.process, objects)
        self._store = RegisterLeaseStore(StorageRegister(self.storage, "lease", BLOCK_VALUES))
        self.election = Watched(self.process.clock, name, lease_seconds=LEASE_SECONDS, renew_seconds=RENEW_SECONDS)
        self.election.judge = judge
        judge.candidates.append(self)
        self.process.schedule(0.0, self._tick)
        self.process.schedule(0.0, self._act)

    def _tick(self):
        seconds = self.election.tick(self._store)
        self.process.note(f"token {self.election.token}")
        self.process.schedule(seconds + 0.001, self._tick)

    def _act(self):
        if self.election.is_leader():
            self._judge.acted(self)
        self.process.schedule(self._world.between((0.1, 2.0)), self._act)


def simulate(world: World):
    """Candidates die and are replaced; in the end there is peace, and one leader. Returns all tokens that were used."""
    objects: dict[str, bytes] = {}
    judge = Judge(world)

    def start():
        Candidate(world, objects, judge, f"c{len(judge.candidates) + 1}")

    def kill():
        if world.now < TROUBLE_SECONDS:
            alive = judge.leaders() if world.chance(0.5) else judge.alive()
            if alive:
                world.random.choice(alive).process.kill()
                world.schedule(world.between((0.0, LEASE_SECONDS)), start)
            world.schedule(world.between((1.0, 40.0)), kill)

    for _ in range(3):
        start()
    world.schedule(world.between((1.0, 40.0)), kill)
    world.run(until=TROUBLE_SECONDS)
    for candidate in judge.candidates:
        candidate.storage.is_troubled = False
    start()
    judge.candidates[-1].storage.is_troubled = False
    world.run(until=world.now + PEACE_SECONDS)
    assert len(judge.leaders()) == 1, "nobody leads in the end"
    kept = [name for name in objects if "/values/" in name]
    assert len(kept) < 40, "what is old is not removed"
    return {token for _, token, _ in judge.acts}


def test_never_two_leaders_by_a_storage():
    tokens = explore(simulate, range(SEEDS))
    assert sum(map(len, tokens)) > 3 * SEEDS, "too little happens"


def test_a_mistake_would_be_noticed(monkeypatch):
    """A register that does not look whether what it created had been there, and was removed."""

    def create(self, number, value):
        try:
            if self._block_of(number) != self._block_of(number - 1):
                with contextlib.suppress(FileExistsError):
                    self._storage.create(f"lease/blocks/{self._block_of(number)}", b"")
            self._storage.create(f"lease/values/{number}", value)
        except FileExistsError:
            return False
        self._known = number, value
        self._storage.delete(f"lease/values/{number - 2 * BLOCK_VALUES}")
        return True

    monkeypatch.setattr(StorageRegister, "_create", create)
    with pytest.raises(AssertionError, match=r"SIMULATION_SEED=\d+: .*(two leaders|token \d+ after)"):
        explore(simulate, range(SEEDS))
