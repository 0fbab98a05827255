"""Fixtures of several files here: servers are shared by all tests of a process."""

from __future__ import annotations

import functools
import uuid

import fakeredis
import pytest
import redis

from statestore.config import load_config
from statestore_runtime.sources import KafkaSource, RedisStreamSource
from tests.conftest import BACKENDS
from tests.runtime.kafka_reading import Cluster
from tests.runtime.run_stories import Stage


@pytest.fixture(scope="session")
def kafka_cluster():
    return Cluster()


@pytest.fixture
def topic():
    return f"orders.{uuid.uuid4().hex}"


@pytest.fixture
def kafka_source(kafka_cluster):
    """Makes a source of the cluster's topics."""
    return functools.partial(KafkaSource, kafka_cluster.servers, properties={"fetch.wait.max.ms": 5})


@pytest.fixture(params=["server", "fake"])
def stream_client(request, monkeypatch):
    """A client; sources connect to the same server."""
    if request.param == "server":
        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            yield client
        return
    server = fakeredis.FakeServer()
    monkeypatch.setattr(redis.Redis, "from_url", lambda url, **options: fakeredis.FakeRedis(server=server))
    with fakeredis.FakeRedis(server=server) as client:
        yield client


@pytest.fixture
def stream_source(request, stream_client):
    """Makes a source of the client's server."""
    url = request.getfixturevalue("redis_url") if isinstance(stream_client, redis.Redis) else "redis://127.0.0.1:6379/0"
    return functools.partial(RedisStreamSource, url)


@pytest.fixture(params=BACKENDS)
def stage(request, places):
    return Stage(places, request.param)


@pytest.fixture
def memory_stage(places):
    """For what has nothing to do with the backend."""

    def make(*settings):
        return Stage(places, "memory", *settings)

    return make


@pytest.fixture
def run(places):
    """Runs a job; returns its report."""

    def run(job, *settings, backend="memory", restore="none"):
        config = load_config(overrides=[*places.overrides(backend), "restart.type=none", *settings])
        return job.run(config, restore=restore)

    return run
