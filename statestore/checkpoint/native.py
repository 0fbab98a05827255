"""Native bases: the files of a backend that can be copied as a whole.

Invariants:
- a base names every file of the copy; an immutable one that the base before it names already is not stored again, and is known by its
  hash, never by its name or by a listing;
- what the base before names is safe from collection: the newest manifest names that base until a manifest names the next one;
- a file is stored only after the backend has read it whole, so damage on the local disk ends a base, and reaches no checkpoint;
- an immutable file may be a hard link to the one in the storage; the others are copies.

What is checked when a base is brought back: every size, and the hash of every file that is copied. The hash of a file that is only linked
is left out when a store is restored, which must not take longer the more state there is: the backend checks what it reads.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from msgspec.structs import replace

from statestore import crashpoints
from statestore.backend import Backend, BackendContext, NativeCheckpoint, SupportsNativeCheckpoint, backend_class
from statestore.checkpoint.layers import Entry
from statestore.checkpoint.manifest import INLINE_MAX_BYTES, NativeBase, NativeFile, Part
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.upload import Uploader
from statestore.clock import Clock
from statestore.errors import CorruptionError
from statestore.io import LocalStorage, TemporaryFolder
from statestore.keys import MAX_PARALLELISM_LIMIT
from statestore.stamp import is_stamp
from statestore.types import Attempt

T = TypeVar("T")

PARALLEL_FILES = 8
PIECE_BYTES = 8 << 20
COPY = "copy"


class Apply(Protocol):
    """Runs a task alone with the backend, after all that is complete was applied to it."""

    def __call__(self, task: Callable[[], T], /) -> Future[T]:
        """Start it."""
        ...


class NativeBases:
    """Makes the native bases of one store.

    Parameters
    ----------
    stem
        What the paths of its files begin with, which nobody else's do.
    folder
        In the file system of the backend's own folder.
    """

    def __init__(
        self,
        backend: SupportsNativeCheckpoint,
        backend_name: str,
        uploader: Uploader,
        stem: str,
        clock: Clock,
        folder: str | None,
    ):
        self._backend, self._backend_name, self._uploader = backend, backend_name, uploader
        self._stem, self._clock, self._folder = stem, clock, folder
        self._hashes: dict[tuple[str, int, int, int], str] = {}
        """Of immutable files, by name, size, inode and time of change: each is hashed once."""

    def make(self, apply: Apply, previous: NativeBase | None) -> tuple[NativeBase, int]:
        """A new base, and how many bytes of it were stored; immutable files that `previous` has are named again.

        Raises
        ------
        CorruptionError
            A file on the local disk is damaged: nothing refers to it then.
        """
        with TemporaryFolder(self._folder) as temporary:
            folder = str(temporary.path / COPY)
            copy = apply(lambda: self._backend.native_checkpoint(folder)).result()
            files = LocalStorage(folder)
            stored = {file.sha256: file for file in (previous.members if previous else ()) if file.immutable}
            hashes = self._hashes_of(copy, files)
            self._backend.verify_native(folder, [name for name, digest in hashes.items() if digest not in stored])
            members, uploaded = [], 0
            for name in files.list():
                if (known := stored.get(hashes.get(name, ""))) is not None:
                    members.append(replace(known, name=name))
                    continue
                crashpoints.reach("base.uploading")
                member = self._stored(files, name, copy, hashes.get(name))
                members.append(member)
                uploaded += member.size
        return NativeBase(
            backend=self._backend_name,
            epoch=copy.epoch,
            created=self._clock.time(),
            entries=copy.entries,
            members=members,
        ), uploaded

    def _hashes_of(self, copy: NativeCheckpoint, files: LocalStorage) -> dict[str, str]:
        """Hashes of the immutable files."""
        known, self._hashes = self._hashes, {}
        found = {}
        for name in sorted(copy.immutable):
            identity = (name, *files.identity(name))
            digest = known.get(identity) or _hash(_pieces(files, name))
            self._hashes[identity] = found[name] = digest
        return found

    def _stored(self, files: LocalStorage, name: str, copy: NativeCheckpoint, expected: str | None) -> NativeFile:
        data = files.read(name)
        digest = hashlib.sha256(data).hexdigest()
        if expected not in (None, digest):
            raise CorruptionError(f"{files.url}/{name}", "the file changed while a base was made of it")
        path = f"{self._stem}-{copy.epoch}-{digest[:32]}{Path(name).suffix}"
        immutable = name in copy.immutable
        inlined = self._uploader.put(path, data, room=-1 if immutable else INLINE_MAX_BYTES)
        return NativeFile(path=path, size=len(data), sha256=digest, data=inlined, name=name, immutable=immutable)


def restore_native(backend: Backend, checkpoints: CheckpointStorage, part: Part, folder: str | None) -> bool:
    """Make `backend` what the base of its part is, if that is of its own kind; False when nothing was done.

    Raises
    ------
    CorruptionError
        A file of the base is missing or damaged. The backend is what it was, or empty.
    """
    base = part.base
    if not isinstance(base, NativeBase) or not isinstance(backend, SupportsNativeCheckpoint):
        return False
    if not isinstance(backend, backend_class(base.backend)):
        return False
    with TemporaryFolder(folder) as temporary:
        copy = temporary.path / COPY
        bring_native(checkpoints, base, copy, hash_links=False)
        backend.restore_native(str(copy))
    _check_marker(backend, base, checkpoints)
    return True


def bring_native(checkpoints: CheckpointStorage, base: NativeBase, folder: Path, *, hash_links: bool) -> None:
    """Make `folder` the copy that `base` consists of: files are linked where that can be, else copied, several at a time."""
    target = LocalStorage(folder)

    def bring(file: NativeFile) -> None:
        if file.data is not None or not file.immutable:
            target.write(file.name, checkpoints.read_file(file))
            return
        source, place = (
            checkpoints.object_name(file.path),
            f"{checkpoints.storage.url}/{checkpoints.object_name(file.path)}",
        )
        try:
            if checkpoints.storage.link(source, folder / file.name):
                digest = _hash(_pieces(target, file.name)) if hash_links else file.sha256
            else:
                digest = _copy(checkpoints, file, target)
        except FileNotFoundError:
            raise CorruptionError(place, "the file is missing") from None
        if (size := target.size(file.name)) != file.size:
            raise CorruptionError(place, f"it has {size} bytes instead of {file.size}")
        if digest != file.sha256:
            raise CorruptionError(place, "it does not match its hash in the manifest")

    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="statestore-restore") as pool:
        for _ in pool.map(bring, base.members):
            pass


def _copy(checkpoints: CheckpointStorage, file: NativeFile, target: LocalStorage) -> str:
    """Copy a file piece by piece; returns its hash."""
    appender = target.appender(file.name)
    try:

        def written() -> Iterator[bytes]:
            for start in range(0, file.size, PIECE_BYTES):
                length = min(PIECE_BYTES, file.size - start)
                piece = checkpoints.storage.read(checkpoints.object_name(file.path), start, length)
                appender.write(piece)
                yield piece

        digest = _hash(written())
        appender.sync()
        return digest
    finally:
        appender.close()


def _pieces(storage: LocalStorage, name: str) -> Iterator[bytes]:
    for start in range(0, storage.size(name), PIECE_BYTES):
        yield storage.read(name, start, PIECE_BYTES)


def _hash(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _check_marker(backend: Backend, base: NativeBase, checkpoints: CheckpointStorage) -> None:
    """A backend may set aside what it can't open, and begin empty."""
    if (epoch := backend.applied_epoch()) != base.epoch:
        problem = f"the base of epoch {base.epoch} was opened by '{base.backend}' as one of epoch {epoch}"
        raise CorruptionError(checkpoints.url, problem)


class NativeLayer:
    """Entries of a native base, opened in a temporary folder when they are first needed. Thread-safe."""

    def __init__(self, checkpoints: CheckpointStorage, base: NativeBase, folder: str | None):
        self._checkpoints, self._base, self._parent = checkpoints, base, folder
        self._lock = threading.Lock()
        self._opened: tuple[Backend, TemporaryFolder] | None = None

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Those of `keys` that the base has."""
        wanted = list(keys)
        found = zip(wanted, self._backend().get_many(wanted), strict=True)
        return {key: value for key, value in found if value is not None and not is_stamp(key)}

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """Entries with start <= key < stop, ascending."""
        return (item for item in self._backend().scan(start, stop) if not is_stamp(item[0]))

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """The same."""
        return self.scan(start, stop)

    def close(self) -> None:
        """Remove the temporary folder; idempotent."""
        with self._lock:
            if self._opened is not None:
                backend, temporary = self._opened
                self._opened = None
                backend.close()
                temporary.close()

    def _backend(self) -> Backend:
        with self._lock:
            if self._opened is None:
                temporary = TemporaryFolder(self._parent)
                copy = temporary.path / COPY
                bring_native(self._checkpoints, self._base, copy, hash_links=True)
                context = BackendContext("", str(copy), MAX_PARALLELISM_LIMIT, Attempt(0))
                backend = backend_class(self._base.backend).open(context)
                self._opened = backend, temporary
                _check_marker(backend, self._base, self._checkpoints)
            return self._opened[0]
