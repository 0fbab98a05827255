"""The one seam through which the engine's bytes reach a disk or an object store.

Only this package opens, syncs, renames, lists or deletes. So a test can put a faulty or crashing storage below everything.

- `Storage` holds named, immutable-by-convention objects below a root: checkpoint storage and the filesystem backend use it.
- `AppendStorage` can also append to one object and sync it: the write-ahead log uses it.

Durability: when `write`, `create`, `delete` or `Appender.sync` has returned, its effect survives the death of the machine, as
far as the place can promise that (`LocalStorage` syncs the file and the folders that name it).
"""

from typing import Any

from statestore.io.base import Appender, AppendStorage, Storage, checked_name
from statestore.io.local import FolderLock, LocalStorage, sync_folder
from statestore.io.memory import MemoryStorage
from statestore.io.objects import FsspecStorage
from statestore.io.urls import local_path, redacted

__all__ = [
    "AppendStorage",
    "Appender",
    "FolderLock",
    "FsspecStorage",
    "LocalStorage",
    "MemoryStorage",
    "Storage",
    "checked_name",
    "local_path",
    "open_storage",
    "redacted",
    "sync_folder",
]


def open_storage(url: str, **options: Any) -> Storage:
    """Storage at a local path, a `file://` URL or any URL that fsspec knows.

    Raises
    ------
    ConfigError
        The URL's scheme is unknown, or its driver is not installed.
    UnavailableError
        The place can't be reached or written.
    """
    path = local_path(url)
    return FsspecStorage(url, **options) if path is None else LocalStorage(path)
