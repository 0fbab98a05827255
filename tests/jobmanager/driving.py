"""A JobManager under the test's thumb: a clock that the test moves, a Deployment that writes down what it is told, words of workers."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import msgspec

from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.snapshot import CheckpointInfo
from statestore.config import CheckpointingConfig, Config, HeartbeatConfig, JobConfig
from statestore.testing.clock import FakeClock
from statestore.ttl import Times
from statestore_runtime.jobmanager.events import Claimed, Committed, Lost, Told
from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.restart import FixedDelay
from statestore_runtime.messages import Finished
from statestore_runtime.protocol import Acknowledged, Declined, Done, InputEnded, Opened, Trigger


class RecordingDeployment:
    """Writes down what it is told, and does nothing of it."""

    def __init__(self):
        self.claims, self.started, self.sent, self.commits, self.copies = [], [], [], [], []
        self.ends = 0

    def claim(self, deployment, above):
        self.claims.append((deployment, above))

    def start(self, deployment, deploy):
        self.started.append(deploy)

    def send(self, worker, command):
        self.sent.append((worker, command))

    def end(self, *, at_once):
        self.ends += 1

    def commit(self, deployment, checkpoint, manifests, meta, seconds):
        self.commits.append(SimpleNamespace(checkpoint=checkpoint, manifests=manifests, meta=meta))

    def copy(self, deployment, manifest, dir, reply):
        self.copies.append(SimpleNamespace(manifest=manifest, dir=dir, reply=reply))


class Driven:
    """A job of two workers, and what is said to its JobManager."""

    def __init__(self, *, parallelism=2, restarts=3, restart_delay=5.0, resumed=False, restore=None, **settings):
        self.clock, self.deployment, self.told = FakeClock(), RecordingDeployment(), []
        checkpointing = CheckpointingConfig(
            **{"interval": 10.0, "min_pause": 2.0, "timeout": 30.0, "tolerable_failed": 1, **settings}
        )
        self.config = msgspec.structs.replace(
            Config(),
            checkpointing=checkpointing,
            heartbeat=HeartbeatConfig(interval=5.0, timeout=50.0),
            job=JobConfig(restore_timeout=100.0, stop_timeout=200.0),
        )
        self.manager = JobManager(
            "job",
            self.config,
            parallelism=parallelism,
            restore=restore,
            run="run",
            clock=self.clock,
            deployment=self.deployment,
            strategy=FixedDelay(restarts, restart_delay),
            emit=self.told.append,
            resumed=resumed,
        )
        self._checkpoints, self._attempts = itertools.count(1), itertools.count(1)
        self.answers = []
        self.manager.start()

    # What happens

    @property
    def deployed(self):
        """Number of the deployment."""
        return self.deployment.claims[-1][0]

    def claimed(self):
        self.manager.handle(Claimed(self.deployed, next(self._attempts)))

    def say(self, worker, report, deployment=None):
        self.manager.handle(Told(deployment or self.deployed, worker, report))

    def say_all(self, report):
        for worker in range(self.manager.parallelism):
            self.say(worker, report)

    def lose(self, worker, deployment=None):
        self.manager.handle(Lost(deployment or self.deployed, worker, "was killed"))

    def opened(self, restored=None, *, is_newest=True, splits=(), workers=None):
        report = Opened(
            backend="memory",
            state="memory",
            checkpoints="file:///checkpoints",
            restored_checkpoint=restored,
            restored_epoch=0,
            is_newest=restored is not None and is_newest,
            events=0,
            recover_seconds=0.0,
            splits={"source": list(splits)},
        )
        for worker in range(self.manager.parallelism) if workers is None else workers:
            self.say(worker, report)

    def acknowledge(self, *workers):
        for worker in workers or range(self.manager.parallelism):
            self.say(worker, acknowledged(self.triggers[-1].checkpoint))

    def decline(self, worker=0, exit_code=3):
        self.say(worker, Declined(checkpoint=self.triggers[-1].checkpoint, reason="disk full", exit_code=exit_code))

    def commit(self, error=None):
        """What the storage says of the manifest that it was given last."""
        info = None if error else info_of(next(self._checkpoints), self.deployment.commits[-1].meta)
        self.manager.handle(Committed(self.deployed, self.deployment.commits[-1].checkpoint, info, error))

    def complete(self):
        self.acknowledge()
        self.commit()

    def ask(self, kind, *arguments, **options):
        """A request whose answer comes to `answers`."""
        self.manager.handle(kind(*arguments, reply=self.answers.append, **options))

    def passes(self, seconds):
        """Let time pass, and heartbeats come."""
        self.clock.advance(seconds)
        for worker in range(self.manager.parallelism):
            self.manager._heartbeats.heard(worker)
        return self.manager.tick()

    def runs(self):
        """Let it come to run: with its first checkpoint complete."""
        self.claimed()
        self.opened()
        self.manager.tick()
        self.complete()
        return self

    def ends(self):
        """Let its input end, and all that follows."""
        self.say_all(InputEnded())
        self.passes(2.0)
        self.complete()
        self.done()

    def done(self):
        self.say_all(Done(finished=FINISHED))

    # What it has decided

    @property
    def state(self):
        return self.manager.state

    @property
    def triggers(self):
        """Of worker 0."""
        return [command for worker, command in self.deployment.sent if worker == 0 and isinstance(command, Trigger)]

    def sent(self, kind, worker=0):
        return [command for receiver, command in self.deployment.sent if receiver == worker and type(command) is kind]


def acknowledged(checkpoint):
    meta = {"events": 5, "skipped": 0, "operators": [], "sources": {}, "sinks": {}, "states": {}}
    return Acknowledged(checkpoint=checkpoint, manifest=manifest_of(1, {}), meta=meta, phases={"sync": 0.0})


def manifest_of(number, meta):
    return Manifest(
        job="job",
        checkpoint_id=number,
        attempt=1,
        created=0.0,
        kind="checkpoint",
        run="run",
        max_parallelism=128,
        states=[],
        parts=[],
        meta=meta,
        times=Times(0, None),
    )


def info_of(number, meta):
    return CheckpointInfo(
        checkpoint_id=number,
        epoch=number,
        uploaded_bytes=0,
        total_bytes=0,
        seconds=0.0,
        path=f"chk-{number}",
        manifest=manifest_of(number, meta),
    )


FINISHED = Finished(
    job="job",
    events=5,
    events_this_run=5,
    bad_records=0,
    keys=1,
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
