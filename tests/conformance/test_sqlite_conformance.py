import pytest

from examples.sqlite_backend import SQLiteBackend
from statestore.backend import BackendContext, register_backend
from statestore.testing.conformance import BackendConformance
from statestore.testing.store_conformance import StoreConformance


class TestSQLite(BackendConformance):
    @pytest.fixture
    def open_backend(self, tmp_path):
        opened = []

        def open_backend(attempt=1, job="job", **options):
            context = BackendContext(job, str(tmp_path / "state"), self.max_parallelism, attempt, options)
            opened.append(SQLiteBackend.open(context))
            return opened[-1]

        yield open_backend
        for backend in opened:
            backend.close()

    @pytest.fixture
    def stored_folder(self, tmp_path):
        return tmp_path / "state"


class TestStoreOnSQLite(StoreConformance):
    backend = "sqlite"

    @pytest.fixture(autouse=True)
    def known(self):
        register_backend("sqlite", SQLiteBackend)
