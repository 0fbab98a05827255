"""Which checkpoints of a job stay until someone lets them go.

    <dir>/<job>/pins/<n>    all pinned checkpoints after the n-th change: JSON {"pinned": [3, 7]} · newline · its SHA-256 (hex) · newline

Invariants:
- changes are numbered without a gap, made by create-if-absent and never removed (people make them, so they are few): the newest is found by
  asking for the next until there is none, and no listing decides what is pinned;
- of two changes at a time the later one finds its number taken, and starts again from what is pinned then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from statestore.errors import CorruptionError
from statestore.io import Storage
from statestore.types import CheckpointId


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pinned: list[CheckpointId]


class Pins:
    """The pinned checkpoints of one job."""

    def __init__(self, storage: Storage, folder: str):
        self._storage, self._folder = storage, folder
        self._version = 0

    def version(self) -> int:
        """Number of the last change, 0 when there was none. It only grows."""
        while self._storage.exists(self._name(self._version + 1)):
            self._version += 1
        return self._version

    def numbers(self) -> frozenset[CheckpointId]:
        """The pinned checkpoints. Raises CorruptionError when what is pinned can't be read."""
        return self._at(self.version())

    def add(self, checkpoint_id: CheckpointId) -> None:
        """Pin a checkpoint; nothing happens when it is pinned."""
        while checkpoint_id not in (pinned := self.numbers()):
            self._change({*pinned, checkpoint_id})

    def remove(self, checkpoint_id: CheckpointId) -> None:
        """Let a checkpoint go; nothing happens when it is not pinned."""
        while checkpoint_id in (pinned := self.numbers()):
            self._change(pinned - {checkpoint_id})

    def _change(self, pinned: Iterable[CheckpointId]) -> None:
        """Write the next change; another's may have taken its number: then the caller looks again."""
        body = msgspec.json.encode(_Record(sorted(pinned)))
        try:
            self._storage.create(self._name(self._version + 1), b"%b\n%b\n" % (body, _digest(body)))
        except FileExistsError:
            return

    def _at(self, version: int) -> frozenset[CheckpointId]:
        if version == 0:
            return frozenset()
        file = f"{self._storage.url}/{self._name(version)}"
        try:
            body, digest, end = self._storage.read(self._name(version)).split(b"\n")
            if end or digest != _digest(body):
                raise CorruptionError(file, "it does not match its checksum")
            return frozenset(msgspec.json.decode(body, type=_Record).pinned)
        except (ValueError, FileNotFoundError) as error:
            raise CorruptionError(file, f"which checkpoints are pinned can't be read: {error}") from error

    def _name(self, version: int) -> str:
        return f"{self._folder}/{version}"


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
