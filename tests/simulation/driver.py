"""A process with the real JobManager in it, and what carries out its decisions in the simulated world."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from statestore_runtime.jobmanager.events import Claimed, Committed, Copied, Lost, Told
from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.restart import restart_strategy
from statestore_runtime.jobmanager.state import ENDED, JobState
from statestore_runtime.protocol import Abort, Begin, Complete, Trigger
from tests.simulation.storage import info_of
from tests.simulation.worker import Worker

LOOP_SECONDS = (0.0, 0.01)
SPINS_MAX = 20


class Driver:
    """Runs a JobManager in a process: takes events as they come, lets it look at the clock when it asked to.

    Parameters
    ----------
    may_act
        Asked before each decision is carried out: whether this process leads.
    """

    def __init__(self, job, process, *, restore, resumed=False, manager_class=JobManager, may_act=lambda: True):
        self.job, self.world, self.process, self._may_act = job, job.world, process, may_act
        self.number, self.is_resumed = job.count("run"), resumed
        self.workers: list[Worker] = []
        self._events: list = []
        self._step_is_due = self.is_over = self.is_deposed = False
        self._timer = self._last_tick = None
        self._spins = 0
        self._state = JobState.CREATED
        self.manager = manager_class(
            "sim",
            job.config,
            parallelism=job.world.random.randint(1, 3),
            restore=restore,
            run=f"run-{self.number}",
            clock=process.clock,
            deployment=self,
            strategy=restart_strategy(job.config.restart, process.clock, job.world.random.random),
            emit=self._show,
            resumed=resumed,
        )
        process.schedule(0.0, self._start)

    def _start(self):
        self.manager.start()
        self._ping()
        self._step()

    def _show(self, message):
        self.process.note(message)

    def request(self, request):
        """Ask the JobManager, which answers also when it is at its end."""
        if self.is_over:
            self.manager.handle(request)
        else:
            self.post(request)

    def post(self, event):
        """Take an event soon, together with what has come until then."""
        if self.is_over:
            return
        self._events.append(event)
        if not self._step_is_due:
            self._step_is_due = True
            self.process.schedule(self.world.between(LOOP_SECONDS), self._step)

    def _step(self):
        if self.is_over:
            return
        self._step_is_due = False
        events, self._events = self._events, []
        for event in events:
            self.manager.handle(event)
            self._look()
        left = self.manager.tick()
        self._look()
        if self.is_over:
            return
        self._count_spins(left, len(events))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.process.schedule(max(left, 0.001), self._step)

    def _count_spins(self, left, events):
        self._spins = self._spins + 1 if left == 0 and not events else 0
        assert self._spins < SPINS_MAX, f"it spins while it is {self.manager.state.value}"

    def _look(self):
        state = self.manager.state
        if state is self._state:
            return
        self.process.note(f"is {state.value}")
        self._state = state
        if state in ENDED:
            self.stop()
            self.job.ended(self)
        else:
            self.job.entered(self, state)

    def depose(self):
        """This process leads no more: whoever has asked its JobManager for something asks the next leader."""
        if not self.is_over:
            self.is_deposed = True
            self.stop()

    def stop(self):
        """The JobManager does nothing any more."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._end_workers()

    def _ping(self):
        if self.is_over:
            return
        for worker in self.workers:
            if worker.process.is_alive and not worker.process.is_paused and not worker.is_cut_off:
                worker.heard = worker.process.clock.monotonic()
        self.process.schedule(self.job.config.heartbeat.interval, self._ping)

    # What comes from the workers

    def told(self, worker, report):
        """Let the JobManager hear a report, some time later."""
        if not worker.is_cut_off:
            event = Told(worker.deployment, worker.subtask, report)
            self.job.network.send(worker.process, self.process, lambda: self.post(event))

    def cut_off(self, worker, *, is_noticed):
        """The connection with a worker is gone for good; perhaps somebody notices."""
        worker.is_cut_off = True
        worker.process.note("is cut off")
        if is_noticed:
            self._lose(worker, "can't be heard any more")

    def worker_gone(self, worker):
        """A worker's process has ended, and its connections are closed behind the last that it said."""
        if not worker.is_cut_off:
            self.job.network.send(worker.process, self.process, partial(self._lose, worker, "is gone"))
        for other in self.workers:
            if other is not worker and not worker.is_done and self.world.chance(0.5):
                other.process.schedule(self.world.between((0.0, 0.1)), other.loses_peer)

    def _lose(self, worker, reason):
        self.post(Lost(worker.deployment, worker.subtask, reason))

    # As a Deployment

    def claim(self, deployment, above):
        """See `Deployment.claim`."""
        if not self._may_act():
            return

        def answered(outcome):
            is_error = isinstance(outcome, Exception)
            self.post(Claimed(deployment, None, outcome) if is_error else Claimed(deployment, outcome))

        self.job.storage.claim(self.process, above, answered)

    def start(self, deployment, deploy):
        """See `Deployment.start`."""
        if not self._may_act():
            return
        assert not self.workers, "the workers of the deployment before have not been ended"
        self.job.judge.deploys(self, deploy)
        for subtask in range(deploy.parallelism):
            self.workers.append(Worker(self, deployment, deploy, subtask))
        self.job.workers += self.workers

    def send(self, worker, command):
        """See `Deployment.send`."""
        if not self._may_act() or worker >= len(self.workers):
            return
        receiver = self.workers[worker]
        if worker == 0:
            self._show_judge(receiver, command)
        if not receiver.is_cut_off:
            self.job.network.send(self.process, receiver.process, lambda: self._arrive(receiver, command))

    def _show_judge(self, worker, command):
        if not isinstance(command, Complete):  # whose manifest is long
            self.process.note(command)
        match command:
            case Trigger(checkpoint=checkpoint):
                self.job.judge.begins(self, worker.attempt, checkpoint)
            case Complete(checkpoint=checkpoint) | Abort(checkpoint=checkpoint):
                self.job.judge.decides(self, worker.attempt, checkpoint)
            case Begin():
                self.job.judge.lets_read(self, worker.attempt)

    @staticmethod
    def _arrive(worker, command):
        if not worker.is_cut_off:
            worker.handle(command)

    def end(self, *, at_once):
        """See `Deployment.end`."""
        self._end_workers()

    def _end_workers(self):
        """Kill them; one that can't be reached lives on."""
        for worker in self.workers:
            if worker.is_cut_off or self.world.chance(self.job.escaping):
                worker.is_cut_off = True
                self.job.zombies += worker.process.is_alive
            else:
                worker.process.kill()
        self.workers = []

    def commit(self, deployment, checkpoint, manifests, meta, seconds):
        """See `Deployment.commit`."""
        if not self._may_act():
            return
        self.job.judge.commits(self, checkpoint, manifests, meta)
        self.job.on_commit(self)

        def answered(outcome):
            if isinstance(outcome, Exception):
                self.post(Committed(deployment, checkpoint, None, outcome))
            else:
                self.post(Committed(deployment, checkpoint, info_of(outcome, seconds)))

        number = max(manifest.checkpoint_id for manifest in manifests)
        self.job.storage.commit(self.process, replace(manifests[0], checkpoint_id=number, meta=meta), answered)

    def copy(self, deployment, manifest, dir, reply):
        """See `Deployment.copy`."""

        def copied():
            if self.world.chance(self.job.storage.failing):
                self._copied(Copied(None, reply, OSError("the disk is full")))
                return
            path = f"{dir}/{self.job.count('savepoint')}"
            self.job.savepoints[path] = manifest
            self._copied(Copied(path, reply))

        self.process.schedule(self.world.between((0.0, 2.0)), copied)

    def _copied(self, event):
        """A savepoint that is being made is waited for also when the job has ended."""
        self.manager.handle(event)
