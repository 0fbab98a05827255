"""A small world for deterministic simulations: one virtual clock, seeded chance, processes that stall and die, a network, a trace.

    def simulate(world):
        server = world.process("server", clock_rate=1.05)
        client = world.process("client")
        network = Network(world, delay_seconds=(0.001, 0.2))
        client.schedule(1.0, lambda: network.send(client, server, server_object.on_hello))
        world.schedule(3.0, server.pause)
        world.run(until=60.0)

    explore(simulate, range(1000))     # a failure names its seed; SIMULATION_SEED=<n> runs that one alone and prints its trace

Rules that keep a run the same byte for byte each time:
- all chance comes from `world.random`, all time from `world.now` or from a process' clock;
- no iteration over sets of text, whose order differs from one Python process to the next;
- no threads, and nothing that truly blocks.

Each function that is scheduled runs to its end in no time at all. What a process does over time (look, then act; call a storage and get
its answer) is several functions, so that anything may come in between. Code that can't be cut up so calls `Process.wait`, or `sleep` of its
process' clock, where it would block: the others go on in the meantime.
"""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Callable, Iterable
from typing import TypeVar

SEED_VARIABLE = "SIMULATION_SEED"
_TAIL_LINES = 60

Action = Callable[[], object]
T = TypeVar("T")


class Event:
    """Something that is going to happen; `cancel` lets it not happen."""

    __slots__ = ("action", "process")

    def __init__(self, action: Action, process: Process | None):
        self.action: Action | None = action
        self.process = process

    def cancel(self) -> None:
        """Nothing will happen. May be called at any time, also afterwards."""
        self.action = None


class Killed(BaseException):
    """Ends what a process was doing when it was killed. Not to be caught, except to clean up."""


class World:
    """Virtual time and what is to happen in it.

    Parameters
    ----------
    seed
        Decides everything that chance decides.

    Attributes
    ----------
    now : float
        True time in seconds, from 0. No process sees it: each has a clock of its own.
    random : random.Random
        The only chance there is.
    trace : list of str
        What was noted, in order: equal runs have equal traces.
    """

    def __init__(self, seed: int):
        self.seed, self.random = seed, random.Random(seed)
        self.now = 0.0
        self.trace: list[str] = []
        self._events: list[tuple[float, int, Event]] = []
        self._count = 0

    def process(self, name: str, *, clock_rate: float = 1.0, clock_offset: float = 0.0) -> Process:
        """A process that lives from now on; one that was killed comes back as a new one, of the same name or another."""
        return Process(self, name, clock_rate, clock_offset)

    def schedule(self, delay_seconds: float, action: Action, process: Process | None = None) -> Event:
        """Let `action` happen after a delay in true time, in the order of scheduling where times are equal.

        Parameters
        ----------
        process
            Whose doing it is: it waits while the process is paused, and never happens once it is dead. None: it happens anyway.
        """
        event = Event(action, process)
        self.put(event, delay_seconds)
        return event

    def put(self, event: Event, delay_seconds: float) -> None:
        """Let an event happen after a delay. For this module."""
        self._count += 1
        heapq.heappush(self._events, (self.now + max(delay_seconds, 0.0), self._count, event))

    def run(self, until: float) -> None:
        """Let everything happen up to a true time, or until nothing is left to happen."""
        events = self._events
        while events and events[0][0] <= until:
            self._step()
        self.now = max(self.now, until)

    def run_while(self, condition: Callable[[], bool]) -> None:
        """Let things happen one by one as long as a condition holds. An AssertionError when it still holds and nothing is left."""
        while condition():
            assert self._events, "nothing is left to happen that could end the waiting"
            self._step()

    def _step(self) -> None:
        time, _, event = heapq.heappop(self._events)
        self.now = max(self.now, time)
        if event.process is None:
            self.happen(event)
        else:
            event.process.take(event)

    @staticmethod
    def happen(event: Event) -> None:
        """Let an event happen. For this module."""
        if event.action is not None:
            try:
                event.action()
            except Killed:
                pass

    def note(self, who: object, what: object) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now:11.6f} {who}: {what}")

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.random.random() < probability

    def between(self, span: tuple[float, float]) -> float:
        """A number within a span, all alike."""
        return self.random.uniform(*span)


class ProcessClock:
    """A process' own `statestore.clock.Clock`: it runs fast or slow, and nobody else's shows the same."""

    def __init__(self, process: Process, rate: float, offset_seconds: float):
        self._process, self._world, self.rate = process, process.world, rate
        self._monotonic_offset = 1000.0 + offset_seconds
        self._wall_offset = 1_000_000.0 + 7 * offset_seconds

    def monotonic(self) -> float:
        """Goes on while the process is paused, as that of a stopped process does."""
        return self._monotonic_offset + self._world.now * self.rate

    def time(self) -> float:
        """The wall clock; `jump` moves it."""
        return self._wall_offset + self._world.now * self.rate

    def jump(self, seconds: float) -> None:
        """Set the wall clock forth or back."""
        self._wall_offset += seconds

    def sleep(self, seconds: float) -> None:
        """Wait, see `Process.wait`."""
        self._process.wait(seconds)


class Process:
    """What can stall and die as one. Made by `World.process`.

    Attributes
    ----------
    clock : ProcessClock
        All that it knows of time.
    is_alive, is_paused : bool
        Whether it was not killed; whether it stands still (SIGSTOP, a long garbage collection, a suspended machine).
    """

    def __init__(self, world: World, name: str, clock_rate: float, clock_offset: float):
        self.world, self.name = world, name
        self.clock = ProcessClock(self, clock_rate, clock_offset)
        self.is_alive, self.is_paused = True, False
        self._is_waiting = False
        self._missed: list[Event] = []

    def __str__(self) -> str:
        return self.name

    def schedule(self, delay_seconds: float, action: Action) -> Event:
        """Let the process do something after a delay by its own clock."""
        return self.world.schedule(delay_seconds / self.clock.rate, action, self)

    def note(self, what: object) -> None:
        """Add a line to the trace."""
        self.world.note(self.name, what)

    def pause(self) -> None:
        """Stand still: what comes in the meantime (timers, messages, answers) comes at `resume`."""
        if self.is_alive and not self.is_paused:
            self.is_paused = True
            self.note("paused")

    def resume(self) -> None:
        """Go on, with all that was missed, in its order."""
        if self.is_alive and self.is_paused:
            self.is_paused = False
            self.note("resumed")
            self._catch_up()

    def wait(self, seconds: float) -> None:
        """Let time pass in the middle of what the process is doing, as a call does that blocks: for at least so long by its own clock.

        All others go on. What comes for this process itself waits until it has done what it is doing. It is late when others wait in turn:
        who began to wait last comes back first.

        Raises
        ------
        Killed
            The process was killed meanwhile.
        """
        assert not self._is_waiting, f"{self} waits already"
        self._is_waiting = True
        try:
            self.world.run(self.world.now + seconds / self.clock.rate)
            self.world.run_while(lambda: self.is_paused and self.is_alive)
        finally:
            self._is_waiting = False
        if not self.is_alive:
            raise Killed
        self._catch_up()

    def _catch_up(self) -> None:
        missed, self._missed = self._missed, []
        for event in missed:
            self.world.put(event, 0.0)

    def kill(self) -> None:
        """End at once: nothing of it happens any more, and what is on its way to it is lost."""
        if self.is_alive:
            self.is_alive = False
            self._missed.clear()
            self.note("killed")

    def take(self, event: Event) -> None:
        """Let an event of this process happen, now or at `resume` or never. For `World.run`."""
        if not self.is_alive:
            return
        if self.is_paused or self._is_waiting:
            self._missed.append(event)
        else:
            World.happen(event)


class Network:
    """Messages between processes: late, and lost where it is cut.

    Parameters
    ----------
    delay_seconds
        Least and greatest time that a message takes.
    is_ordered
        Whether messages of one process to another arrive in the order they were sent, as in a TCP connection.
    loss, duplication
        Probability that a message is lost, or arrives twice.
    """

    def __init__(
        self,
        world: World,
        *,
        delay_seconds: tuple[float, float] = (0.001, 0.05),
        is_ordered: bool = True,
        loss: float = 0.0,
        duplication: float = 0.0,
    ):
        self.delay_seconds, self.loss, self.duplication = delay_seconds, loss, duplication
        self._world, self._is_ordered = world, is_ordered
        self._cut: set[tuple[str, str]] = set()
        self._last: dict[tuple[str, str], float] = {}

    def send(self, sender: Process, receiver: Process, deliver: Action) -> None:
        """Let the receiver do `deliver` (take the message) later, if the message gets through.

        Whether the two are connected is asked at both ends of the journey: what is on its way when the network is cut is lost.
        """
        world, pair = self._world, (sender.name, receiver.name)
        copies = 0 if world.chance(self.loss) else 2 if world.chance(self.duplication) else 1
        for _ in range(copies):
            arrival = world.now + world.between(self.delay_seconds)
            if self._is_ordered:
                arrival = self._last[pair] = max(arrival, self._last.get(pair, 0.0))
            if self.is_connected(sender, receiver):
                world.schedule(arrival - world.now, lambda: self._arrive(sender, receiver, deliver))

    def _arrive(self, sender: Process, receiver: Process, deliver: Action) -> None:
        if self.is_connected(sender, receiver):
            receiver.take(Event(deliver, receiver))

    def is_connected(self, one: Process, other: Process) -> bool:
        """Whether a message of `one` would reach `other` now."""
        return (one.name, other.name) not in self._cut

    def cut(self, one: Process, other: Process, *, both_ways: bool = True) -> None:
        """Lose all messages from one process to another, and back."""
        self._world.note("network", f"cut {one} {'--' if both_ways else '->'} {other}")
        self._cut.add((one.name, other.name))
        if both_ways:
            self._cut.add((other.name, one.name))

    def isolate(self, process: Process, others: Iterable[Process]) -> None:
        """Cut a process off from all the others."""
        for other in others:
            if other.name != process.name:
                self.cut(process, other)

    def heal(self) -> None:
        """Connect all with all again."""
        self._world.note("network", "healed")
        self._cut.clear()


def explore(simulate: Callable[[World], T], seeds: Iterable[int]) -> list[T]:
    """Run a simulation once for each seed, and give what it returned.

    A simulation that raises ends it with an AssertionError that names the seed and shows the end of the trace. With `SIMULATION_SEED`
    in the environment only that seed runs, and its whole trace is printed.
    """
    alone = os.environ.get(SEED_VARIABLE)
    results = []
    for seed in seeds if alone is None else [int(alone)]:
        world = World(seed)
        try:
            results.append(simulate(world))
        except Exception as error:
            tail = "\n".join(world.trace[-_TAIL_LINES:])
            raise AssertionError(f"{SEED_VARIABLE}={seed}: {type(error).__name__}: {error}\n{tail}") from error
        finally:
            if alone is not None:
                print("\n".join(world.trace))
    return results
