import pytest

from statestore.testing.conformance import BackendConformance
from statestore_backends.rocksdb import RocksDBBackend
from tests.conformance.opened import opener


class TestRocksDB(BackendConformance):
    fenced = False  # RocksDB's own lock lets one process in; the state folder's lock comes before it

    @pytest.fixture
    def open_backend(self, tmp_path):
        with opener(RocksDBBackend, tmp_path / "db", self.max_parallelism) as open_backend:
            yield open_backend

    @pytest.fixture
    def stored_folder(self, tmp_path):
        return tmp_path / "db"
