"""Two worker processes, one of which dies, falls silent or loses its connections; what comes out counts exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter

import pytest

from statestore.config import load_config
from statestore_runtime.deployment.runner import JobRunner
from statestore_runtime.loading import load_job
from statestore_runtime.messages import Restarting
from tests.command import command, environment, settings, statestore

EVENTS = 400

JOB = """
import os
import signal
import socket
from pathlib import Path

from statestore import crashpoints
from statestore_runtime import CollectionSource, FileSink, Job, KeyedProcessFunction
from statestore_runtime.deployment import peers

HERE = Path(__file__).parent


def first(name="once"):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Network(peers.PeerNetwork):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        Network.open = self

    def cut(self):
        for peer in filter(None, self._peers):
            peer.socket.shutdown(socket.SHUT_RDWR)


import __main__  # the worker's

__main__.PeerNetwork = Network


def fault():
    {fault}


class Count(KeyedProcessFunction):
    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)
        self.subtask, self.processed = ctx.subtask, 0
        (HERE / f"pid-{ctx.subtask}").write_text(str(os.getpid()))
        if (HERE / "once").exists() and "{at}" == "open" and ctx.subtask == 1 and first("twice"):
            fault()

    def process(self, event, ctx):
        self.counts.update(self.counts.value() + 1)
        self.processed += 1
        if "{at}" in ("process", "open") and self.subtask == 1 and self.processed == 30 and first():
            fault()
        yield event, self.counts.value()


def reach(name, original=crashpoints.reach):
    if name == "{at}" and (HERE / "begun").exists() and first():
        fault()
    original(name)


def step(event):
    (HERE / "begun").touch()
    {step}
    return event


crashpoints.reach = reach
job = Job("faults")
events = job.source(CollectionSource(range(400), splits=2, batch_size=5)).map(step)
counted = events.key_by(lambda event: event % 50, int).process(Count())
again = counted.key_by(lambda row: row[0] % 7, int).process(Count())
again.map(lambda row: row[0][0]).sink(FileSink(HERE / "out", if_exists="replace"))
"""

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
STOP = "os.kill(os.getpid(), signal.SIGSTOP)"
CUT = "Network.open.cut()"


class Runs:
    def __init__(self, folder):
        self.folder, self.messages = folder, []
        self.overrides = [
            "state.backend=filesystem",
            f"state.dir={folder / 'state'}",
            "job.parallelism=2",
            "checkpointing.interval=20ms",
            "restart.type=fixed-delay",
            "restart.attempts=10",
            "restart.delay=0",
        ]

    def write(self, fault="pass", at="never", step="pass"):
        text = JOB.replace("{fault}", fault).replace("{at}", at).replace("{step}", step)
        (self.folder / "faults.py").write_text(text)

    def run(self, *overrides, clock=None):
        target = str(self.folder / "faults.py")
        job, config = load_job(target), load_config(overrides=[*self.overrides, *overrides])
        return JobRunner(target, job, config, on_message=self.messages.append, clock=clock).run()

    @property
    def reasons(self):
        return [message.reason for message in self.messages if isinstance(message, Restarting)]

    def check(self):
        """Every event is there, once."""
        parts = (self.folder / "out").glob("part-*")
        written = Counter(json.loads(line) for part in parts for line in part.read_text().splitlines())
        assert written == Counter(range(EVENTS))


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


@pytest.mark.parametrize("at", ["process", "open", "checkpoint.uploading", "sink.prepared", "sink.committing"])
def test_killed(runs, at):
    """While it runs, restores, takes its part of a checkpoint, or makes output visible."""
    runs.write(KILL, at)
    outcome = runs.run()
    runs.check()
    assert outcome.finished.events == EVENTS
    assert len(runs.reasons) == (2 if at == "open" else 1)
    assert all(
        reason.startswith("worker process") and reason.endswith("was killed by SIGKILL") for reason in runs.reasons
    )


def test_killed_at_the_final_checkpoint(runs):
    runs.write(KILL, "checkpoint.uploading")
    runs.run("checkpointing.interval=0")
    runs.check()
    assert len(runs.reasons) == 1


def test_cut_off(runs):
    """Both workers live, but hear no more of each other."""
    runs.write(CUT, "process")
    runs.run()
    runs.check()
    assert len(runs.reasons) == 1
    assert "lost its connection with worker" in runs.reasons[0]


class Clock:
    """The JobManager's time: none passes until a worker has stopped itself, then more than the time-out at every look."""

    def __init__(self, runs):
        self.runs, self.now = runs, 0.0

    def time(self):
        return 1_700_000_000.0

    def monotonic(self):
        self.now += 1000.0 if (self.runs.folder / "once").exists() and not self.runs.reasons else 0.0
        return self.now


def test_silent(runs):
    runs.write(STOP, "process")
    runs.run("checkpointing.interval=0", clock=Clock(runs))
    runs.check()
    assert len(runs.reasons) == 1
    assert "stayed silent for 50 s and was killed" in runs.reasons[0]


def test_the_job_manager_is_killed(runs):
    """Its workers end themselves, and another one goes on."""
    runs.write(step="import time; time.sleep(0.02)")
    process = subprocess.Popen(
        command("run", runs.folder / "faults.py", *settings(runs.overrides)),
        cwd=runs.folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = runs.folder / "state" / "checkpoints" / "faults"
    with process:
        while len(list(checkpoints.glob("chk-*/_metadata"))) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    for worker in (0, 1):
        pid = int((runs.folder / f"pid-{worker}").read_text())
        while is_alive(pid):
            time.sleep(0.01)
    runs.write()
    ended = statestore(
        "run", runs.folder / "faults.py", "--restore", "latest", *settings(runs.overrides), cwd=runs.folder
    )
    assert ended.code == 0, ended.err
    runs.check()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
