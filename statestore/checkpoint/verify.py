"""Reads everything a checkpoint consists of, and says where it is damaged.

Invariants:
- every byte of every file is read and hashed, also of what a restore would not need;
- one problem does not hide the next: all are reported, each as near to the damage as its format allows (a block of a segment, a record of a
  log, else the file), with the key groups whose state it touches;
- memory is bounded: a file at a time per thread, and writers keep files to 64 MiB or so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import msgspec

from statestore.checkpoint.manifest import BaseEntry, FileEntry, LogDelta, Manifest, SegmentEntry
from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import CorruptionError
from statestore.io import MemoryStorage
from statestore.keys import group_of_entry
from statestore.segment import SegmentReader
from statestore.wal.reader import flaws_of_log

THREADS = 4


class Problem(msgspec.Struct, frozen=True):
    """One damaged place."""

    file: str
    problem: str
    offset: int | None
    """Byte where the damaged piece begins, None when it is the file."""
    first_key_group: int
    last_key_group: int

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at byte {self.offset}"
        first, last = self.first_key_group, self.last_key_group
        groups = f"key group {first}" if first == last else f"key groups {first} to {last}"
        return f"{self.file}{at}: {self.problem} ({groups})"


class Verified(msgspec.Struct, frozen=True):
    """What `verify` found."""

    path: str
    files: int
    bytes: int
    problems: list[Problem]


def verify(
    checkpoints: CheckpointStorage,
    manifest: Manifest,
    *,
    on_progress: Callable[[int], object] = lambda size: None,
    threads: int = THREADS,
) -> Verified:
    """Read a checkpoint whole. The manifest has been checked when it was loaded.

    Parameters
    ----------
    on_progress
        Called with the size of each file that has been read.
    threads
        How many files are read, and held in memory, at a time.

    Raises
    ------
    UnavailableError
        The storage does not answer; that says nothing about the checkpoint.
    """
    files = list(_files(manifest))
    problems: list[Problem] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="statestore-verify") as pool:
        reading = {pool.submit(_problems_of, checkpoints, entry, groups): entry for entry, groups in files}
        try:
            for future in as_completed(reading):
                problems += future.result()
                on_progress(reading[future].size)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    order = {checkpoints.place_of(entry): index for index, (entry, _) in enumerate(files)}
    problems.sort(key=lambda problem: (order[problem.file], problem.offset or 0))
    return Verified(checkpoints.path_of(manifest.checkpoint_id), len(files), manifest.total_bytes, problems)


def _files(manifest: Manifest) -> Iterator[tuple[FileEntry, range]]:
    """Each file once, with the key groups that it may hold."""
    groups: dict[str, range] = {}
    for part in manifest.parts:
        own = [file for delta in part.deltas for file in delta.files()]
        if isinstance(part.base, BaseEntry):
            own += part.base.files()
        groups |= {file.path: part.key_groups for file in own}
    # What a part has inherited from others may hold more than it has of it.
    return ((entry, groups.get(entry.path, range(manifest.max_parallelism))) for entry in manifest.files())


def _problems_of(checkpoints: CheckpointStorage, entry: FileEntry, allowed: range) -> list[Problem]:
    whole = allowed
    if isinstance(entry, SegmentEntry):
        whole = range(group_of_entry(entry.first_key), group_of_entry(entry.last_key) + 1)
    file = checkpoints.place_of(entry)
    try:
        data = checkpoints.read_bytes(entry)
    except CorruptionError as error:
        return [_problem(error, file, whole)]
    found = [_problem(error, file, groups) for error, groups in _flaws(data, file, entry, allowed, whole)]
    if found or (len(data) == entry.size and hashlib.sha256(data).hexdigest() == entry.sha256):
        return found
    if len(data) != entry.size:
        return [_problem(CorruptionError(file, f"it has {len(data)} bytes instead of {entry.size}"), file, whole)]
    return [_problem(CorruptionError(file, "it does not match its hash in the manifest"), file, whole)]


def _problem(error: CorruptionError, file: str, groups: range) -> Problem:
    return Problem(file, error.problem, error.offset, groups[0], groups[-1])


def _flaws(
    data: bytes, file: str, entry: FileEntry, allowed: range, whole: range
) -> Iterator[tuple[CorruptionError, range]]:
    """What the file's own format says; nothing where the hash is all there is."""
    if isinstance(entry, SegmentEntry):
        yield from _flaws_of_segment(data, file, entry, allowed, whole)
    elif isinstance(entry, LogDelta):
        yield from flaws_of_log(data, file, allowed, range(entry.first_epoch, entry.last_epoch + 1))


def _flaws_of_segment(
    data: bytes, file: str, entry: SegmentEntry, allowed: range, whole: range
) -> Iterator[tuple[CorruptionError, range]]:
    place, _, name = file.rpartition("/")
    storage = MemoryStorage(place)
    storage.write(name, data)
    try:
        reader = SegmentReader(storage, name)
    except CorruptionError as error:
        yield error, whole
        return
    yield from reader.flaws()
    described = (entry.first_key, entry.last_key, entry.entries)
    if (reader.first_key, reader.last_key, reader.entries) != described:
        yield CorruptionError(file, "its keys are not those that the manifest names"), whole
    if whole[0] < allowed[0] or whole[-1] > allowed[-1]:
        problem = f"it holds key groups {whole[0]} to {whole[-1]}, its part {allowed[0]} to {allowed[-1]}"
        yield CorruptionError(file, problem), whole
