import pytest

from statestore.testing.store_conformance import StoreConformance


class TestMemory(StoreConformance):
    backend = "memory"


class TestRocksDB(StoreConformance):
    backend = "rocksdb"


class TestFilesystem(StoreConformance):
    backend = "filesystem"


class TestEncryptedFilesystem(StoreConformance):
    backend = "filesystem"

    @pytest.fixture
    def settings(self, tmp_path):
        (tmp_path / "key").write_text("ab" * 32)
        return [f"encryption.key-file={tmp_path / 'key'}"]


class TestRedis(StoreConformance):
    backend = "redis"

    @pytest.fixture
    def settings(self, redis_url):
        return [f"state.redis.url={redis_url}"]
