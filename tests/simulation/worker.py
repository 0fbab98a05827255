"""A simulated worker: it speaks the protocol as `task.Task` in a process of its own does, and counts and puts out numbered events."""

from __future__ import annotations

from collections import deque
from functools import partial

from statestore.checkpoint.manifest import Manifest
from statestore.errors import FencedError, StateStoreError, UsageError
from statestore.ttl import Times
from statestore.types import Attempt, CheckpointId
from statestore_runtime.jobmanager.failures import failed_of
from statestore_runtime.jobmanager.splits import restored_share
from statestore_runtime.messages import Finished, Progress, Restoring
from statestore_runtime.protocol import (
    Abort,
    Acknowledged,
    Assign,
    Begin,
    CheckpointWanted,
    Complete,
    Declined,
    Discovered,
    Done,
    Drain,
    Failed,
    Heartbeat,
    InputEnded,
    NoMoreSplits,
    Opened,
    Recovering,
    Relax,
    Trigger,
    Working,
)

SOURCE, SINK, COUNT = "numbers", "output", "count"


class Worker:
    """One worker of one deployment.

    Parameters
    ----------
    driver
        Who has started it; its job has storage, output, and what is to be read.
    """

    def __init__(self, driver, deployment, deploy, subtask):
        self.driver, self.deployment, self.deploy, self.subtask = driver, deployment, deploy, subtask
        self.job, self.world, self.config = driver.job, driver.world, driver.job.config
        self.process = self.world.process(f"{driver.process}/{deploy.attempt}.{subtask}")
        self.attempt, self.is_careful = deploy.attempt, deploy.careful
        self.is_cut_off = self.is_done = False
        self.heard = 0.0
        self.restored: Manifest | None = None
        self.newest = 0
        self.positions: dict[str, int] = {}  # of the splits that it reads
        self.finished: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.known: set[str] = set()
        self.written: list[tuple[str, int]] = []
        self.uncommitted: list[dict] = []
        self.transactions = self.events = 0
        self.has_begun = self.is_final = self.is_drained = self.has_ended = False
        self.is_stopped = self.stands_before_poison = False
        self.done, self.barrier, self.taken = 0, None, None
        self.is_reading = self.is_busy = False
        self.commands: deque = deque()
        self.undiscovered: list[str] = []
        self._later((0.02, 0.3), self._restore)
        self._later((0.0, self.config.heartbeat.interval), self._beat)

    def _later(self, span, action):
        self.process.schedule(self.world.between(span), action)

    def _beat(self):
        clock = self.process.clock
        if clock.monotonic() - (self.heard or clock.monotonic()) >= self.config.heartbeat.timeout:
            self.process.note("hears nothing any more")
            self.exit()
            return
        self.heard = self.heard or clock.monotonic()
        self.tell(Heartbeat())
        self.process.schedule(self.config.heartbeat.interval, self._beat)

    def exit(self):
        """End: the JobManager sees that the connection is closed, and so do the others."""
        if self.process.is_alive:
            self.process.kill()
            self.driver.worker_gone(self)

    def tell(self, report):
        """Report to the JobManager."""
        self.driver.told(self, report)

    def loses_peer(self):
        """Another worker has hung up."""
        self.fail(Failed(error="another worker hung up", exit_code=3, is_lost_peer=True))

    def fail(self, failure):
        """Tell of an error, and end."""
        self.process.note(f"fails: {failure.error}")
        self.tell(failure)
        self.exit()

    # Opening

    def _restore(self):
        try:
            self.job.storage.check()
            newest = self.job.storage.newest
            self.newest = int(newest.checkpoint_id) if newest is not None else 0
            self.restored = self._chosen(newest)
        except StateStoreError as error:
            self.fail(failed_of(error))
            return
        if self.world.chance(0.2):
            restoring = Restoring(job="sim", bytes_done=0, bytes_total=1, entries=0, seconds=0.0, eta_seconds=None)
            self._later((0.0, 0.5), lambda: self.tell(Recovering(restoring=restoring)))
        self._later((0.0, 60.0) if self.world.chance(self.job.slow_openings) else (0.0, 0.5), self._open)

    def _chosen(self, newest):
        """As `statestore.recovery.choosing` does."""
        deploy = self.deploy
        if newest is not None and newest.run == deploy.run:
            return newest
        if deploy.restore is None and newest is not None:
            raise UsageError("the job did not finish")
        if deploy.restore in (None, "latest"):
            return newest
        return self.job.savepoints[deploy.restore]

    def _open(self):
        meta = self.restored.meta if self.restored is not None else {}
        try:
            self.job.output.open(self.attempt)
            for transaction in (
                meta.get("sinks", {}).get(SINK, {}).get("transactions", [])[self.subtask :: self.deploy.parallelism]
            ):
                self.job.output.commit(self.attempt, transaction)
        except FencedError as error:
            failure = failed_of(error)
            is_unknown = error.owner > self.job.storage.attempt
            self.fail(replace_claim(failure, error.owner) if is_unknown else failure)
            return
        known = meta.get("sources", {}).get(SOURCE, {"splits": {}, "finished": {}})
        self.known = {*known["splits"], *known["finished"]}
        for split in restored_share(self.known, self.subtask, self.deploy.parallelism):
            if split in known["finished"]:
                self.finished[split] = known["finished"][split]
            else:
                self.positions[split] = known["splits"][split]
        counts = {split: count for state in meta.get("states", {}).get(COUNT, []) for split, count in state.items()}
        for split, count in {**known["splits"], **known["finished"]}.items():
            assert counts.get(split, 0) == count, f"{count} events of {split} were read, {counts.get(split, 0)} counted"
        self.counts = {split: counts.get(split, 0) for split in [*self.positions, *self.finished]}
        if self.subtask == 0:
            self.undiscovered = [split for split in self.job.splits if split not in self.known]
            self.events = meta.get("events", 0)
        self.job.judge.opens(self)
        number = int(self.restored.checkpoint_id) if self.restored is not None else None
        self.tell(
            Opened(
                backend="simulated",
                state="simulated:state",
                checkpoints="simulated:checkpoints",
                restored_checkpoint=number,
                restored_epoch=number or 0,
                is_newest=number == self.newest and self.deploy.restore not in self.job.savepoints,
                events=meta.get("events", 0),
                recover_seconds=0.0,
                splits={SOURCE: sorted(self.known)},
            ),
        )

    # Commands

    def handle(self, command):
        """Take a command; one after the other, as what they ask for may take its time."""
        self.heard = self.process.clock.monotonic()
        self.commands.append(command)
        self._obey()

    def _obey(self):
        while self.commands and not self.is_busy:
            self._do(self.commands.popleft())
        self._wake()

    def _do(self, command):
        match command:
            case Begin():
                self.has_begun = True
                if self.subtask == 0:
                    self._discover()
            case Assign(splits=splits) if not self.is_drained:
                for split in splits:
                    assert split not in self.positions and split not in self.finished, f"{split} was assigned twice"
                    self.positions[split] = self.counts[split] = 0
            case NoMoreSplits():
                self.is_final = True
            case Trigger():
                self._let_go(command)
            case Complete():
                self._complete(command)
            case Abort(checkpoint=checkpoint):
                self._abort(checkpoint)
            case Relax():
                self.is_careful = False
            case Drain():
                self.undiscovered.clear()
                self.is_final = self.is_drained = True

    def _discover(self):
        count = self.world.random.randint(0, len(self.undiscovered))
        if not self.undiscovered or self.world.chance(0.4):
            count = len(self.undiscovered)
        found, self.undiscovered = self.undiscovered[:count], self.undiscovered[count:]
        self.tell(Discovered(source=SOURCE, splits=found, is_final=not self.undiscovered))
        if self.undiscovered:
            self._later((0.1, 2.0), self._discover)

    # Reading

    def _wake(self):
        """Read on, if there is something that may be read."""
        may_read = self.has_begun and not (
            self.is_reading or self.is_busy or self.is_stopped or self.stands_before_poison or self.barrier
        )
        if may_read and not self.has_ended and (self._is_at_end or self.positions):
            self.is_reading = True
            self._later((0.02, 0.5), self._read)

    @property
    def _is_at_end(self):
        return self.is_drained or (self.is_final and not self.positions)

    def _read(self):
        self.is_reading = False
        if self.is_busy or self.is_stopped or self.stands_before_poison or self.barrier or self.has_ended:
            return  # what held it back wakes it
        if self._is_at_end:
            self.has_ended = True
            self.tell(InputEnded())
            return
        self.job.judge.reads(self)
        split = self.world.random.choice(sorted(self.positions))
        for _ in range(self.world.random.randint(1, 3)):
            position = self.positions[split]
            if position == self.job.splits[split]:
                self.finished[split] = self.positions.pop(split)
                break
            if self.job.poison.get((split, position), 0) > 0:
                self._meet_poison((split, position))
                return
            self.positions[split] += 1
            self.counts[split] += 1
            self.events += 1
            self.written.append((split, position))
        if self.world.chance(0.3):
            self._tell_progress()
        if self.world.chance(0.03):
            self.tell(CheckpointWanted())
        self._wake()

    def _tell_progress(self):
        progress = Progress(events=self.events, seconds=1.0, checkpoints=0, state_bytes=0)
        self.tell(Working(progress=progress))

    def _meet_poison(self, event):
        failure = Failed(error=f"a function failed on {event}", exit_code=1, is_users=True)
        if not self.is_careful:
            self.job.poison[event] -= 1
            self.fail(failure)
            return
        self.process.note(f"stands before {event}")
        self.stands_before_poison = True
        self.tell(Failed(error=failure.error, exit_code=1, is_users=True, is_reproduced=True, can_save=True))

    # Checkpoints

    def _let_go(self, trigger):
        if trigger.checkpoint <= self.done:
            return
        assert self.taken is None, "a checkpoint is triggered before the one before is decided"
        self.barrier, self.is_stopped = trigger, trigger.stop
        span = (0.0, 20.0) if self.world.chance(self.job.slow_checkpoints) else (0.0, 0.2)
        self._later(span, partial(self._take, trigger))

    def _take(self, trigger):
        if self.barrier is not trigger:
            return
        self.barrier, self.done = None, trigger.checkpoint
        if self.written:
            self.transactions += 1
            name = f"{self.attempt}/{self.subtask}/{self.transactions}"
            self.uncommitted.append({"id": name, "events": self.written})
            self.written = []
        meta = {
            "events": self.events,
            "skipped": 0,
            "operators": [COUNT],
            "sources": {
                SOURCE: {"splits": dict(self.positions), "finished": dict(self.finished), "bad_records": 0},
            },
            "sinks": {SINK: {"transactions": list(self.uncommitted), "snapshots": {}}},
            "states": {COUNT: [dict(self.counts)]},
        }
        self.taken = trigger, meta
        self._later((0.0, 0.3), partial(self._acknowledge, self.taken))
        self._wake()

    def _acknowledge(self, taken):
        if self.taken is not taken:
            return
        trigger, meta = taken
        if self.world.chance(self.job.declining):
            self.tell(Declined(checkpoint=trigger.checkpoint, reason="the disk is full", exit_code=3))
            return
        manifest = Manifest(
            job="sim",
            checkpoint_id=CheckpointId(self.newest + 1),
            attempt=Attempt(self.attempt),
            created=self.world.now,
            kind="final" if trigger.final else "checkpoint",
            run=self.deploy.run,
            max_parallelism=128,
            states=[],
            parts=[],
            meta={},
            times=Times(0, None),
        )
        report = Acknowledged(checkpoint=trigger.checkpoint, manifest=manifest, meta=meta, phases={})
        self.job.judge.acknowledges(self, report)
        self.tell(report)
        if self.world.chance(0.05):
            self._later((0.0, 3.0), lambda: self.tell(report))

    def _complete(self, command):
        assert self.taken is not None, "a checkpoint is complete that was not acknowledged"
        self.is_busy = True
        self._later((0.0, 1.0) if self.world.chance(0.1) else (0.0, 0.05), lambda: self._commit(command))

    def _commit(self, command):
        (trigger, meta), self.taken = self.taken, None
        assert trigger.checkpoint == command.checkpoint, "another checkpoint is complete than was acknowledged"
        self.newest = int(command.manifest.checkpoint_id)
        try:
            for transaction in meta["sinks"][SINK]["transactions"]:
                self.job.output.commit(self.attempt, transaction)
                self.uncommitted.remove(transaction)
        except FencedError as error:
            self.fail(failed_of(error))
            return
        if trigger.final or trigger.stop:
            self.is_done = True
            self.tell(Done(finished=self._finished()))
            self._later((0.0, 0.1), self.exit)
            return
        self.is_busy = False
        self._obey()

    def _abort(self, checkpoint):
        if self.barrier is not None and self.barrier.checkpoint <= checkpoint:
            self.barrier = None
        if self.taken is not None and self.taken[0].checkpoint <= checkpoint:
            self.taken = None
        self.is_stopped = False
        self.done = max(self.done, checkpoint)

    def _finished(self):
        return Finished(
            job="sim",
            events=self.events,
            events_this_run=0,
            bad_records=0,
            keys=0,
            seconds=1.0,
            checkpoints=0,
            last_checkpoint=None,
            state_bytes=0,
            uploaded_bytes=0,
            wal_disk_bytes=0,
            wal_age_seconds=0.0,
            outputs=[],
            shares={"heartbeat": 0.0},
        )


def replace_claim(failure, owner):
    """The failure of an attempt whose state belongs to one that the checkpoints know nothing of."""
    return Failed(error=failure.error, exit_code=failure.exit_code, claim_above=owner)
