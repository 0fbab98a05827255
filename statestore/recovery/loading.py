"""Fills a backend from a checkpoint: at once, or in the background while the store works already."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from statestore import crashpoints
from statestore.backend import Backend, SupportsBulkLoad, V, next_piece
from statestore.checkpoint.manifest import Manifest, Part
from statestore.checkpoint.native import restore_native
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.view import CheckpointView
from statestore.clock import Clock
from statestore.hydration import Hydrating
from statestore.keys import group_bounds
from statestore.progress import OnRestoreProgress, RestoreMeter
from statestore.stamp import encode_stamp, stamp_key
from statestore.types import Epoch

logger = logging.getLogger("statestore.recovery")

ENTRIES_PER_APPLY = 200_000
BYTES_PER_APPLY = 32 << 20


class Loader:
    """How checkpoints are loaded.

    Parameters
    ----------
    lazy
        Whether the store is to open before the backend holds everything.
    parallelism
        How many files of a checkpoint are read at a time.
    on_progress
        Told how far an eager load is, in the thread that loads.
    folder
        Where temporary files may lie; None: where the machine keeps such.
    """

    def __init__(
        self,
        backend: Backend,
        key_groups: range,
        clock: Clock,
        *,
        lazy: bool,
        parallelism: int,
        on_progress: OnRestoreProgress | None,
        folder: str | None = None,
    ):
        self._backend, self._key_groups, self._clock = backend, key_groups, clock
        self._lazy, self.parallelism, self._on_progress, self._folder = lazy, parallelism, on_progress, folder

    def load(self, checkpoints: CheckpointStorage, manifest: Manifest, part: Part) -> Backend:
        """Fill the backend with a checkpoint's `part` for its key groups and nothing else; returns what holds that state from now on.

        A native base of its own kind takes the place of what the backend has, which is never lazy.

        The marker is set by the last step only: what is interrupted before is done again by the next opening.

        Raises
        ------
        CorruptionError
            A file is missing or damaged. A lazy load meets it only later: see `Hydrating`.
        """
        view = CheckpointView(checkpoints, manifest, parallelism=self.parallelism, folder=self._folder)
        stamp = encode_stamp(manifest.attempt, part.epoch)
        is_native = restore_native(self._backend, checkpoints, part, self._folder)
        if not is_native:
            self._backend.clear(self._key_groups)
        if self._lazy and not is_native:
            crashpoints.reach("hydration.begun")
            return Hydrating(self._backend, view, self._key_groups, part.epoch, stamp, RestoreMeter(part, self._clock))
        try:
            meter = RestoreMeter(part, self._clock, self._on_progress)
            if is_native:
                self._apply_in_pieces(view.stream_deltas(*group_bounds(self._key_groups)))
            else:
                self._load_all(meter.counted(view.stream(*group_bounds(self._key_groups))))
            self._backend.apply({stamp_key(self._key_groups): stamp}, part.epoch)
            meter.end()
        finally:
            view.close()
        return self._backend

    def _load_all(self, entries: Iterator[tuple[bytes, bytes]]) -> None:
        if isinstance(self._backend, SupportsBulkLoad):
            self._backend.bulk_load(entries)
        else:
            self._apply_in_pieces(entries)

    def _apply_in_pieces(self, entries: Iterator[tuple[bytes, V]]) -> None:
        while piece := next_piece(entries, entries_max=ENTRIES_PER_APPLY, bytes_max=BYTES_PER_APPLY):
            self._backend.apply(dict(piece), Epoch(0))
