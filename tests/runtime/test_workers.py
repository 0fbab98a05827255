"""Worker processes that die, fall silent or are told to stop, and the JobManager that starts them again."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from statestore.config import load_config
from statestore.errors import StateStoreError
from statestore_runtime.deployment.runner import JobFailedError, JobRunner, JobStoppedError
from statestore_runtime.jobmanager.heartbeats import HeartbeatMonitor
from statestore_runtime.loading import load_job
from statestore_runtime.messages import CheckpointCompleted, Restarting, Started
from tests.command import command, environment, settings, statestore

JOB = """
import os
import signal
from pathlib import Path

from statestore.errors import UnavailableError
from statestore_runtime import CollectionSource, FileSink, Job, KeyedProcessFunction

HERE = Path(__file__).parent


def first(name="once"):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def kill(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


class Count(KeyedProcessFunction):
    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)

    def process(self, event, ctx):
        self.counts.update(self.counts.value() + 1)
        yield [event, self.counts.value()]

    def close(self):
        (HERE / "closed").touch()


def step(event):
    {step}
    return event


job = Job("tiny", {defaults})
events = job.source({source}).map(step)
events.key_by(lambda event: event % 2, int).process(Count()).sink(FileSink(HERE / "out", if_exists="replace"))
"""

EVENTS = "CollectionSource(range(6), batch_size=1)"
COUNTED = [[0, 1], [1, 1], [2, 2], [3, 2], [4, 3], [5, 3]]


class Runs:
    """Runs of a job file in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.messages = folder, []
        self.overrides = [
            "state.backend=filesystem",
            f"state.dir={folder / 'state'}",
            "checkpointing.interval=0",
            "restart.type=fixed-delay",
            "restart.attempts=10",
            "restart.delay=0",
        ]

    def write(self, step="pass", *, source=EVENTS, defaults="{}", text=JOB):
        file = self.folder / "tiny.py"
        text = text.replace("{step}", step).replace("{source}", source).replace("{defaults}", defaults)
        file.write_text(text)
        return file

    def runner(self, *overrides, restore=None, on_message=None, clock=None):
        target = str(self.folder / "tiny.py")
        job = load_job(target)
        return JobRunner(
            target,
            job,
            load_config(overrides=[*self.overrides, *overrides], defaults=job.defaults),
            restore=restore,
            on_message=on_message or self.messages.append,
            clock=clock,
        )

    def run(self, *overrides, **options):
        return self.runner(*overrides, **options).run()

    def failure(self, *overrides, **options):
        with pytest.raises(JobFailedError) as caught:
            self.run(*overrides, **options)
        return caught.value

    def told(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]

    def written(self):
        parts = sorted((self.folder / "out").glob("part-*"), key=lambda path: path.name.split("-")[3])
        return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


def test_a_job_that_does_not_fail(runs):
    runs.write()
    outcome = runs.run()
    assert (outcome.restarts, outcome.finished.events, runs.written()) == (0, 6, COUNTED)
    assert outcome.seconds >= outcome.recovery_seconds > 0
    assert (runs.folder / "closed").exists()


@pytest.mark.parametrize("restore", [None, "none"])
def test_a_worker_that_is_killed_is_replaced(runs, restore):
    runs.write("event == 4 and first() and kill()")
    outcome = runs.run(restore=restore)
    assert (outcome.restarts, outcome.finished.events, runs.written()) == (1, 6, COUNTED)
    (restarting,) = runs.told(Restarting)
    assert (restarting.reason, restarting.restart) == ("the worker process was killed by SIGKILL", 1)
    first, second = runs.told(Started)
    assert (first.restored_checkpoint, second.restored_checkpoint) == (None, 1)
    assert (first.attempt, second.attempt) == (1, 2)


def test_a_worker_that_ends_without_a_word(runs):
    runs.write("event == 4 and first() and os._exit(3)")
    outcome = runs.run()
    assert (outcome.restarts, runs.written()) == (1, COUNTED)
    assert runs.told(Restarting)[0].reason == "the worker process ended with exit code 3 without a word"


def test_restarts_are_used_up(runs):
    runs.write("event == 4 and kill()")
    error = runs.failure("restart.attempts=2")
    assert (error.exit_code, error.restarts) == (11, 2)
    assert str(error) == "the worker process was killed by SIGKILL (after 2 restarts)"
    assert len(runs.told(Restarting)) == 2
    assert runs.written() == []
    runs.write()
    runs.run(restore="latest")
    assert runs.written() == COUNTED


def test_no_restart_when_none_is_wanted(runs):
    runs.write("event == 4 and first() and kill()")
    error = runs.failure("restart.type=none")
    assert (error.exit_code, error.restarts, runs.told(Restarting)) == (11, 0, [])


WAITING = """
from statestore_runtime.sources import FixedSplitsSource, SplitReader


class Waiting(FixedSplitsSource, SplitReader):
    def read_part(self, part, position, context):
        self.index = position or 0
        return self

    def position(self):
        return self.index

    def next_batch(self):
        if self.index == 6:
            return None
        if self.index in (1, 3, 5) and not complete:
            return []
        self.index += 1
        return [self.index - 1]


complete = []
Count.on_checkpoint_complete = lambda self, checkpoint_id: complete.append(checkpoint_id)


def step(event):"""


def test_a_checkpoint_begins_the_count_again(runs):
    """Three deaths with one attempt: before each of them a checkpoint completes, for which the source waits."""
    step = "event in (1, 3, 5) and first(str(event)) and kill()"
    runs.write(step, source="Waiting()", text=JOB.replace("def step(event):", WAITING))
    outcome = runs.run("restart.attempts=1", "checkpointing.interval=1ms")
    assert (outcome.restarts, outcome.finished.events, runs.written()) == (3, 6, COUNTED)
    assert len(runs.told(CheckpointCompleted)) >= 4


def test_a_users_exception_is_tried_once_more_and_what_came_before_is_kept(runs):
    file = runs.write("event == 4 and 1 / 0")
    error = runs.failure()
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if "1 / 0" in text)
    text = f"operator 'map-1' failed on an event: ZeroDivisionError: division by zero (tiny.py:{line})"
    assert str(error) == f"{text} (after 1 restart)"
    assert (error.exit_code, [message.reason for message in runs.told(Restarting)]) == (10, [text])
    assert f'tiny.py", line {line}' in error.failure.traceback
    assert runs.written() == COUNTED[:4]
    runs.write()
    outcome = runs.run(restore="latest")
    assert (outcome.finished.events_this_run, runs.written()) == (2, COUNTED)


def test_a_users_exception_that_does_not_come_again(runs):
    runs.write("event == 4 and first() and 1 / 0")
    outcome = runs.run()
    assert (outcome.restarts, runs.written()) == (1, COUNTED)


def test_something_unavailable_is_tried_again_once_the_job_has_run(runs):
    runs.write('if event == 4 and first(): raise UnavailableError("server", "there", "no answer")')
    outcome = runs.run()
    assert (outcome.restarts, runs.written()) == (1, COUNTED)
    assert runs.told(Restarting)[0].reason == "server unavailable at there: no answer (in operator 'map-1')"


@pytest.mark.parametrize(("owner", "attempts"), [(1, [1]), (41, [1, 42])])
def test_fenced_by_an_attempt_that_the_checkpoints_know_or_not(runs, owner, attempts):
    """A greater one is claimed only where the owner was counted elsewhere: else two runs of a job would drive each other out for ever."""
    text = JOB.replace("UnavailableError", "FencedError", 1)
    runs.write(f'if event == 4 and first(): raise FencedError("there", 0, {owner})', text=text)
    if owner == 1:
        assert runs.failure().exit_code == 6
    else:
        runs.run()
        assert runs.written() == COUNTED
    assert [started.attempt for started in runs.told(Started)] == attempts


def test_an_internal_error_is_tried_again(runs):
    """It may be a bug that shows only now and then."""
    text = JOB.replace("def step(event):", "class Odd(BaseException): pass\n\n\ndef step(event):")
    runs.write("if event == 4 and first(): raise Odd", text=text)
    outcome = runs.run()
    assert (outcome.restarts, runs.written()) == (1, COUNTED)
    assert runs.told(Restarting)[0].reason == "internal error: Odd:"


def test_what_fails_before_the_job_has_ever_run_fails_again(runs):
    runs.write()
    (runs.folder / "file").touch()
    error = runs.failure(f"checkpointing.dir={runs.folder / 'file' / 'checkpoints'}")
    assert (error.exit_code, error.restarts, runs.told(Restarting)) == (3, 0, [])


@pytest.mark.parametrize(
    ("text", "message", "exit_code"),
    [
        ("1 / 0", "line 1: ZeroDivisionError: division by zero", 10),
        ("job = ", "line 1: SyntaxError", 10),
        ("x = 1", "has no job", 2),
        ("from statestore_runtime import Job\njob = Job('a b')", "job name 'a b'", 2),
        ("from statestore_runtime import Job\njob = Job('a', {'restart.typo': 1})", "restart.typo", 2),
        ("from statestore_runtime import Job\njob = Job('a')", "has no source", 2),
    ],
)
def test_a_job_file_that_is_no_good(runs, text, message, exit_code):
    runs.write(text=text)
    with pytest.raises(StateStoreError) as caught:
        runs.run()
    assert message in str(caught.value)
    assert (caught.value.exit_code, runs.messages) == (exit_code, [])


class Clock:
    """The JobManager's time, which goes on as a test wants it to."""

    def __init__(self, step):
        self.step, self.now = step, 0.0

    def time(self):
        raise AssertionError("the JobManager only measures")

    def monotonic(self):
        self.now += self.step()
        return self.now

    def sleep(self, seconds):
        raise AssertionError("the JobManager waits for messages")


def test_a_silent_worker_is_killed_and_replaced(runs):
    """No time passes until it stops itself, then more than the timeout at every look, until it is replaced."""
    runs.write("event == 4 and first() and kill(signal.SIGSTOP)")
    clock = Clock(lambda: 1000.0 if (runs.folder / "once").exists() and not runs.told(Restarting) else 0.0)
    outcome = runs.run("heartbeat.timeout=300s", clock=clock)
    assert (outcome.restarts, runs.written()) == (1, COUNTED)
    assert runs.told(Restarting)[0].reason == "the worker process stayed silent for 300 s and was killed"


def test_a_busy_worker_is_not_a_silent_one(runs, monkeypatch):
    """A third of the time-out passes with everything that is heard of it: while it is busy it lives by its heartbeats alone."""
    runs.write('while event == 4 and not (HERE / "enough").exists(): pass')
    clock, heard, original = Clock(lambda: 0.0), [], HeartbeatMonitor.heard

    def hear(monitor, index):
        clock.now += 100.0
        heard.append(index)
        if len(heard) == 100:
            (runs.folder / "enough").touch()
        original(monitor, index)

    monkeypatch.setattr(HeartbeatMonitor, "heard", hear)
    outcome = runs.run(
        "heartbeat.interval=5ms", "heartbeat.timeout=300s", "job.restore-timeout=1d", "job.stop-timeout=1d", clock=clock
    )
    assert (outcome.restarts, runs.written()) == (0, COUNTED)
    assert outcome.seconds > 9000


def test_a_signal_while_it_waits_for_the_restart(runs):
    runs.write("event == 4 and kill()")

    def stop(message):
        if isinstance(message, Restarting):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(JobStoppedError) as caught:
        runs.run("restart.delay=1h", on_message=stop)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_command_ends_the_job_in_order(runs, number, code):
    """The job says on standard output that it runs, then has events without end."""
    endless = "def endless():\n    yield from range(4)\n    while True:\n        yield 4\n\n\ndef step("
    text = JOB.replace("CollectionSource", "CollectionSource, IterableSource", 1).replace("def step(", endless, 1)
    step = "event == 3 and print('worker', os.getpid(), flush=True)"
    runs.write(step, source="IterableSource(endless, batch_size=1)", text=text)
    process = subprocess.Popen(
        command("run", runs.folder / "tiny.py", *settings(runs.overrides)),
        cwd=runs.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        worker = int(process.stdout.readline().removeprefix("worker "))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[-1] == "statestore: stopped before its end; go on with --restore latest"
    assert out == ""
    assert (runs.folder / "closed").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    runs.write()
    ended = statestore("run", runs.folder / "tiny.py", *settings(runs.overrides), cwd=runs.folder)
    assert (ended.code, "did not finish" in ended.err) == (2, True)
