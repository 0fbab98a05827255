import pytest

from statestore.testing.conformance import BackendConformance
from statestore_backends.memory import MemoryBackend
from tests.conformance.opened import opener


class TestMemory(BackendConformance):
    @pytest.fixture
    def open_backend(self):
        with opener(MemoryBackend, None, self.max_parallelism) as open_backend:
            yield open_backend
