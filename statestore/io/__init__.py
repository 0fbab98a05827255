"""The one seam through which the engine's bytes reach a disk or an object store.

Only this package opens, syncs, renames, lists or deletes. So a test can put a faulty or crashing storage below everything.

- `Storage` holds named, immutable-by-convention objects below a root: checkpoint storage and the filesystem backend use it.
- `AppendStorage` can also append to one object and sync it: the write-ahead log uses it.

Durability: when `write`, `create`, `delete` or `Appender.sync` has returned, its effect survives the death of the machine, as
far as the place can promise that (`LocalStorage` syncs the file and the folders that name it).
"""

from collections.abc import Callable
from typing import Any

from statestore.io.base import Appender, AppendStorage, Storage, checked_name
from statestore.io.encrypted import EncryptedAppendStorage, EncryptedStorage
from statestore.io.keyring import NO_KEYS, Keyring, load_keyring
from statestore.io.local import FolderLock, LocalStorage, sync_folder
from statestore.io.memory import MemoryStorage
from statestore.io.objects import FsspecStorage
from statestore.io.temporary import TemporaryFolder, remove_folder
from statestore.io.urls import local_path, redacted

__all__ = [
    "NO_KEYS",
    "AppendStorage",
    "Appender",
    "EncryptedAppendStorage",
    "EncryptedStorage",
    "FolderLock",
    "FsspecStorage",
    "Keyring",
    "LocalStorage",
    "MemoryStorage",
    "OpenStorage",
    "Storage",
    "TemporaryFolder",
    "checked_name",
    "load_keyring",
    "local_path",
    "open_storage",
    "redacted",
    "remove_folder",
    "sync_folder",
]


OpenStorage = Callable[[str], Storage]
"""Opens the storage at a path or URL, with the keys that go with it."""


def open_storage(url: str, keys: Keyring = NO_KEYS, **options: Any) -> EncryptedStorage:
    """Storage at a local path, a `file://` URL or any URL that fsspec knows.

    Parameters
    ----------
    keys
        What its objects are encrypted with. Without any, they are written as they are, and reading an encrypted one is an error.

    Raises
    ------
    ConfigError
        The URL's scheme is unknown, or its driver is not installed.
    UnavailableError
        The place can't be reached or written.
    """
    path = local_path(url)
    return EncryptedStorage(FsspecStorage(url, **options) if path is None else LocalStorage(path), keys)
