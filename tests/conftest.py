"""Fixtures for all tests."""

from __future__ import annotations

import pytest
import redis

from statestore.testing import redis_server


@pytest.fixture(scope="session")
def redis_server_url():
    """A real server of this test process's own; that it can't be started is a failure."""
    with redis_server.running() as url:
        yield url


@pytest.fixture
def redis_url(redis_server_url):
    """The server, emptied."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushall()
    return redis_server_url


class Places:
    """Where the backends of one test keep their state."""

    def __init__(self, folder, redis_url):
        self.folder, self.redis_url = folder, redis_url

    def overrides(self, backend):
        """Settings for a configuration."""
        settings = [f"state.backend={backend}", f"state.dir={self.folder / 'local'}"]
        return [*settings, f"state.redis.url={self.redis_url}"] if backend == "redis" else settings


BACKENDS = ("memory", "rocksdb", "filesystem", "redis")


@pytest.fixture
def places(tmp_path, redis_url):
    return Places(tmp_path, redis_url)
