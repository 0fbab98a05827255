"""What stands between a JobManager and its workers, its storage, and those who ask it, without a worker in it."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
from types import SimpleNamespace

import pytest

from statestore.config import load_config
from statestore.errors import FencedError
from statestore.testing.clock import FakeClock
from statestore_runtime.deployment import candidate, processes, storing
from statestore_runtime.deployment.candidate import Candidate
from statestore_runtime.deployment.processes import Processes
from statestore_runtime.deployment.runner import JobRunner, JobStoppedError, LeadershipLostError
from statestore_runtime.deployment.storing import Storing
from statestore_runtime.deployment.wire import FrameSocket, framed
from statestore_runtime.ha import RunRecord
from statestore_runtime.jobmanager.events import Copied, Lost, Told
from statestore_runtime.loading import load_job
from statestore_runtime.protocol import Deploy, Failed, Heartbeat, encode
from tests.jobmanager.driving import manifest_of

JOB = """
from statestore_runtime import CollectionSource, Job

job = Job("tiny")
job.source(CollectionSource([1])).print()
"""

DEPLOY = Deploy(attempt=1, parallelism=3, restore=None, run="run")


@pytest.fixture
def target(tmp_path):
    (tmp_path / "tiny.py").write_text(JOB)
    return str(tmp_path / "tiny.py")


@pytest.fixture
def config(tmp_path):
    return load_config(overrides=["state.backend=memory", f"state.dir={tmp_path / 'state'}"])


@pytest.fixture
def selector():
    with selectors.DefaultSelector() as selector:
        yield selector


# Sockets


def test_what_an_end_has_said_before_it_hung_up_is_heard():
    ours, theirs = socket.socketpair()
    connection = FrameSocket(ours)
    theirs.sendall(framed(b"my last word"))
    theirs.close()
    connection.send([b"to nobody"])
    assert (connection.is_heard, connection.has_unsent, connection.is_open) == (False, False, True)
    connection.send([b"to nobody"])
    assert connection.receive() == [b"my last word"] and connection.is_open
    assert connection.receive() == [] and not connection.is_open
    connection.close()


# Processes


class Dead:
    """A process that was killed."""

    def poll(self):
        return -9

    def wait(self, timeout=None):
        return -9

    def kill(self):
        pass


def test_a_worker_that_has_died_is_the_cause_also_when_it_has_said_something_before(config, selector):
    posted = []
    workers = Processes("tiny.py", "tiny", config, posted.append, selector)
    others = []
    for subtask, process in enumerate([Dead(), SimpleNamespace(**vars(Dead()), poll=lambda: None)]):
        ours, theirs = socket.socketpair()
        worker = processes._Process(process, FrameSocket(ours))
        workers._workers.append(worker)
        selector.register(worker.control, selectors.EVENT_READ, lambda subtask=subtask: workers._listen(subtask))
        others.append(theirs)
    others[0].sendall(framed(encode(Heartbeat())))
    others[0].close()
    lost_peer = Failed(error="it lost its connection", exit_code=3, is_lost_peer=True)
    others[1].sendall(framed(encode(lost_peer)))
    workers._listen(1)
    assert posted == [Told(0, 0, Heartbeat()), Lost(0, 0, "was killed by SIGKILL"), Told(0, 1, lost_peer)]
    workers._listen(0)  # the selector has seen it as well
    assert len(posted) == 3
    others[1].close()
    for worker in workers._workers:
        worker.control.close()


@pytest.mark.parametrize("started", [0, 1])
def test_a_system_that_starts_no_more_processes_fails_the_deployment(config, selector, monkeypatch, started):
    posted, begun, opened = [], [], []
    popen, pair = processes.subprocess.Popen, socket.socketpair

    def start(*arguments, **options):
        if len(begun) == started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        begun.append(popen(["sleep", "1000"], **options))
        return begun[-1]

    def sockets():
        opened.extend(pair())
        return opened[-2:]

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.setattr(processes.socket, "socketpair", sockets)
    workers = Processes("tiny.py", "tiny", config, posted.append, selector)
    workers.start(4, DEPLOY)
    (told,) = posted
    assert (told.deployment, told.worker, told.report.exit_code) == (4, started, 3)
    text = f"process unavailable at worker {started}: it can't be started: Resource temporarily unavailable; raise its"
    assert told.report.error.startswith(text)
    workers.end(at_once=True)
    assert all(end.fileno() == -1 for end in opened), "nothing is left open"


def test_fewer_sockets_are_open_at_once_than_there_are_in_all(config, selector, monkeypatch):
    most, pair, opened = [], socket.socketpair, []

    def sockets():
        opened.extend(pair())
        most.append(sum(end.fileno() != -1 for end in opened))
        return opened[-2:]

    workers = Processes("tiny.py", "tiny", config, lambda event: None, selector)
    popen = processes.subprocess.Popen
    monkeypatch.setattr(processes.socket, "socketpair", sockets)
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *a, **options: popen(["sleep", "1000"], **options))
    workers.start(1, Deploy(attempt=1, parallelism=8, restore=None, run="run"))
    workers.end(at_once=True)
    assert len(opened) == 8 * 7 + 2 * 8
    assert max(most) < 40


# Storage


class Checkpoints:
    """Knows only which checkpoint is pinned."""

    def __init__(self, pinned=()):
        self.pins, self.pinned = SimpleNamespace(numbers=lambda: set(self.pinned)), set(pinned)

    def pin(self, number):
        self.pinned.add(number)

    def unpin(self, number):
        self.pinned.remove(number)


@pytest.mark.parametrize("pinned_by_others", [False, True])
def test_a_checkpoint_is_pinned_until_the_last_copy_of_it_is_made(config, monkeypatch, pinned_by_others):
    copied, copying, may_end = threading.Semaphore(0), threading.Semaphore(0), {}

    def save(checkpoints, manifest, dir, clock):
        copying.release()
        may_end[dir].wait()
        return SimpleNamespace(path=dir)

    monkeypatch.setattr(storing, "save_checkpoint", save)
    works = Storing(config, "job", FakeClock(), lambda event: copied.release())
    works.checkpoints = Checkpoints({7} if pinned_by_others else ())
    for dir in ("one", "other"):
        may_end[dir] = threading.Event()
        works.copy(1, manifest_of(7, {}), dir, lambda outcome: None)
        copying.acquire()
    may_end["one"].set()
    copied.acquire()
    assert works.checkpoints.pinned == {7}
    may_end["other"].set()
    copied.acquire()
    assert works.checkpoints.pinned == ({7} if pinned_by_others else set())


# One run


@pytest.fixture
def make_runner(target, config):
    def make(**options):
        return JobRunner(target, load_job(target), config, listens=False, **options)

    return make


def test_who_waits_for_a_savepoint_hears_of_it_when_the_leadership_was_lost_meanwhile(make_runner):
    run = make_runner(leads=lambda: False)
    with pytest.raises(LeadershipLostError):
        run.run()
    told = []
    run.request(Copied("file:///savepoint", told.append))
    assert told == ["file:///savepoint"]


def test_a_signal_ends_the_process_also_when_the_leadership_is_lost_meanwhile(make_runner):
    def leads():
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    with pytest.raises(JobStoppedError) as caught:
        make_runner(leads=leads).run()
    assert caught.value.exit_code == 143


def test_what_was_said_counts_before_anybody_is_taken_for_silent(make_runner, monkeypatch):
    run, seen = make_runner(), []
    run.manager = SimpleNamespace(handle=seen.append, tick=lambda: seen.append("tick") or 1.0, job="tiny")
    told = Told(1, 0, Heartbeat())
    run.request(told)
    run._step()
    assert seen == [told, "tick"]
    run._close()


def test_a_second_signal_waits_for_no_savepoint(make_runner, monkeypatch):
    """The job has been cancelled by the first, and the copy of a savepoint is stuck."""
    run = make_runner()
    steps = []

    def step():
        run._storing.copies = 1
        steps.append(None)
        os.kill(os.getpid(), signal.SIGTERM)
        run._take_events()

    monkeypatch.setattr(run, "_step", step)
    with pytest.raises(JobStoppedError):
        run.run()
    assert len(steps) == 2


# One of several


class Elected:
    """A leader's part of what is beside the lease, which it has lost or not."""

    def __init__(self, token, take_over):
        self.leader, self.latest = SimpleNamespace(token=token), SimpleNamespace(take_over=take_over)


def fenced(token):
    raise FencedError("lease", token, token + 1)


def test_a_leadership_that_was_over_before_it_began_is_stood_by_for_again(target, config):
    one = Candidate(target, load_job(target), config)
    one._ha = Elected(None, fenced)
    assert one._lead(5) is None
    one._ha = Elected(5, fenced)
    with pytest.raises(FencedError):
        one._lead(5)


@pytest.mark.parametrize("parallelism", [None, 2])
def test_a_leader_that_takes_over_a_run_tries_again_what_may_pass(target, config, monkeypatch, parallelism):
    options = {}

    def make(*arguments, **given):
        options.update(given)
        return SimpleNamespace(run=lambda: SimpleNamespace(stopped=False), manager=SimpleNamespace(last_checkpoint=1))

    monkeypatch.setattr(candidate, "JobRunner", make)
    one = Candidate(target, load_job(target), config)
    one._own_config = config
    one._ha = Elected(5, fenced)
    one._ha.run = SimpleNamespace(write=lambda record: record)
    one._run(5, RunRecord(token=5, run="run", parallelism=parallelism))
    assert (options["resumed"], options["run"]) == (parallelism is not None, "run")
