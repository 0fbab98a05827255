"""Opens the backend under test as often as a test asks, and closes all in the end."""

from contextlib import contextmanager

from statestore.backend import BackendContext
from statestore.io import open_storage


@contextmanager
def opener(backend_class, directory, max_parallelism, options=None, open_storage=open_storage):
    opened = []

    def open_backend(attempt=1, job="job", **more):
        folder = str(directory) if directory is not None else None
        context = BackendContext(
            job, folder, max_parallelism, attempt, {**(options or {}), **more}, open_storage=open_storage
        )
        opened.append(backend_class.open(context))
        return opened[-1]

    yield open_backend
    for backend in opened:
        backend.close()
