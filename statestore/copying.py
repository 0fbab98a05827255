"""Copies all entries of a state that stands still into another place: in pieces, so that an interrupted copy goes on where it was, and
counted and hashed, so that the copy can be compared with what it was made of.

Invariants:
- a place notes how far it has come together with the entries, or after them, so that a copy that goes on misses none;
- the hash does not depend on the order of the entries, since a copy with another number of key groups has another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec
from xxhash import xxh3_128_intdigest

from statestore.checkpoint.manifest import Manifest, manifest_sha256
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.view import CheckpointView
from statestore.keys import group_of_entry, length_prefix
from statestore.stamp import is_stamp

PIECE_BYTES = 32 << 20
PIECE_ENTRIES = 200_000

Entry = tuple[bytes, bytes]
Phase = Literal["copy", "verify"]
Show = Callable[[Phase, float, int], None]
"""Told now and then: what is being done, which share of it is done, and how many entries that is."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a copy has come."""

    source: str
    """Which state, and which instant of it, is copied."""
    last_key: bytes | None = None
    """Of the source's entries."""
    entries: int = 0
    raw_bytes: int = 0
    """Of keys and values."""
    hash: str = f"{0:032x}"


class Tally:
    """Count, size and hash of entries, whatever their order: the sum of the entries' xxh3_128, modulo 2**128."""

    def __init__(self, progress: Progress | None = None):
        self.entries = progress.entries if progress else 0
        self.raw_bytes = progress.raw_bytes if progress else 0
        self._sum = int(progress.hash, 16) if progress else 0

    @property
    def hash(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum % (1 << 128):032x}"

    def add(self, entries: Iterable[Entry]) -> None:
        """Count some entries."""
        total = self._sum
        for key, value in entries:
            total += xxh3_128_intdigest(length_prefix(key) + key + value)
            self.entries += 1
            self.raw_bytes += len(key) + len(value)
        self._sum = total % (1 << 128)


@dataclass(frozen=True, slots=True)
class Source:
    """A state that stands still."""

    identity: str
    """Differs whenever the entries may."""
    manifest: Manifest
    """What is known of it besides the entries; which files it names does not matter."""
    scan: Callable[[bytes], Iterator[Entry]]
    """Its entries from a key on, ascending."""


class Target(Protocol):
    """A place that entries are copied into."""

    progress: Progress
    """What is there already."""

    def write(self, piece: list[Entry], progress: Progress) -> None:
        """Take a piece, after which the copy has come to `progress`."""
        ...


def source_of(checkpoints: CheckpointStorage, manifest: Manifest) -> Source:
    """A checkpoint or savepoint, to be copied."""
    view = CheckpointView(checkpoints, manifest)
    return Source(manifest_sha256(manifest), manifest, lambda start: view.scan(start, None))


def copy_entries(
    source: Source, target: Target, show: Show | None = None, change_key: Callable[[bytes], bytes] | None = None
) -> None:
    """Bring all entries of `source` that are not there yet into `target`, in order, holding one piece at a time in memory.

    Parameters
    ----------
    change_key
        Makes an entry's key in the target.
    """
    last_key, tally = target.progress.last_key, Tally(target.progress)
    scan = source.scan(b"" if last_key is None else last_key + b"\0")
    for piece in _pieces(scan):
        last_key = piece[-1][0]
        if change_key is not None:
            piece = [(change_key(key), value) for key, value in piece]
        tally.add(piece)
        progress = Progress(
            source=source.identity,
            last_key=last_key,
            entries=tally.entries,
            raw_bytes=tally.raw_bytes,
            hash=tally.hash,
        )
        target.write(piece, progress)
        if show is not None:
            show("copy", _share(last_key, source.manifest.max_parallelism), tally.entries)
    if show is not None:
        show("copy", 1.0, tally.entries)


def tally_of(entries: Iterator[Entry], max_parallelism: int, show: Show | None = None) -> Tally:
    """Count and hash what is somewhere."""
    tally = Tally()
    for piece in _pieces(entries):
        tally.add(piece)
        if show is not None:
            show("verify", _share(piece[-1][0], max_parallelism), tally.entries)
    if show is not None:
        show("verify", 1.0, tally.entries)
    return tally


def _pieces(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """The entries that are state, in lists of limited size."""
    piece: list[Entry] = []
    size = 0
    for key, value in entries:
        if is_stamp(key):
            continue
        piece.append((key, value))
        size += len(key) + len(value)
        if size >= PIECE_BYTES or len(piece) >= PIECE_ENTRIES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _share(key: bytes, max_parallelism: int) -> float:
    """How far a scan has come: hashing spreads the keys evenly over the groups."""
    return (group_of_entry(key) + 1) / max_parallelism
