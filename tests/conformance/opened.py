"""Opens the backend under test as often as a test asks, and closes all in the end."""

from contextlib import contextmanager

from statestore.backend import BackendContext


@contextmanager
def opener(backend_class, directory, max_parallelism, options=None):
    opened = []

    def open_backend(attempt=1, job="job"):
        folder = str(directory) if directory is not None else None
        opened.append(backend_class.open(BackendContext(job, folder, max_parallelism, attempt, options or {})))
        return opened[-1]

    yield open_backend
    for backend in opened:
        backend.close()
