"""Read-only access to a checkpoint, also to a running store's last one.

Nothing is written, claimed or locked: to its job a reader is not there. The other side of it is that the job may collect the checkpoint
while it is read; every read then raises `CheckpointNotFoundError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.view import CACHE_BYTES, CheckpointView
from statestore.config import Config, EncryptionConfig
from statestore.errors import CheckpointNotFoundError, CorruptionError, StateStoreError, UsageError, did_you_mean
from statestore.io import open_storage
from statestore.opening import keyring
from statestore.reading.records import Entry
from statestore.reading.state import StateInfo, StoredState, info_of
from statestore.reading.where import find_checkpoint
from statestore.ttl import Expiry
from statestore.types import CheckpointId, Epoch


def read(
    where: str,
    *,
    job: str = "store",
    checkpoint_dir: str | None = None,
    dir: str | None = None,
    encryption: EncryptionConfig = EncryptionConfig(),  # noqa: B008 - frozen
) -> StateReader:
    """Open a checkpoint for reading.

    Parameters
    ----------
    where
        A checkpoint's path `<dir>/<job>/chk-<n>`; a savepoint's folder; `<dir>/<job>` for the newest of a job; or a store's URL, such as
        `rocksdb:///path`, for its newest. The store may be open elsewhere: it does not notice.
    job, checkpoint_dir, dir
        As given to `statestore.open`, where `where` is a store's URL.
    encryption
        Where the keys of an encrypted checkpoint are, as `[encryption]` says.

    Raises
    ------
    UsageError
        It is none of these.
    CheckpointNotFoundError
        Nothing is there.
    CorruptionError
        The checkpoint's manifest is damaged.
    UnavailableError
        The storage does not answer.
    """
    opener = partial(open_storage, keys=keyring(Config(encryption=encryption)))
    found = find_checkpoint(where, job=job, checkpoint_dir=checkpoint_dir, dir=dir, open_storage=opener)
    return StateReader(*found)


class StateReader:
    """What a checkpoint holds. Made by `statestore.read`; may be used by several threads.

    Attributes
    ----------
    manifest
        Everything that is stored about the checkpoint: its job, meta, files and their sizes.
    """

    def __init__(self, checkpoints: CheckpointStorage, manifest: Manifest, *, cache_bytes: int = CACHE_BYTES):
        self.manifest = manifest
        self.path = checkpoints.path_of(manifest.checkpoint_id)
        self._entries = _Entries(checkpoints, manifest, cache_bytes)
        self._states = {state.name: state for state in manifest.states}

    def __repr__(self) -> str:
        return f"<StateReader of {self.path}>"

    @property
    def job(self) -> str:
        """Name of the job or store."""
        return self.manifest.job

    @property
    def checkpoint_id(self) -> CheckpointId:
        """Number of the checkpoint."""
        return self.manifest.checkpoint_id

    @property
    def epoch(self) -> Epoch:
        """Last epoch in it."""
        return self.manifest.epoch

    @property
    def meta(self) -> dict[str, Any]:
        """What the program stored with it."""
        return self.manifest.meta

    @property
    def max_parallelism(self) -> int:
        """Number of key groups."""
        return self.manifest.max_parallelism

    @property
    def total_bytes(self) -> int:
        """Size of all its files."""
        return self.manifest.total_bytes

    @property
    def states(self) -> list[StateInfo]:
        """All states, in the order they were first registered in."""
        return [info_of(state) for state in self._states.values()]

    def __iter__(self) -> Iterator[StoredState]:
        return (self.state(name) for name in self._states)

    def state(self, name: str, *, type: Any = None, key_type: Any = None, expired: bool = False) -> StoredState:
        """One of the states.

        Parameters
        ----------
        name
            As it was registered; of an operator's state `<operator>/<name>`.
        type
            Type to read values (elements, accumulators) as; by default they come as builtins, a dataclass or Struct as a dict.
        key_type
            Type to read keys as; by default a Struct's keys come as frozen Structs made up of its fields.
        expired
            Whether to give what had expired, by the clocks of the checkpoint, and was still there.

        Raises
        ------
        UsageError
            There is no such state.
        IncompatibleStateError
            The state's keys are of another type.
        """
        state = self._states.get(name)
        if state is None:
            hint = did_you_mean(name, self._states)
            raise UsageError(f"there is no state '{name}' in {self.path}{f'; {hint}' if hint else ''}")
        expiry = None if expired else Expiry.at(state.ttl, self.manifest.times)
        return StoredState(self._entries, state, self.max_parallelism, expiry, type, key_type)


class _Entries:
    """A checkpoint's entries, which may be collected while they are read."""

    def __init__(self, checkpoints: CheckpointStorage, manifest: Manifest, cache_bytes: int):
        self._checkpoints, self._manifest = checkpoints, manifest
        self._view = CheckpointView(checkpoints, manifest, cache_bytes=cache_bytes)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        try:
            return self._view.get_many(keys)
        except CorruptionError as error:
            raise self._explained(error) from error

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        try:
            yield from self._view.scan(start, stop)
        except CorruptionError as error:
            raise self._explained(error) from error

    def _explained(self, error: CorruptionError) -> StateStoreError:
        """What it means that a file can't be read: damage, unless the file is gone and newer checkpoints have come."""
        storage, number = self._checkpoints.storage, self._manifest.checkpoint_id
        name = error.file.removeprefix(f"{storage.url}/")
        if name == error.file or storage.exists(name):
            return error
        newest, path = self._checkpoints.latest(), self._checkpoints.path_of(number)
        if not self._checkpoints.exists(number):
            hint = f"the newest is {self._checkpoints.path_of(newest)}" if newest not in (None, number) else None
            return CheckpointNotFoundError(path, "it was collected, or removed, meanwhile", hint=hint)
        if newest == number:
            return error
        problem = f"its file {error.file} is gone, so it is being collected, unless 'statestore checkpoint verify' finds it damaged later"
        return CheckpointNotFoundError(path, problem)
