import fakeredis
import pytest
import redis

from statestore.testing.conformance import BackendConformance
from statestore_backends.redis import RedisBackend
from tests.conformance.opened import opener


class TestRedisServer(BackendConformance):
    @pytest.fixture
    def open_backend(self, redis_url):
        with opener(RedisBackend, None, self.max_parallelism, {"url": redis_url}) as open_backend:
            yield open_backend


class TestFakeRedis(BackendConformance):
    @pytest.fixture
    def open_backend(self, monkeypatch):
        server = fakeredis.FakeServer()

        def connect(url, **options):
            return fakeredis.FakeRedis(server=server)

        monkeypatch.setattr(redis.Redis, "from_url", connect)
        with opener(RedisBackend, None, self.max_parallelism) as open_backend:
            yield open_backend
