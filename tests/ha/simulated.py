"""Candidates of an election in a simulated world, with a store that is slow, silent or down, and a judge who knows the true time."""

from __future__ import annotations

from statestore.errors import UnavailableError
from statestore_runtime.ha.election import Election, Read
from tests.simulation.world import World

LEASE_SECONDS, RENEW_SECONDS = 10.0, 4.0
CLOCK_RATES = (0.9, 1.1)
WELL = (0.0, 0.02)


class SimulatedStore:
    """A lease that takes its time: a request has its effect some time after it was made, and its answer comes later still, or never."""

    def __init__(self, world: World):
        self._world = world
        self.lease = None
        self.tokens = []
        """Of leaderships, in the order in which they were granted."""
        self.be_well()

    def be_well(self):
        """No disturbance from now on; what is on its way stays so."""
        self.is_down = False
        self.delay_seconds = WELL
        self.loss = self.silence = 0.0

    def ask(self, process, request, answer):
        """Do a request of a process in some time, and let it have the outcome."""
        world = self._world
        if self.delay_seconds is WELL and not (self.is_down or self.loss):  # in one step, for speed
            world.schedule(world.between(WELL), lambda: answer(self._effect(request)), process)
            return
        effect, back = world.between(self.delay_seconds), world.between(self.delay_seconds)
        if not self.is_down and not world.chance(self.loss):
            world.schedule(effect, lambda: self._answer_later(process, answer, self._effect(request), back))
            return
        if not self.is_down and world.chance(0.5):  # only the answer is lost
            world.schedule(effect, lambda: self._effect(request))
        if not world.chance(self.silence):
            outcome = UnavailableError("store", "simulated", "disturbed")
            self._answer_later(process, answer, outcome, effect + back)

    def _answer_later(self, process, answer, outcome, delay):
        self._world.schedule(delay, lambda: answer(outcome), process)

    def _effect(self, request):
        if isinstance(request, Read):
            return self.lease
        if self.lease != request.expected:
            return False
        if request.lease.token not in self.tokens[-1:]:
            self.tokens.append(request.lease.token)
        self.lease = request.lease
        return True


class Judge:
    """Sees all candidates at once. Whatever they do is reported here, in the order in which it truly happens."""

    def __init__(self, world: World):
        self._world = world
        self.candidates = []
        self.acts = []

    def alive(self):
        return [candidate for candidate in self.candidates if candidate.process.is_alive]

    def leaders(self):
        """Who believes to lead. Whoever is paused counts: it could act at the instant of its waking up."""
        return [
            candidate for candidate in self.candidates if candidate.process.is_alive and candidate.election.is_leader()
        ]

    def look(self):
        """Two leaders at once are two at the last change of either: so it is enough to look at each change."""
        leaders = [f"{leader.process} with token {leader.election.token}" for leader in self.leaders()]
        assert len(leaders) <= 1, f"two leaders at once: {leaders}"

    def acted(self, candidate):
        """A leader does something with its token."""
        self.look()
        token = candidate.election.token
        _, last_token, last = self.acts[-1] if self.acts else (0.0, 0, None)
        assert token > last_token or (token == last_token and last is candidate), f"token {token} after {last_token}"
        self.acts.append((self._world.now, token, candidate))


class Candidate:
    """A process that stands for election, and acts now and then while it leads."""

    def __init__(self, world, store, judge, name, election=Election):
        self._store, self._judge, self._world = store, judge, world
        self.process = world.process(
            name, clock_rate=world.between(CLOCK_RATES), clock_offset=world.between((0.0, 1e4))
        )
        self.election = election(self.process.clock, name, lease_seconds=LEASE_SECONDS, renew_seconds=RENEW_SECONDS)
        self._timer = self.process.schedule(0.0, self._step)
        self._token, self._past_tokens = None, set()
        judge.candidates.append(self)
        self.process.schedule(0.0, self._act)

    def resign(self):
        """Leave cleanly, and end."""
        self.process.note("resigns")
        self.election.resign()
        self._timer.cancel()
        self._step()

    def _step(self):
        if (request := self.election.request()) is not None:
            self._store.ask(self.process, request, lambda outcome: self._answered(request, outcome))
        if self._token != self.election.token:
            self._past_tokens.add(self._token)
            self._token = self.election.token
            self.process.note(f"token {self._token}")
            assert self._token is None or self._token not in self._past_tokens, "a leadership that was over came back"
        if self.election.is_over:
            self.process.kill()
        else:
            self._timer = self.process.schedule(self.election.seconds_to_next() + 0.001, self._step)

    def _answered(self, request, outcome):
        self.election.answer(request, outcome)
        self._judge.look()
        self._timer.cancel()
        self._step()

    def _act(self):
        if self.election.is_leader():
            self._judge.acted(self)
        self.process.schedule(self._world.between((0.1, 4.0)), self._act)
