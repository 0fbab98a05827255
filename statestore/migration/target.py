"""A store's place, filled from outside.

1. Entries are applied in pieces, each with a note of how far the copy has come; the marker is 0.
2. They are read back, counted and hashed.
3. A log is written: one segment with one commit, of the source's epoch. It holds what is no entry: meta, states, clocks.
4. One batch deletes the note and sets the marker, and the stamp that ties the backend to that log.

Invariants:
- the note is written in the same batch as the entries it counts, so a migration that goes on misses none and repeats none;
- until step 4 the note is there, and no store is opened over it unasked; from then on the place is as a store leaves it;
- the log's segment names one before it that is not there, so that it can't pass for the whole history of an empty state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from statestore import crashpoints
from statestore.backend import backend_class
from statestore.clock import Clock
from statestore.copying import Entry, Progress, Source
from statestore.errors import AlreadyExistsError, UsageError
from statestore.keys import MAX_PARALLELISM_LIMIT
from statestore.migration.place import Place, digest, names_of, stored_parallelism, with_parallelism
from statestore.opening import claim_parts, open_store
from statestore.stamp import encode_stamp, stamp_key, unfinished_key
from statestore.types import Epoch
from statestore.wal.record import Columns, CommitRecord

ALL_GROUPS = range(MAX_PARALLELISM_LIMIT)
NOTHING = Epoch(0)


class BackendTarget:
    """Target of a copy that ends as a state to be opened.

    Raises
    ------
    AlreadyExistsError
        It holds state, which is not to be overwritten.
    UsageError
        It is where the source is, or it would keep nothing.
    """

    def __init__(
        self,
        place: Place,
        source: Source,
        taken: set[str],
        *,
        max_parallelism: int,
        overwrite: bool,
        stack: ExitStack,
        clock: Clock,
    ):
        config, root = place.resolved()
        config = with_parallelism(config, max_parallelism)
        if root is None or not backend_class(config.state.backend).durable:
            raise UsageError(f"{place} would forget the state: migrate it into a folder, which becomes a savepoint")
        if str(Path(root).resolve()) in taken:
            raise UsageError(
                f"source and target share the folder {root}: name another for one of them (--dir, --to-dir)"
            )
        self._place, self._source, self._config, self._root, self._clock = place, source, config, root, clock
        stored = stored_parallelism(config, root, place.job)
        if stored is not None and stored != max_parallelism:
            self._clear_old(stored, overwrite)
        self._parts = claim_parts(config, place.job, root=root, clock=clock)
        stack.callback(self._parts.release)
        if names_of(self._parts, config, root, place) & taken:
            raise UsageError(f"source and target are one: {place}")
        self._backend, self.where = self._parts.backend, str(place)
        self._note_key = unfinished_key(self._parts.key_groups)
        self._has_checkpoints = self._parts.checkpoints.latest() is not None
        self.progress = self._begin(overwrite)

    def _clear_old(self, max_parallelism: int, overwrite: bool) -> None:
        """Remove a state with another number of key groups, as only a backend that is opened with that number can."""
        if not overwrite:
            raise self._taken()
        parts = claim_parts(
            with_parallelism(self._config, max_parallelism), self._place.job, root=self._root, clock=self._clock
        )
        try:
            parts.log.reset()
            parts.backend.clear(ALL_GROUPS)
        finally:
            parts.release()

    def _taken(self) -> AlreadyExistsError:
        hint = "choose another place, or have it overwritten (--overwrite)"
        return AlreadyExistsError(str(self._place), "it holds state", hint=hint)

    def _begin(self, overwrite: bool) -> Progress:
        """What an interrupted migration of the same source has left, or an empty place with a note."""
        (note,) = self._backend.get_many([self._note_key])
        if note is not None:
            progress = msgspec.msgpack.decode(note, type=Progress)
            if progress.source == self._source.identity:
                return progress
        elif not overwrite and self._holds_state():
            raise self._taken()
        self._parts.log.reset()
        self._backend.clear(ALL_GROUPS)
        progress = Progress(source=self._source.identity)
        self.write([], progress)
        return progress

    def _holds_state(self) -> bool:
        return (
            self._backend.applied_epoch() > 0
            or not self._parts.log.is_empty()
            or self._has_checkpoints
            or next(self._backend.scan(b"", None), None) is not None
        )

    def write(self, piece: list[Entry], progress: Progress) -> None:
        """Apply a piece, and the note with it."""
        batch: dict[bytes, bytes | None] = dict(piece)
        batch[self._note_key] = msgspec.msgpack.encode(progress)
        self._backend.apply(batch, NOTHING)
        self._backend.persist()
        self.progress = progress
        crashpoints.reach("migrate.copying")

    def scan(self) -> Iterator[Entry]:
        """What is there."""
        return self._backend.scan(b"", None)

    def give_up(self) -> None:
        """Leave a note of nobody's: whoever comes next begins anew."""
        self.write([], Progress(source=""))

    def complete(self) -> None:
        """Write the log, and then all at once what makes the place a state of that log."""
        manifest, attempt, log = self._source.manifest, self._parts.attempt, self._parts.log
        log.reset()
        log.begin(
            attempt=attempt,
            epoch=Epoch(manifest.epoch - 1),
            sequence=1,
            previous=digest("migrated from", self._source.identity),
        )
        log.append(Columns.of({}), manifest.epoch, CommitRecord(manifest.meta, manifest.times, list(manifest.states)))
        log.seal()
        crashpoints.reach("migrate.logged")
        stamp = encode_stamp(attempt, manifest.epoch)
        batch = {stamp_key(self._parts.key_groups): stamp, self._note_key: None}
        self._backend.apply(batch, manifest.epoch)
        self._backend.persist()

    def settle(self) -> None:
        """Once all is closed: where there are checkpoints of an overwritten state, make a newer one, so that "latest" is not of them."""
        if self._has_checkpoints:
            with open_store(
                self._config, self._place.job, restore=None, root=self._root, auto_complete=True, clock=self._clock
            ) as store:
                store.checkpoint()
