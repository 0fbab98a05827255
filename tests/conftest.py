"""Fixtures for all tests."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

import pytest
import redis

from statestore.testing import redis_server
from tests import s3_server as s3_server_module

SOAK_EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "0"))
"""`make soak` tries so many examples where a test tries a few otherwise, other ones each time where they are chosen at random."""

IN_MEMORY = Path("/dev/shm")
FREE_BYTES_MIN = 4 << 30


def seeds(usual):
    """Seeds of histories, each of which takes a second or so."""
    return range(SOAK_EXAMPLES // 20 or usual)


def pytest_configure():
    """What tests write need not outlive the machine: where there is a file system in memory, no fsync has to be waited for."""
    if "TMPDIR" not in os.environ and IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > FREE_BYTES_MIN:
        os.environ["TMPDIR"] = str(IN_MEMORY)
        tempfile.tempdir = None
    # Hundreds of processes are started: without byte code beside the modules each of them would compile all of them again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


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


@pytest.fixture(scope="session")
def s3_server():
    """Environment of a real S3 server of this test process's own, set."""
    with pytest.MonkeyPatch.context() as patch, s3_server_module.running() as variables:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


@pytest.fixture
def s3_url(s3_server):
    """A place in it that no other test uses."""
    return f"s3://bucket/{uuid.uuid4().hex}"


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
