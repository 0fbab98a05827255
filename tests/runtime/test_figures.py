"""What a job has come to: how many keys it has, where counting them does not keep anybody waiting."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from statestore.config import load_config
from statestore.store import StateStore
from statestore_runtime import CollectionSource, CollectSink, Job
from statestore_runtime.cli.display import Display
from statestore_runtime.deployment.runner import Outcome
from statestore_runtime.messages import finished_of
from statestore_runtime.task import figures
from tests.jobmanager.driving import FINISHED


@pytest.fixture
def run(tmp_path):
    """Run a job over three keys; what it has come to."""

    def run():
        job = Job("job")
        job.source(CollectionSource([1, 2, 3, 4])).key_by(lambda n: n % 3, int).reduce(max, int).sink(CollectSink())
        return job.run(load_config(overrides=["state.backend=memory", f"state.dir={tmp_path}"]), restore="none")

    return run


def test_keys_are_counted_up_to_a_size_of_the_state(run, monkeypatch):
    assert run().keys == 3
    monkeypatch.setattr(figures, "COUNTED_BYTES", 0)
    monkeypatch.setattr(StateStore, "count_keys", lambda self: pytest.fail("it reads all the state"))
    assert run().keys is None


@pytest.mark.parametrize(("of_workers", "of_job"), [([3, 4], 7), ([0, 0], 0), ([3, None], None), ([None, None], None)])
def test_a_job_knows_its_keys_where_all_workers_do(of_workers, of_job):
    workers = [replace(FINISHED, keys=keys) for keys in of_workers]
    assert finished_of(workers, checkpoints=0, last_checkpoint=None, heartbeat_seconds=0.0).keys == of_job


@pytest.mark.parametrize(("keys", "shown"), [(1, "5 events, 1 key, 2.0 s"), (None, "5 events, 2.0 s")])
def test_the_command_shows_them_if_they_are_known(capsys, keys, shown):
    outcome = Outcome(replace(FINISHED, keys=keys), restarts=0, seconds=2.0, recovery_seconds=0.0)
    with Display() as display:
        display.report(outcome, "statestore run job.py")
    assert capsys.readouterr().out.startswith(f"job finished: {shown} (5 events/s while it ran)\n")
