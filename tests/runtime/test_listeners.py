"""Listeners of a job, and of its functions: what they are told of checkpoints, and when."""

from __future__ import annotations

from typing import ClassVar

import pytest
from msgspec.structs import replace

from statestore.config import load_config
from statestore.errors import UnavailableError, UsageError
from statestore_runtime import CheckpointListener, CollectionSource, CollectSink, Job, KeyedProcessFunction, run_job
from statestore_runtime.deployment import storing
from statestore_runtime.messages import CheckpointCompleted


class Told(CheckpointListener):
    def __init__(self):
        self.heard = []

    def on_restore(self, checkpoint_id):
        self.heard.append(("restored", checkpoint_id))

    def on_checkpoint_complete(self, checkpoint_id):
        self.heard.append(("complete", checkpoint_id))

    def on_checkpoint_failed(self, checkpoint_id, reason):
        self.heard.append(("failed", reason.partition(":")[0]))


class Function(KeyedProcessFunction):
    heard: ClassVar = []  # shared by the copies that workers get

    def process(self, event, ctx):
        yield event

    on_restore = staticmethod(lambda checkpoint_id: Function.heard.append(("restored", checkpoint_id)))
    on_checkpoint_complete = staticmethod(lambda checkpoint_id: Function.heard.append(("complete", checkpoint_id)))
    on_checkpoint_failed = staticmethod(
        lambda checkpoint_id, reason: Function.heard.append(("failed", reason.partition(":")[0]))
    )


def job_of(*listeners):
    job = Job("job")
    for listener in listeners:
        job.listen(listener)
    job.source(CollectionSource(range(10))).key_by(lambda n: n, int).process(Function()).sink(CollectSink())
    return job


@pytest.fixture
def config(tmp_path):
    return load_config(
        overrides=[f"state.dir={tmp_path}", "state.backend=memory", "checkpointing.interval=0", "job.parallelism=2"]
    )


def test_a_job_and_its_functions_are_told(config, monkeypatch):
    original, calls = storing.complete_parts, []

    def complete(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise UnavailableError("storage", "there", "it is away")
        return original(*arguments)

    monkeypatch.setattr(storing, "complete_parts", complete)
    monkeypatch.setattr("statestore_runtime.jobmanager.rounds.RETRY_SECONDS", 0.0)
    Function.heard.clear()
    told = Told()
    config = replace(config, checkpointing=replace(config.checkpointing, tolerable_failed=1))
    run_job(job_of(told), config)
    assert told.heard == [("complete", 1), ("failed", "storage unavailable at there"), ("complete", 2)]
    assert sorted(Function.heard) == sorted(2 * told.heard), "each of two workers has a function"
    again = Told()
    run_job(job_of(again), config, restore="latest")
    assert again.heard == [("restored", 2), ("complete", 3)]


def test_a_listener_that_fails_is_logged_and_the_job_goes_on(config, caplog):
    class Broken(Told):
        def on_checkpoint_complete(self, checkpoint_id):
            raise ZeroDivisionError

    told, messages = Told(), []
    finished = run_job(job_of(Broken(), told), config, emit=messages.append)
    assert finished.events == 10
    assert told.heard == [("complete", 1), ("complete", 2)]
    assert [m.checkpoint for m in messages if isinstance(m, CheckpointCompleted)] == [1, 2]
    assert [record.message for record in caplog.records] == ["a checkpoint listener of the job failed: Broken"] * 2


def test_what_is_no_listener():
    with pytest.raises(UsageError, match=r"listen\(\) takes an object of a CheckpointListener, not str"):
        Job("job").listen("me")
