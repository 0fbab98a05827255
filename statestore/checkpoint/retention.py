"""Which checkpoints stay, and how what nobody needs any more leaves the storage.

Invariants:
- a file goes only when every manifest that exists has been read and none of those that stay names it; where one can't be read, nothing
  goes;
- what stays: the newest `keep` checkpoints, the pinned ones, and every file of an attempt that may complete a checkpoint yet. A name in
  `shared/` holds its attempt, and an attempt older than that of the newest checkpoint can complete none: its number is taken;
- a listing suggests what may be garbage, and decides nothing; neither does this machine's clock: ages are differences of the storage's
  own times;
- a checkpoint is there whole or not at all also while it is removed: `_removing` is written, which says so to whoever wants to pin it, then
  the manifest goes, then the files, then `_removing`. An interrupted removal is finished by the next;
- before every single removal the collector looks whether it still owns the job.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import msgspec

from statestore import crashpoints
from statestore.checkpoint.manifest import FileEntry, Manifest, decode_manifest
from statestore.checkpoint.storage import CheckpointStorage
from statestore.clock import Clock
from statestore.errors import CheckpointNotFoundError, CorruptionError
from statestore.types import Attempt, CheckpointId

logger = logging.getLogger("statestore.checkpoint")

REMOVALS_MAX = 10_000
"""Of orphans in one run; the others wait for the next."""

_shared = re.compile(r"shared/[a-z]+-(\d+)-[^/]+")
_attempt = re.compile(r"attempts/(\d+)")
_removing = re.compile(r"chk-(\d+)/_removing")
_manifest = re.compile(r"chk-(\d+)/_metadata")


class Kept(msgspec.Struct, frozen=True):
    """A checkpoint that stays."""

    checkpoint: CheckpointId
    path: str
    why: str


class Removed(msgspec.Struct, frozen=True):
    """An object that went, or would go."""

    name: str
    bytes: int
    why: str


class PruneReport(msgspec.Struct, frozen=True):
    """What `prune` did, or would do."""

    job: str
    dry_run: bool
    kept: list[Kept]
    removed_checkpoints: list[CheckpointId]
    removed: list[Removed]

    @property
    def bytes(self) -> int:
        """Bytes of all that was removed."""
        return sum(item.bytes for item in self.removed)


@dataclass(slots=True)
class Broom:
    """Removes objects one by one, or only notes which.

    Attributes
    ----------
    may_go_on
        Called before every removal; what it raises ends the run.
    """

    checkpoints: CheckpointStorage
    may_go_on: Callable[[], None]
    dry_run: bool = False
    removed: list[Removed] = field(default_factory=list)

    def remove(self, name: str, why: str, size: int | None = None) -> None:
        """Remove an object that is there, or may be."""
        storage = self.checkpoints.storage
        try:
            size = storage.size(name) if size is None else size
        except FileNotFoundError:
            return
        if not self.dry_run:
            self.may_go_on()
            storage.delete(name)
        self.removed.append(Removed(name, size, why))


@dataclass(frozen=True, slots=True)
class Survey:
    """Every checkpoint that exists, read, and which of them stay."""

    manifests: dict[CheckpointId, Manifest]
    pinned: frozenset[CheckpointId]
    held: frozenset[CheckpointId]
    """Those that this process reads just now."""
    pins_version: int
    newest: list[CheckpointId]
    """The newest ones that `keep` speaks of."""

    @property
    def doomed(self) -> list[CheckpointId]:
        """Those that go, oldest first."""
        return sorted(self.manifests.keys() - {*self.newest, *self.pinned, *self.held})

    def files(self, number: CheckpointId) -> dict[str, FileEntry]:
        """Files of a checkpoint by their paths."""
        return CheckpointStorage.stored_files(self.manifests[number])

    def paths(self) -> set[str]:
        """Paths that any checkpoint names."""
        return {path for number in self.manifests for path in self.files(number)}


def survey(checkpoints: CheckpointStorage, keep: int, listed: Iterable[str] = ()) -> Survey:
    """Read every manifest.

    Parameters
    ----------
    keep
        How many of the newest stay.
    listed
        Names that a listing had: checkpoints beyond a gap are among them only. Those that are gone since don't count.

    Raises
    ------
    CorruptionError, CheckpointNotFoundError
        A manifest, or what is pinned, can't be read: then nothing may be removed.
    """
    version, pinned = checkpoints.pins.version(), checkpoints.pins.numbers()
    certain = {*checkpoints.retained(), *pinned}
    # Only now: who reads the newest one has said so before there is a newer one.
    read = dict(checkpoints.held)
    held = frozenset(number for number, times in read.items() if times > 0)
    manifests = {number: _loaded(checkpoints, number, is_pinned=number in pinned) for number in certain}
    possible = {*read, *(CheckpointId(int(match[1])) for match in _matches(checkpoints, listed, _manifest))}
    for number in possible - certain:
        try:
            manifests[number] = _loaded(checkpoints, number)
        except CheckpointNotFoundError:
            continue
    for number, manifest in manifests.items():
        if strange := [path for path in checkpoints.stored_files(manifest) if not checkpoints.is_file_of_one(path)]:
            name = f"{checkpoints.storage.url}/{checkpoints.manifest_name(number)}"
            raise CorruptionError(name, f"it names '{strange[0]}', which is no file of a checkpoint")
    return Survey(manifests, pinned, held, version, sorted(manifests)[-keep:])


def _loaded(checkpoints: CheckpointStorage, number: CheckpointId, *, is_pinned: bool = False) -> Manifest:
    try:
        return checkpoints.load(number)
    except CorruptionError as error:
        hint = "nothing is removed as long as it is there"
        raise CorruptionError(error.file, error.problem, offset=error.offset, hint=hint) from error
    except CheckpointNotFoundError as error:
        if not is_pinned:
            raise
        hint = "unpin it; nothing is removed before"
        raise CheckpointNotFoundError(error.where, "it is pinned, and gone", hint=hint) from error


def _matches(checkpoints: CheckpointStorage, names: Iterable[str], pattern: re.Pattern[str]) -> Iterable[re.Match[str]]:
    start = len(checkpoints.job) + 1
    return (match for name in names if (match := pattern.fullmatch(name, start)))


def collect(checkpoints: CheckpointStorage, keep: int, broom: Broom, listed: Iterable[str] = ()) -> Survey:
    """Remove all checkpoints but the newest `keep` and the pinned ones, with the files only they name.

    Returns what was there. Raises as `survey` does, before anything is removed, and what the storage and `broom.may_go_on` raise.
    """
    listed = list(listed)
    while True:
        found = survey(checkpoints, keep, listed)
        _finish_interrupted(found, broom)
        if _remove_doomed(found, broom):
            return found


def remove_up_to(checkpoints: CheckpointStorage, number: CheckpointId) -> None:
    """Remove a checkpoint and the older ones, but for the pinned; files that newer ones name stay. Raises as `collect` does."""
    broom = Broom(checkpoints, lambda: None)
    while True:
        found = survey(checkpoints, 1)
        found = replace(found, newest=[other for other in found.manifests if other > number])
        if _remove_doomed(found, broom):
            return


def _remove_doomed(found: Survey, broom: Broom) -> bool:
    """Remove the doomed ones; False when something has changed meanwhile, so that they must be chosen again."""
    uses = Counter(path for number in found.manifests for path in found.files(number))
    for number in found.doomed:
        if not broom.dry_run and not _announce(found, number, broom):
            return False
        checkpoints, why = broom.checkpoints, f"of checkpoint {number}"
        broom.remove(checkpoints.manifest_name(number), why)
        for path, entry in sorted(found.files(number).items()):
            uses[path] -= 1
            if not uses[path]:
                broom.remove(checkpoints.object_name(path), why, entry.size)
        if not broom.dry_run:
            checkpoints.storage.delete(checkpoints.removing_name(number))
            checkpoints.held.pop(number, None)
    if found.doomed and not broom.dry_run:
        crashpoints.reach("checkpoint.collected")
    return True


def _announce(found: Survey, number: CheckpointId, broom: Broom) -> bool:
    """Say that a checkpoint is being removed; False when someone was faster, or has pinned any in the meantime."""
    checkpoints = broom.checkpoints
    broom.may_go_on()
    try:
        data = checkpoints.storage.read(checkpoints.manifest_name(number))
    except FileNotFoundError:
        return False
    checkpoints.storage.write(checkpoints.removing_name(number), data)
    if checkpoints.pins.version() == found.pins_version:
        return True
    checkpoints.storage.delete(checkpoints.removing_name(number))
    return False


def _finish_interrupted(found: Survey, broom: Broom) -> None:
    """Go on where a removal was interrupted: it is the one just below the oldest checkpoint that is not pinned."""
    if broom.dry_run or not found.manifests:
        return
    checkpoints = broom.checkpoints
    number = min((n for n in found.manifests if n not in found.pinned), default=min(found.manifests)) - 1
    while number in found.manifests:
        number -= 1
    name = checkpoints.removing_name(number)
    try:
        manifest = decode_manifest(checkpoints.storage.read(name), f"{checkpoints.storage.url}/{name}")
    except FileNotFoundError:
        return
    except CorruptionError as error:
        logger.warning("what a removal left is for the next search for orphans: %s", error)
        return
    needed = found.paths()
    for path in checkpoints.stored_files(manifest):
        if path not in needed and checkpoints.is_file_of_one(path):
            broom.remove(checkpoints.object_name(path), f"of checkpoint {number}")
    checkpoints.storage.delete(name)


def sweep(checkpoints: CheckpointStorage, found: Survey, listed: Iterable[str], before: float, broom: Broom) -> None:
    """Remove what no manifest names and no attempt will, if it was written before this moment of the storage's clock.

    Parameters
    ----------
    found
        Every checkpoint that exists, surveyed after `listed` was listed.
    """
    if not found.manifests:
        return
    newest, needed = found.manifests[max(found.manifests)].attempt, found.paths()
    for name in listed:
        if len(broom.removed) >= REMOVALS_MAX:
            return
        why = _orphan(name.removeprefix(f"{checkpoints.job}/"), found, needed, newest)
        if why is None:
            continue
        try:
            is_old = checkpoints.storage.modified(name) < before
        except FileNotFoundError:
            continue
        if is_old:
            broom.remove(name, why)
    if not broom.dry_run:
        broom.may_go_on()
        checkpoints.storage.tidy(checkpoints.job, before)


def _orphan(path: str, found: Survey, needed: set[str], newest: Attempt) -> str | None:
    """Why an object is garbage whatever happens, None when it is not, or may not be."""
    if (match := _shared.fullmatch(path)) and path not in needed and int(match[1]) < newest:
        return f"no checkpoint names it, and attempt {match[1]} is over"
    if (match := _attempt.fullmatch(path)) and int(match[1]) < newest:
        return f"attempt {match[1]} is over"
    if (match := _removing.fullmatch(path)) and int(match[1]) not in found.manifests:
        return f"checkpoint {match[1]} is gone"
    return None


def prune(
    checkpoints: CheckpointStorage,
    *,
    keep: int,
    orphan_age_seconds: float,
    clock: Clock,
    dry_run: bool = False,
    force: bool = False,
) -> PruneReport:
    """Collect checkpoints and orphans of a job from outside, while it runs or not.

    Parameters
    ----------
    keep
        How many of the newest checkpoints stay.
    orphan_age_seconds
        Orphans younger than this stay; 0: all stay.
    dry_run
        Change nothing, and say what would go; ages are by `clock` then.
    force
        Remove checkpoints also when an attempt has begun and completed none: it may go on from any of them, and fail without.

    Raises
    ------
    CheckpointNotFoundError
        There are no checkpoints, or a pinned one is gone.
    CorruptionError
        A manifest can't be read: nothing is removed.
    FencedError
        A new attempt began meanwhile: what is left stays.
    """
    attempt = checkpoints.newest_attempt()
    broom = Broom(checkpoints, lambda: checkpoints.check_owner(attempt), dry_run)
    listed = checkpoints.storage.list(checkpoints.job)
    found = survey(checkpoints, keep, listed)
    if not found.manifests:
        raise CheckpointNotFoundError(checkpoints.url, "there is no checkpoint")
    is_open = attempt > found.manifests[max(found.manifests)].attempt and not force
    if is_open:
        keep = len(found.manifests)
    now = clock.time() if dry_run else checkpoints.touch()
    found = collect(checkpoints, keep, broom, listed)
    if orphan_age_seconds > 0:
        sweep(checkpoints, found, listed, now - orphan_age_seconds, broom)
    open_attempt = attempt if is_open else None
    kept = [number for number in sorted(found.manifests) if number not in found.doomed]
    return PruneReport(
        checkpoints.job,
        dry_run,
        [Kept(number, checkpoints.path_of(number), _why(number, found, open_attempt)) for number in kept],
        found.doomed,
        broom.removed,
    )


def _why(number: CheckpointId, found: Survey, open_attempt: Attempt | None) -> str:
    reasons = ["pinned"] if number in found.pinned else []
    if open_attempt is not None:
        reasons.append(f"attempt {open_attempt} has completed no checkpoint yet, and may go on from this one")
    elif number in found.newest:
        reasons.append("the newest" if len(found.newest) == 1 else f"among the newest {len(found.newest)}")
    return ", ".join(reasons)
