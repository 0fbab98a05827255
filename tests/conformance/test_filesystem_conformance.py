import uuid
from functools import partial

import pytest

import statestore.io
from statestore.io import Keyring
from statestore.testing.conformance import BackendConformance
from statestore_backends.filesystem import FilesystemBackend
from tests.conformance.opened import opener


class TestLocalFilesystem(BackendConformance):
    @pytest.fixture
    def open_backend(self, tmp_path):
        with opener(FilesystemBackend, tmp_path / "files", self.max_parallelism) as open_backend:
            yield open_backend

    @pytest.fixture
    def stored_folder(self, tmp_path):
        return tmp_path / "files"


class TestEncryptedFilesystem(BackendConformance):
    @pytest.fixture
    def open_backend(self, tmp_path):
        open_storage = partial(statestore.io.open_storage, keys=Keyring([bytes(range(32))]))
        with opener(FilesystemBackend, tmp_path / "files", self.max_parallelism, None, open_storage) as open_backend:
            yield open_backend

    @pytest.fixture
    def stored_folder(self, tmp_path):
        return tmp_path / "files"


class TestFsspecMemory(BackendConformance):
    @pytest.fixture
    def open_backend(self):
        options = {"url": f"memory://{uuid.uuid4().hex}"}
        with opener(FilesystemBackend, None, self.max_parallelism, options) as open_backend:
            yield open_backend


class TestS3(BackendConformance):
    history_batches = 20

    @pytest.fixture
    def open_backend(self, s3_url):
        with opener(FilesystemBackend, None, self.max_parallelism, {"url": s3_url}) as open_backend:
            yield open_backend
