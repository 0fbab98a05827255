"""What every sink with transactions must do, whatever it writes to: a subclass says how to make one and how to look at its output."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore import crashpoints
from statestore.errors import CorruptionError, FencedError
from statestore.testing.clock import FakeClock
from statestore_runtime import SinkContext

KEYS = 6


class CrashError(BaseException):
    """Ends a deployment: nobody in between may catch it."""


class Steps:
    """Counts the steps of a story, and crashes at one of them."""

    def __init__(self, crash_at=None):
        self.left, self.crashed = crash_at, False

    def reach(self, name):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.crashed = True
                raise CrashError(name)


class JobOfSinks:
    """The part of a job that sinks see: events by key to subtasks, barriers, complete checkpoints, restarts."""

    def __init__(self, make, events=(), steps=None, job="job"):
        self.make, self.events, self.steps, self.job = make, list(events), steps or Steps(), job
        self.checkpoint, self.attempt, self.sinks, self.position = None, 0, [], 0
        self.uncommitted, self.dead = [], []
        self.clock = FakeClock()

    def deploy(self, parallelism, checkpoint="newest"):
        """Open the sinks of a new attempt; the instances of the one before stay as they are: dead, or zombies."""
        self.attempt += 1
        restored = self.checkpoint if checkpoint == "newest" else checkpoint
        self.dead += self.sinks
        made = self.make()
        self.sinks = [made.for_subtask(number) for number in range(parallelism)]
        self.uncommitted = [[] for _ in self.sinks]
        self.position = restored["position"] if restored else 0
        for number in reversed(range(parallelism)):
            self.sinks[number].open(self.context(number, parallelism, restored))
            self.steps.reach("opened")
        return self.sinks

    def context(self, number, parallelism, restored):
        if restored is None:
            return SinkContext(self.job, self.attempt, number, parallelism, run="run", clock=self.clock)
        return SinkContext(
            self.job,
            self.attempt,
            number,
            parallelism,
            fresh=False,
            transactions=tuple(t for i, t in enumerate(restored["transactions"]) if i % parallelism == number),
            snapshots={int(subtask): snapshot for subtask, snapshot in restored["snapshots"].items()},
            run="run",
            clock=self.clock,
        )

    def process(self, count):
        """Write the next events, each to the subtask of its key."""
        batch = self.events[self.position : self.position + count]
        self.position += len(batch)
        for number, sink in enumerate(self.sinks):
            own = [event for event in batch if event[0] % len(self.sinks) == number]
            if own:
                sink.write(own)
                self.steps.reach("written")

    def barrier(self):
        """A checkpoint that may still fail, as its JSON."""
        snapshots = {}
        for number, sink in enumerate(self.sinks):
            transaction = sink.prepare()
            if transaction is not None:
                self.uncommitted[number].append(transaction)
            snapshots[number] = sink.snapshot()
            self.steps.reach("prepared")
        transactions = [transaction for of_subtask in self.uncommitted for transaction in of_subtask]
        return json.loads(json.dumps({"position": self.position, "transactions": transactions, "snapshots": snapshots}))

    def complete(self, checkpoint):
        """It is durable: from now on a restart begins with it."""
        self.checkpoint = checkpoint
        self.steps.reach("complete")
        for sink, transactions in zip(self.sinks, self.uncommitted, strict=True):
            for transaction in transactions:
                sink.commit(transaction)
            transactions.clear()
            self.steps.reach("committed")

    def checkpointed(self, count):
        self.process(count)
        self.complete(self.barrier())

    def run_to_the_end(self, count):
        while self.position < len(self.events):
            self.checkpointed(count)
        self.checkpointed(0)

    def close(self):
        """Only what a dead process's memory held is given back after the story."""
        for sink in [*self.sinks, *self.dead]:
            sink.close()


def numbered(count):
    return [(number % KEYS, number) for number in range(count)]


class SinkConformance(ABC):
    """Events are pairs of a key and a number."""

    @abstractmethod
    def make(self, place):
        """A sink that writes to a place."""

    @abstractmethod
    def new_place(self):
        """A place that no other call gives."""

    @abstractmethod
    def output(self, place):
        """What readers see, in an order of its own: all events, or the last one of each key."""

    @abstractmethod
    def expected(self, events):
        """Output when these were written."""

    @abstractmethod
    def hidden(self, place):
        """Names of what is there and not visible yet."""

    @abstractmethod
    def lose(self, place, name):
        """Remove it."""

    @pytest.fixture
    def place(self):
        return self.new_place()

    @pytest.fixture
    def job(self, place):
        job = JobOfSinks(lambda: self.make(place), numbered(60))
        yield job
        job.close()

    @pytest.mark.parametrize("parallelism", [1, 3])
    def test_without_faults(self, place, job, parallelism):
        job.deploy(parallelism)
        job.run_to_the_end(10)
        assert self.output(place) == self.expected(job.events)
        assert self.hidden(place) == []

    def test_nothing_is_visible_before_the_commit(self, place, job):
        job.deploy(2)
        job.checkpointed(10)
        seen = self.output(place)
        job.process(10)
        assert self.output(place) == seen
        checkpoint = job.barrier()
        job.process(10)
        assert self.output(place) == seen
        job.complete(checkpoint)
        assert self.output(place) == self.expected(job.events[:20])

    @pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3), (3, 2)])
    def test_a_crash_at_each_step(self, monkeypatch, before, after):
        events = numbered(12)
        crash_at, crashed = 0, True
        while crashed:
            crash_at += 1
            steps, place = Steps(crash_at), self.new_place()
            monkeypatch.setattr(crashpoints, "reach", steps.reach)
            job = JobOfSinks(lambda place=place: self.make(place), events, steps)
            try:
                job.deploy(before)
                job.run_to_the_end(6)
            except CrashError:
                pass
            crashed = steps.crashed
            if crashed:
                job.deploy(after)
                job.run_to_the_end(6)
            assert self.output(place) == self.expected(events), f"crash at step {crash_at}"
            assert self.hidden(place) == [], f"crash at step {crash_at}"
            job.close()
        assert crash_at > 20

    def test_a_crash_while_recovering(self, monkeypatch):
        events = numbered(12)
        crash_at, crashed = 0, True
        while crashed:
            crash_at += 1
            steps, place = Steps(), self.new_place()
            monkeypatch.setattr(crashpoints, "reach", steps.reach)
            job = JobOfSinks(lambda place=place: self.make(place), events, steps)
            job.deploy(3)
            job.checkpointed(4)
            job.process(4)
            job.checkpoint = job.barrier()
            steps.left = crash_at
            try:
                job.deploy(2)
            except CrashError:
                job.deploy(3)
            crashed, steps.left = steps.crashed, None
            job.run_to_the_end(6)
            assert self.output(place) == self.expected(events), f"crash at step {crash_at}"
            assert self.hidden(place) == [], f"crash at step {crash_at}"
            job.close()
        assert crash_at > 5

    @pytest.mark.parametrize("after", [1, 2, 3, 5])
    def test_another_parallelism_commits_what_was_prepared(self, place, job, after):
        job.deploy(3)
        job.checkpointed(10)
        for _ in range(2):
            job.process(10)
            checkpoint = job.barrier()
        job.checkpoint = checkpoint
        job.deploy(after)
        assert self.output(place) == self.expected(job.events[:30])
        job.run_to_the_end(10)
        assert self.output(place) == self.expected(job.events)

    @pytest.mark.parametrize("round_number", range(5))
    def test_subtasks_open_at_the_same_time(self, place, job, round_number):
        """In whatever order their threads come."""
        job.deploy(3)
        for _ in range(3):
            job.process(10)
            job.checkpoint = job.barrier()
        job.dead, job.sinks, job.uncommitted = job.sinks, [], [[] for _ in range(4)]
        job.attempt += 1
        made = job.make()
        job.sinks = [made.for_subtask(number) for number in range(4)]
        with ThreadPoolExecutor(4) as threads:
            contexts = [job.context(number, 4, job.checkpoint) for number in range(4)]
            list(threads.map(lambda sink, context: sink.open(context), job.sinks, contexts))
        assert self.output(place) == self.expected(job.events[:30])
        job.run_to_the_end(10)
        assert self.output(place) == self.expected(job.events)

    def test_a_commit_may_be_repeated(self, place, job):
        job.deploy(2)
        job.process(10)
        checkpoint = job.barrier()
        transactions = [(sink, t) for sink, of_sink in zip(job.sinks, job.uncommitted, strict=True) for t in of_sink]
        job.complete(checkpoint)
        for sink, transaction in transactions:
            sink.commit(transaction)
        assert self.output(place) == self.expected(job.events[:10])
        for _ in range(2):
            job.deploy(2)
            assert self.output(place) == self.expected(job.events[:10])

    def test_transactions_of_failed_checkpoints_are_committed_later(self, place, job):
        job.deploy(2)
        for _ in range(3):
            job.process(10)
            checkpoint = job.barrier()
        job.complete(checkpoint)
        assert self.output(place) == self.expected(job.events[:30])

    def test_a_zombie_changes_nothing(self, place, job):
        zombies = job.deploy(2)
        job.checkpointed(10)
        job.process(10)
        job.barrier()
        transactions = job.uncommitted
        job.deploy(2)
        for zombie, (transaction,) in zip(zombies, transactions, strict=True):
            with pytest.raises(FencedError):
                zombie.commit(transaction)
            with pytest.raises(FencedError):  # at the latest when it would be needed
                zombie.write([(0, -1)])
                zombie.commit(zombie.prepare())
            zombie.close()
        assert self.output(place) == self.expected(job.events[:10])
        job.run_to_the_end(10)
        assert self.output(place) == self.expected(job.events)

    def test_an_older_attempt_can_not_open(self, place, job):
        job.deploy(2)
        job.checkpointed(10)
        job.attempt = 5
        job.deploy(2)
        seen, job.attempt = self.output(place), 3
        for checkpoint in ("newest", None):
            with pytest.raises(FencedError, match=r"attempt 4 is fenced.*attempt 6"):
                job.attempt = 3
                job.deploy(2, checkpoint)
        assert self.output(place) == seen

    def test_a_run_whose_checkpoints_were_removed(self, place, job):
        """Attempts are counted anew then."""
        job.deploy(2)
        job.attempt = 5
        job.deploy(2)
        job.process(10)
        job.barrier()
        zombies, transactions = job.sinks, job.uncommitted
        again = JobOfSinks(job.make, job.events)
        again.context = lambda number, parallelism, restored: SinkContext("job", 1, number, parallelism, run="another")
        again.deploy(2)
        for zombie, (transaction,) in zip(zombies, transactions, strict=True):
            with pytest.raises(FencedError):
                zombie.commit(transaction)
        again.run_to_the_end(10)
        assert self.output(place) == self.expected(job.events)
        again.close()

    def test_what_a_dead_attempt_prepared_is_removed(self, place, job):
        job.deploy(3)
        job.checkpointed(10)
        job.process(10)
        job.barrier()
        prepared = self.hidden(place)
        assert len(prepared) >= 3
        job.deploy(1)
        assert len(self.hidden(place)) == len(prepared), "a checkpoint that needs it may still come to light"
        job.checkpointed(0)
        assert self.hidden(place) == []

    def test_a_checkpoint_that_comes_to_light_late(self, place, job):
        """Of an attempt that was given up before its last checkpoint was found to be complete."""
        job.deploy(2)
        job.checkpointed(10)
        job.process(10)
        late = job.barrier()
        job.deploy(3)
        job.process(5)
        job.checkpoint = late
        job.deploy(2)
        assert self.output(place) == self.expected(job.events[:20])
        job.run_to_the_end(10)
        assert self.output(place) == self.expected(job.events)

    def test_prepared_data_that_is_gone(self, place, job):
        job.deploy(1)
        job.process(10)
        job.checkpoint = job.barrier()
        for name in self.hidden(place):
            self.lose(place, name)
        (transaction,) = job.uncommitted[0]
        with pytest.raises(CorruptionError, match="gone"):
            job.sinks[0].commit(transaction)
        with pytest.raises(CorruptionError, match="gone"):
            job.deploy(2)

    def test_the_last_output_of_a_finished_run(self, place, job):
        job.deploy(2)
        job.process(10)
        finished = tuple(job.barrier()["transactions"])
        again = JobOfSinks(job.make, job.events[:10])
        again.context = lambda number, parallelism, restored: SinkContext(
            "job", 2, number, parallelism, finished=() if number else finished, run="next"
        )
        try:
            again.deploy(3)
        finally:
            again.close()
        assert self.output(place) == self.expected(job.events[:10])
