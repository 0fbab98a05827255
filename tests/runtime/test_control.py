"""What others ask of a JobManager while it runs, stops, fails; and the socket that they ask by."""

from __future__ import annotations

import os
import socket
import threading
from types import SimpleNamespace

import msgspec
import pytest

from statestore.config import load_config
from statestore.errors import CorruptionError, UnavailableError, UsageError
from statestore.testing.clock import FakeClock
from statestore_runtime.control import place
from statestore_runtime.control.client import JobClient, ask, known_jobs
from statestore_runtime.control.messages import (
    CancelJob,
    GetStatus,
    JobNotRunningError,
    JobStatus,
    MakeCheckpoint,
    RequestFailedError,
    RescaleJob,
)
from statestore_runtime.control.place import control_folder, read_address
from statestore_runtime.control.server import ControlServer, JobEndedError, JobIsRunningError
from statestore_runtime.deployment.runner import JobRunner, LeadershipLostError
from statestore_runtime.jobmanager.events import (
    Claimed,
    Committed,
    Copied,
    Lost,
    RequestRefusedError,
    Rescale,
    Stop,
    TakeCheckpoint,
    Told,
)
from statestore_runtime.jobmanager.manager import JobManager
from statestore_runtime.jobmanager.restart import restart_strategy
from statestore_runtime.jobmanager.state import JobState
from statestore_runtime.loading import load_job
from statestore_runtime.messages import Finished, Restarting
from statestore_runtime.protocol import Acknowledged, Begin, Done, Drain, Opened, Trigger
from tests.running import Runs

SHARES = dict.fromkeys(("wal", "persistence", "checkpoint", "heartbeat", "recovery"), 0.0)


class World:
    """A JobManager, and a deployment that only notes what it is told."""

    def __init__(self, parallelism=1):
        config = load_config(overrides=["restart.type=fixed-delay", "restart.delay=0", "checkpointing.interval=0"])
        self.clock, self.sent, self.copies, self.replies = FakeClock(), [], [], []
        self.number = self.checkpoint = 0
        self.manager = JobManager(
            "job",
            config,
            parallelism=parallelism,
            restore=None,
            run="run",
            clock=self.clock,
            deployment=self,
            strategy=restart_strategy(config.restart, self.clock, lambda: 0.0),
            emit=lambda message: None,
        )
        self.manager.start()

    # As a Deployment

    def claim(self, deployment, above):
        self.number = deployment

    def start(self, deployment, deploy):
        self.parallelism = deploy.parallelism

    def send(self, worker, command):
        self.sent.append(command)

    def end(self, *, at_once):
        self.sent.clear()

    def commit(self, deployment, checkpoint, manifests, meta, seconds):
        self.committing = checkpoint

    def copy(self, deployment, manifest, dir, reply):
        self.copies.append((manifest, dir, reply))

    # What happens

    def told(self, report):
        for worker in range(self.parallelism):
            self.manager.handle(Told(self.number, worker, report))

    def begin(self):
        """Let a deployment come up to where it reads."""
        self.manager.tick()
        self.manager.handle(Claimed(self.number, self.number))
        self.told(
            Opened(
                backend="memory",
                state="here",
                checkpoints="there",
                restored_checkpoint=self.checkpoint or None,
                restored_epoch=self.checkpoint,
                is_newest=True,
                events=0,
                recover_seconds=0.0,
                splits={},
            )
        )
        if not self.checkpoint:
            self.complete()

    def complete(self):
        """Let the checkpoint that is due be complete; returns its trigger."""
        self.manager.tick()
        trigger = [command for command in self.sent if isinstance(command, Trigger)][-1]
        meta = {"events": 0, "skipped": 0, "operators": [], "sources": {}, "sinks": {}, "states": {}}
        self.told(Acknowledged(checkpoint=trigger.checkpoint, manifest=None, meta=meta, phases={}))
        self.checkpoint += 1
        info = SimpleNamespace(
            checkpoint_id=self.checkpoint,
            epoch=self.checkpoint,
            seconds=0.0,
            uploaded_bytes=0,
            total_bytes=0,
            path=f"chk-{self.checkpoint}",
            manifest=SimpleNamespace(meta=meta, number=self.checkpoint),
        )
        # What workers are told holds a true manifest; these here only look at the kind of command.
        self.manager.handle(Committed(self.number, trigger.checkpoint, info))
        return trigger

    def done(self):
        figures = dict.fromkeys(
            ("events", "events_this_run", "bad_records", "keys", "checkpoints", "state_bytes", "uploaded_bytes"), 0
        )
        self.told(
            Done(
                finished=Finished(
                    job="job",
                    seconds=1.0,
                    last_checkpoint=None,
                    wal_disk_bytes=0,
                    wal_age_seconds=0.0,
                    outputs=[],
                    shares=SHARES,
                    **figures,
                )
            )
        )

    def lose(self):
        self.manager.handle(Lost(self.number, 0, "was killed by SIGKILL"))

    def ask(self, kind, *arguments, **options):
        self.manager.handle(kind(*arguments, self.replies.append, **options))


@pytest.fixture
def world():
    world = World()
    world.begin()
    assert world.manager.state is JobState.RUNNING
    return world


def test_a_stop_that_a_failure_comes_before_is_carried_out_by_the_next_deployment(world):
    world.ask(Stop)
    world.manager.tick()
    world.lose()
    world.begin()
    assert world.replies == []
    assert world.complete().stop
    world.done()
    assert (world.replies, world.manager.state, world.manager.was_stopped) == ([2], JobState.FINISHED, True)


def test_so_is_a_drain(world):
    world.ask(Stop, drain=True)
    assert Drain() in world.sent
    world.lose()
    world.begin()
    assert {Begin(), Drain()} <= set(world.sent)


def test_a_savepoint_of_a_stopped_job_is_copied_once(world):
    world.ask(lambda reply: Stop(reply, "there"))
    world.complete()
    world.lose()  # after its checkpoint is complete, before it has closed what it had open
    world.begin()
    world.complete()
    world.done()
    ((manifest, dir, reply),) = world.copies
    assert (manifest.number, dir, world.replies, world.manager.was_stopped) == (2, "there", [], True)
    world.manager.handle(Copied("there", reply))
    assert (world.replies, world.manager.savepoint) == (["there"], "there")


def test_a_failure_before_a_rescaling_does_it_all_the_same(world):
    world.manager.handle(Rescale(3, world.replies.append))
    world.lose()
    assert world.replies == []
    world.begin()
    assert (world.parallelism, world.manager.state, world.replies) == (3, JobState.RUNNING, [3])


def test_a_failure_while_the_rescaled_workers_open_does_not_undo_it(world):
    world.manager.handle(Rescale(2, world.replies.append))
    world.complete()
    world.done()
    world.manager.handle(Claimed(world.number, 2))
    world.lose()
    world.begin()
    assert (world.parallelism, world.replies) == (2, [2])


def test_a_number_of_workers_that_can_not_be(world):
    world.manager.handle(Rescale(129, world.replies.append))
    assert isinstance(world.replies[0], UsageError)


def test_who_waits_for_a_checkpoint_of_a_job_that_finishes_is_told(world):
    world.ask(Stop)
    world.complete()
    world.ask(TakeCheckpoint)
    assert isinstance(world.replies.pop(), RequestRefusedError)
    world.done()
    assert world.replies == [2]


def test_given_up(world):
    world.ask(TakeCheckpoint)
    world.manager.give_up("it leads no more")
    assert [str(reply) for reply in world.replies] == ["it leads no more"]
    assert world.manager.state is JobState.CANCELLED


# The socket


@pytest.fixture
def serve(tmp_path):
    servers = []

    def make(handle, job="job", **options):
        servers.append(ControlServer(control_folder(str(tmp_path), job), job, handle, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_requests_and_answers(serve, tmp_path):
    taken = []

    def handle(request, reply):
        taken.append(request)
        match request:
            case GetStatus():
                reply(msgspec.to_builtins(JobStatus(job="job", state="running", pid=os.getpid())))
            case RescaleJob(parallelism=parallelism):
                threading.Thread(target=reply, args=({"parallelism": parallelism},)).start()
            case CancelJob():
                reply(RequestRefusedError("not\nnow"))
            case _:
                raise AttributeError("odd")

    serve(handle)
    client = JobClient(str(tmp_path), "job")
    assert client.statuses() == [JobStatus(job="job", state="running", pid=os.getpid())]
    assert client.request(RescaleJob(parallelism=3)) == {"parallelism": 3}
    with pytest.raises(RequestFailedError, match=r"^not now$") as caught:
        client.request(CancelJob())
    assert caught.value.exit_code == 3
    with pytest.raises(RequestFailedError, match="internal error: AttributeError: odd"):
        client.request(MakeCheckpoint())
    assert [request for request in taken if not isinstance(request, GetStatus)] == [
        RescaleJob(parallelism=3),
        CancelJob(),
        MakeCheckpoint(),
    ]


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b'{"request":"status","more":1}\n', b'{"request":"explode"}\n', b"{"])
def test_what_is_no_request_is_refused(serve, tmp_path, line):
    serve(lambda request, reply: pytest.fail("it is none"))
    address = read_address(control_folder(str(tmp_path), "job"))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address.socket)
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer = msgspec.json.decode(connection.makefile("rb").read())
    assert answer["exit_code"] == 2
    assert answer["error"].startswith("that is no request of this version")


def test_who_waits_when_the_job_ends_is_told(serve, tmp_path):
    asked = threading.Event()
    server = serve(lambda request, reply: asked.set())
    address = read_address(control_folder(str(tmp_path), "job"))
    found = []

    def wait():
        with pytest.raises(RequestFailedError, match="job 'job' has ended before it could do that") as caught:
            ask(address, MakeCheckpoint())
        found.append(caught.value.exit_code)

    thread = threading.Thread(target=wait)
    thread.start()
    asked.wait()
    server.close()
    thread.join()
    assert found == [3]
    with pytest.raises(ProcessLookupError):
        ask(address, GetStatus())
    with pytest.raises(JobNotRunningError):
        JobClient(str(tmp_path), "job").statuses()


def test_one_server_a_folder(serve):
    server = serve(lambda request, reply: None)
    with pytest.raises(JobIsRunningError, match=f"process {os.getpid()} uses it"):
        serve(lambda request, reply: None, lock_seconds=0)
    server.close()
    second = serve(lambda request, reply: reply({}), lock_seconds=0)
    server.close()  # once more changes nothing
    assert ask(read_address(second.folder), GetStatus()) == {}


def test_a_folder_that_others_can_write_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = place.private_folder()
    assert folder == place.private_folder()
    folder.chmod(0o770)
    with pytest.raises(UnavailableError, match="others can write there"):
        place.private_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UnavailableError, match="others can write there"):
        place.private_folder()


def test_who_does_not_lead_does_nothing(tmp_path):
    runs = Runs(tmp_path)
    runs.limit(10)
    job = load_job(str(runs.file))
    config = load_config(overrides=runs.overrides, defaults=job.defaults)
    messages = []
    leads = iter([True] * 30)  # for so many looks

    def run():
        runner = JobRunner(
            str(runs.file),
            job,
            config,
            on_message=messages.append,
            listens=False,
            leads=lambda: next(leads, False),
        )
        with pytest.raises(LeadershipLostError):
            runner.run()
        assert runner.pids == []
        told = []
        runner.control(GetStatus(), told.append)
        assert isinstance(told[0], JobEndedError)

    run()
    checkpoints = sorted((tmp_path / "state" / "checkpoints" / "gated").rglob("*"))
    assert [path.name for path in (tmp_path / "state" / "checkpoints" / "gated" / "attempts").iterdir()] == ["1"]
    run()
    assert sorted((tmp_path / "state" / "checkpoints" / "gated").rglob("*")) == checkpoints
    assert not any(isinstance(message, Restarting) for message in messages)


def test_another_machine_is_named(tmp_path):
    folder = control_folder(str(tmp_path), "job")
    folder.mkdir(parents=True)
    (folder / "address.json").write_text('{"pid":1,"host":"elsewhere.example","socket":"x"}')
    with pytest.raises(UnavailableError, match=r"runs on elsewhere\.example; give the command there"):
        JobClient(str(tmp_path), "job").statuses()
    (folder / "address.json").write_text("{")
    with pytest.raises(CorruptionError, match=r"address\.json"):
        JobClient(str(tmp_path), "job").statuses()
    assert known_jobs(str(tmp_path)) == ["job"]


def test_who_asks_while_too_many_files_are_open_is_served_later(serve, monkeypatch, caplog):
    monkeypatch.setattr("statestore_runtime.control.server.ALIVE_SECONDS", 0.01)
    server = serve(lambda request, reply: reply({"job": "job"}))
    original, failures = socket.socket.accept, [OSError(24, "Too many open files")] * 2

    def accept(listener):
        if failures:
            raise failures.pop()
        return original(listener)

    address = read_address(server.folder)
    ask(address, GetStatus())
    monkeypatch.setattr(socket.socket, "accept", accept)
    ask(address, GetStatus())  # the thread waits in the original still
    assert ask(address, GetStatus()) == {"job": "job"}
    assert not failures and "requests about job 'job' have to wait" in caplog.text
