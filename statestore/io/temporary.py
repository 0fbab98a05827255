"""Folders that nothing is lost with."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from statestore.io.base import unavailable


class TemporaryFolder:
    """A new folder on the local disk that is gone with `close`, or with the object, or with the process's regular end.

    Parameters
    ----------
    parent
        Where to make it, made as well if it is not there; None: where the machine keeps temporary files.
    """

    def __init__(self, parent: str | None = None):
        try:
            if parent is not None:
                Path(parent).mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix="statestore-", dir=parent))
        except OSError as error:
            raise unavailable(parent or tempfile.gettempdir(), error) from error
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder with all that is in it; idempotent."""
        self._remove()

    def __enter__(self) -> TemporaryFolder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def remove_folder(path: str) -> None:
    """Remove a folder of temporary ones that a killed process left, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
