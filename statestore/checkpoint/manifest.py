"""The manifest of a checkpoint, `<dir>/<job>/chk-<n>/_metadata`, or of a savepoint, `<dir>/_metadata`.

Invariants:
- it is written last, by create-if-absent, so a checkpoint is there whole or not at all, and two writers can't both make number n;
- it names every file by path, size and SHA-256; paths are relative to `<dir>/<job>/` (a savepoint's: to its own
  folder) and never leave it;
- a small file may stand in the manifest itself, in place of a file of its own; all such together stay small;
- its parts cover every key group once; each is the state of one store, whose epochs are its own;
- base at epoch A plus the deltas in their order, which cover (A, E] without a gap, are exactly the part's state at E.

Format: one JSON object {"manifest": {...}, "sha256": "..."}; the hash is over the manifest's bytes as they stand.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from statestore.errors import CorruptionError, UsageError
from statestore.io import checked_name
from statestore.ttl import Times
from statestore.types import Attempt, CheckpointId, Epoch
from statestore.wal.record import StateDescriptor

FORMAT = 1
MANIFEST_MAX_BYTES = 64 << 20
INLINE_MAX_BYTES = 256 << 10
"""Of all deltas that stand in one manifest, which is written with every checkpoint."""

Kind = Literal["checkpoint", "final", "savepoint"]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of a checkpoint."""

    path: str
    size: int
    sha256: str
    data: bytes | None = None
    """The file itself when it is a small one: then nothing lies at `path`."""


class SegmentEntry(FileEntry, frozen=True, kw_only=True):
    """A sorted segment of a checkpoint."""

    first_key: bytes
    last_key: bytes
    entries: int


class LogDelta(FileEntry, frozen=True, kw_only=True, tag="log"):
    """What changed in some epochs: a sealed log segment, stored byte by byte."""

    sequence: int
    first_epoch: Epoch
    last_epoch: Epoch

    def files(self) -> list[FileEntry]:
        """The segment itself."""
        return [self]


class PackedDelta(msgspec.Struct, frozen=True, kw_only=True, tag="packed"):
    """What changed in some epochs, the last value of each entry: several deltas merged into sorted segments, in key order."""

    first_epoch: Epoch
    last_epoch: Epoch
    segments: list[SegmentEntry]

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self.segments)

    def files(self) -> list[FileEntry]:
        """The segments."""
        return list(self.segments)


Delta = LogDelta | PackedDelta


class BaseEntry(msgspec.Struct, frozen=True, kw_only=True, tag="portable"):
    """All entries as they were at an epoch, or touched since, as sorted segments in key order."""

    epoch: Epoch
    created: float
    """Seconds since the Unix epoch."""
    segments: list[SegmentEntry]

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self.segments)

    @property
    def entries(self) -> int:
        """Number of entries in all segments."""
        return sum(segment.entries for segment in self.segments)

    def files(self) -> list[FileEntry]:
        """The segments."""
        return list(self.segments)


class NativeFile(FileEntry, frozen=True, kw_only=True):
    """A file of a backend's own."""

    name: str
    """In the backend's folder."""
    immutable: bool
    """Whether it never changes: then the next base may name it again, and a database may be opened on a link to it."""


class NativeBase(msgspec.Struct, frozen=True, kw_only=True, tag="native"):
    """All entries exactly as they were at an epoch, as the files of a backend."""

    backend: str
    """The name it is registered by."""
    epoch: Epoch
    created: float
    """Seconds since the Unix epoch."""
    entries: int
    """About how many entries it has."""
    members: list[NativeFile]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.members)

    def files(self) -> list[FileEntry]:
        """The files."""
        return list(self.members)


class InheritedBase(msgspec.Struct, frozen=True, kw_only=True, tag="inherited"):
    """What other stores had of a part's key groups, before these came to another store."""

    epoch: Epoch
    """With which the new store began: not less than that of any part."""
    parts: list[Part]
    """In the order of their key groups; what they hold of others doesn't count."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files())

    @property
    def entries(self) -> int:
        """Number of entries in the bases of the parts."""
        return sum(part.base.entries for part in self.parts if part.base is not None)

    def files(self) -> list[FileEntry]:
        """The files of the parts."""
        return [file for part in self.parts for file in part.files()]


Base = BaseEntry | NativeBase | InheritedBase


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """State of one range of key groups, written by one store."""

    first_key_group: int
    last_key_group: int
    epoch: Epoch
    base: Base | None
    deltas: list[Delta]
    """In the order of their epochs."""
    log_sequence: int
    """Number of the last log segment contained."""
    log_sha256: str
    """Hash of that segment: a log continues this checkpoint if it holds or names it."""
    uploaded_bytes: int
    """Bytes this checkpoint added to the storage for the part."""

    def files(self) -> list[FileEntry]:
        """All files of the part."""
        return [*(self.base.files() if self.base else []), *(file for delta in self.deltas for file in delta.files())]

    @property
    def key_groups(self) -> range:
        """The key groups that the part has the state of."""
        return range(self.first_key_group, self.last_key_group + 1)

    @property
    def base_epoch(self) -> Epoch:
        """Epoch of the base, 0 without one."""
        return self.base.epoch if self.base else Epoch(0)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint or savepoint of elsewhere that the store was restored from, and is to remove once it needs it no more."""

    path: str
    """As `restore` takes it."""
    sha256: str
    """Of its manifest's file, so that nothing else is removed that may have taken its place."""
    since: CheckpointId
    """The first checkpoint made after it."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one checkpoint or savepoint."""

    job: str
    checkpoint_id: CheckpointId
    """A savepoint's: that of the checkpoint it was made of, 0 when it was made of none."""
    attempt: Attempt
    created: float
    """Seconds since the Unix epoch."""
    kind: Kind
    run: str
    """Which start of the job made it; restarts by the job's own supervisor belong to the same run."""
    max_parallelism: int
    states: list[StateDescriptor]
    parts: list[Part]
    meta: dict[str, Any]
    """What the caller keeps with the state: source positions, sink transactions, watermarks."""
    times: Times
    """Where the clocks of time-outs stood."""
    claimed: Claim | None = None
    format: int = FORMAT

    def files(self) -> list[FileEntry]:
        """All files the checkpoint needs, each once."""
        return list({file.path: file for part in self.parts for file in part.files()}.values())

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files())

    @property
    def uploaded_bytes(self) -> int:
        """Bytes this checkpoint added to the storage, its manifest left out."""
        return sum(part.uploaded_bytes for part in self.parts)

    @property
    def epoch(self) -> Epoch:
        """Epoch of the store that is furthest on."""
        return max(part.epoch for part in self.parts)

    def part_of(self, key_groups: range) -> Part | None:
        """The part of just these key groups; None where they are spread otherwise."""
        return next((part for part in self.parts if part.key_groups == key_groups), None)


class _Envelope(msgspec.Struct, frozen=True):
    manifest: msgspec.Raw
    sha256: str


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_manifest = msgspec.json.Decoder(Manifest).decode


def encode_manifest(manifest: Manifest) -> bytes:
    """Bytes of the manifest's file."""
    body = _encode(manifest)
    return _encode(_Envelope(msgspec.Raw(body), hashlib.sha256(body).hexdigest()))


def manifest_sha256(manifest: Manifest) -> str:
    """Hash of the manifest's file."""
    return hashlib.sha256(encode_manifest(manifest)).hexdigest()


def decode_manifest(data: bytes, file: str) -> Manifest:
    """Manifest in the bytes of its file.

    Raises
    ------
    CorruptionError
        Any byte differs from what was written, or the content breaks an invariant.
    """
    if len(data) > MANIFEST_MAX_BYTES:
        raise CorruptionError(file, f"the manifest is larger than {MANIFEST_MAX_BYTES} bytes")
    try:
        envelope = _decode_envelope(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptionError(file, f"the manifest is not readable: {error}") from error
    body = bytes(envelope.manifest)
    if hashlib.sha256(body).hexdigest() != envelope.sha256 or _encode(envelope) != data:
        raise CorruptionError(file, "the manifest does not match its checksum")
    try:
        manifest = _decode_manifest(body)
        if manifest.format != FORMAT:
            raise CorruptionError(file, f"checkpoint format version {manifest.format} is not supported")
        for entry in [file for part in manifest.parts for file in part.files()]:
            checked_name(entry.path)
            if isinstance(entry, NativeFile) and "/" in checked_name(entry.name):
                raise CorruptionError(file, f"{entry.name!r} is no name in a backend's folder")
    except (msgspec.MsgspecError, UnicodeDecodeError, UsageError) as error:
        raise CorruptionError(file, f"the manifest is not valid: {error}") from error
    covered = [group for part in manifest.parts for group in part.key_groups]
    if covered != list(range(manifest.max_parallelism)):
        raise CorruptionError(
            file, f"its parts don't cover the key groups 0 to {manifest.max_parallelism - 1} once each"
        )
    for part in manifest.parts:
        _check_coverage(part, file)
    return manifest


def _check_coverage(part: Part, file: str) -> None:
    covered = part.base_epoch
    for delta in part.deltas:
        if delta.first_epoch > covered + 1:
            raise CorruptionError(file, f"no file covers the epochs {covered + 1} to {delta.first_epoch - 1}")
        covered = max(covered, delta.last_epoch)
    if covered != part.epoch:
        raise CorruptionError(file, f"the files end at epoch {covered}, the checkpoint is of epoch {part.epoch}")
    if isinstance(part.base, InheritedBase):
        for inherited in part.base.parts:
            _check_coverage(inherited, file)
