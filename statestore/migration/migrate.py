"""`statestore.migrate`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from statestore import crashpoints
from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.savepoint import SavepointWriter
from statestore.clock import Clock, SystemClock
from statestore.config import Config
from statestore.copying import Show, copy_entries, tally_of
from statestore.errors import CorruptionError, UsageError
from statestore.keys import MAX_PARALLELISM_LIMIT, group_start, key_group_of, split_entry
from statestore.migration.place import Place, digest, open_source
from statestore.migration.target import BackendTarget
from statestore.timers import Timers, key_of_timer
from statestore.types import Epoch


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration has done."""

    source: str
    target: str
    epoch: Epoch
    max_parallelism: int
    """Of the target."""
    entries: int
    raw_bytes: int
    """Of keys and values."""
    hash: str
    """Of all entries, as they were written and as they were read back; see `statestore.copying.Tally`."""
    resumed_at: int
    """Entries that an earlier, interrupted run had copied."""
    seconds: float


def migrate(
    source: str | Config | Place,
    target: str | Config | Place,
    *,
    max_parallelism: int | None = None,
    overwrite: bool = False,
    show: Show | None = None,
    clock: Clock | None = None,
) -> MigrationReport:
    """Copy a state to another place, and compare the copy. The source stays. After an interruption the same call goes on.

    Parameters
    ----------
    source
        A state's URL, a checkpoint's path or a savepoint's folder. Nobody may have it open.
    target
        A state's URL: `statestore.open` then goes on there with the same epoch, meta, states and clocks. Or a folder, which becomes a
        savepoint.
    max_parallelism
        Number of key groups of the target, by default the source's; with another, every entry gets a new key.
    overwrite
        Whether what the target holds is given up.
    show
        Called with what is being done ("copy", "verify"), the share of it that is done, and a number of entries.

    Raises
    ------
    AlreadyExistsError
        The target holds state.
    CheckpointNotFoundError
        The source holds none.
    UnavailableError
        A place can't be reached, or another process has it open.
    CorruptionError
        A file of the source is damaged, or the copy is not what was copied.
    UsageError
        Source and target are one, the target would keep nothing, or it can't have other key groups.
    """
    origin_place, target_place = _as_place(source), _as_place(target)
    clock = clock or SystemClock()
    begun = clock.monotonic()
    with ExitStack() as stack:
        origin, taken = open_source(origin_place, stack, clock)
        manifest = origin.manifest
        groups = _checked_parallelism(max_parallelism, manifest, target_place)
        origin = replace(origin, identity=digest(origin.identity, str(groups)))
        copy: BackendTarget | SavepointWriter
        if target_place.is_state:
            copy = BackendTarget(
                target_place, origin, taken, max_parallelism=groups, overwrite=overwrite, stack=stack, clock=clock
            )
        else:
            opener = target_place.open_storage
            copy = SavepointWriter(str(target_place.url), origin, clock, opener, taken=taken, overwrite=overwrite)
        resumed_at = copy.progress.entries
        crashpoints.reach("migrate.begun")
        change_key = None if groups == manifest.max_parallelism else _key_changer(manifest, groups)
        copy_entries(origin, copy, show, change_key)
        _compare(copy, groups, show)
        crashpoints.reach("migrate.verified")
        copy.complete()
    if isinstance(copy, BackendTarget):
        copy.settle()
    crashpoints.reach("migrate.completed")
    return MigrationReport(
        source=str(origin_place),
        target=str(target_place),
        epoch=manifest.epoch,
        max_parallelism=groups,
        entries=copy.progress.entries,
        raw_bytes=copy.progress.raw_bytes,
        hash=copy.progress.hash,
        resumed_at=resumed_at,
        seconds=clock.monotonic() - begun,
    )


def _as_place(place: str | Config | Place) -> Place:
    return place if isinstance(place, Place) else Place(place)


def _checked_parallelism(wanted: int | None, manifest: Manifest, target: Place) -> int:
    if wanted is None or wanted == manifest.max_parallelism:
        return manifest.max_parallelism
    if not 1 <= wanted <= MAX_PARALLELISM_LIMIT:
        raise UsageError(f"max_parallelism is {wanted}, it must be from 1 to {MAX_PARALLELISM_LIMIT}")
    if not target.is_state:
        raise UsageError(
            "a savepoint's entries are sorted, and other key groups have another order: migrate to a backend first "
            "(as rocksdb:///path), and make the savepoint of it"
        )
    return wanted


def _key_changer(manifest: Manifest, groups: int) -> Callable[[bytes], bytes]:
    """Makes entry keys with another number of key groups."""
    timers = {state.id.to_bytes(2, "big") for state in manifest.states if state.kind.startswith(Timers.kind)}

    def change(entry_key: bytes) -> bytes:
        key = key_of_timer(entry_key) if entry_key[2:4] in timers else split_entry(entry_key)[2]
        return group_start(key_group_of(key, groups)) + entry_key[2:]

    return change


def _compare(copy: BackendTarget | SavepointWriter, groups: int, show: Show | None) -> None:
    """Read the copy back. Raises CorruptionError unless it is what was written."""
    found, written = tally_of(copy.scan(), groups, show), copy.progress
    if (found.entries, found.hash) != (written.entries, written.hash):
        copy.give_up()
        problem = (
            f"{found.entries} entries (hash {found.hash}) where {written.entries} were written (hash {written.hash})"
        )
        raise CorruptionError(copy.where, problem, hint="run the migration again: it begins anew")
