"""The flights job loses its Redis server in mid-run: another one, empty, takes its place, and no flight is lost or counted twice."""

from __future__ import annotations

import pytest

from statestore.config import load_config
from statestore.testing import redis_server
from statestore_runtime.deployment.runner import JobRunner
from statestore_runtime.loading import load_job
from statestore_runtime.messages import CheckpointCompleted, Restarting
from tests.crash import flights
from tests.crash.test_flights import BUSY, JOB, SOME_FLIGHTS, check_output


@pytest.fixture
def servers(tmp_path):
    """Starts servers one after the other on the same port."""
    started = []

    def start():
        if started:
            started[-1].kill()
            started[-1].wait()
        process, port = redis_server.start(tmp_path, start.port)
        started.append(process)
        start.port = port
        return port

    start.port = None
    yield start
    started[-1].kill()
    started[-1].wait()


def test_a_server_replaced_by_an_empty_one(tmp_path, some_flights, monkeypatch, servers):
    port = servers()
    monkeypatch.setenv("FLIGHTS_OUT", str(tmp_path / "out" / "flights"))
    monkeypatch.setenv("FLIGHTS_CSV", str(some_flights))
    overrides = [
        *BUSY,
        "state.backend=redis",
        f"state.redis.url=redis://127.0.0.1:{port}/0",
        f"state.dir={tmp_path / 'local'}",
        "restart.initial-backoff=200ms",
    ]
    told = []

    def watch(message):
        told.append(message)
        if isinstance(message, CheckpointCompleted) and sum(isinstance(m, CheckpointCompleted) for m in told) == 4:
            servers()

    job = load_job(str(JOB))
    config = load_config(overrides=overrides, defaults=job.defaults)
    outcome = JobRunner(str(JOB), job, config, on_message=watch).run()
    assert outcome.restarts >= 1
    reasons = [message.reason for message in told if isinstance(message, Restarting)]
    assert all("redis unavailable" in reason for reason in reasons), reasons
    assert outcome.finished.keys == len({summary[0] for summary in flights.expected(SOME_FLIGHTS)})
    check_output(tmp_path, flights.expected(SOME_FLIGHTS))
