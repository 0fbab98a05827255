"""Keeps a store's checkpoints short, in the background: a new base when the deltas have outgrown the last, packed deltas in between.

Invariants:
- what is made is only offered: `Renewed.applied_to` says what the next checkpoint consists of with it, which still covers every epoch;
- one thing is made at a time, in the order in which it was asked for;
- memory is bounded, whatever the size of the state and of the deltas.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from statestore import crashpoints
from statestore.backend import Backend, SupportsNativeCheckpoint
from statestore.checkpoint.layers import Files, LogLayer
from statestore.checkpoint.manifest import Base, BaseEntry, Delta, InheritedBase, LogDelta, NativeBase, PackedDelta
from statestore.checkpoint.native import Apply, NativeBases
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.upload import Throttle, Uploader
from statestore.clock import Clock
from statestore.errors import CorruptionError, StateStoreError, UnavailableError
from statestore.hydration import is_hydrating, settled
from statestore.metrics import StoreMetrics
from statestore.stamp import STAMP_STATE
from statestore.sweep import Sweep
from statestore.types import Attempt, Epoch

logger = logging.getLogger("statestore.checkpoint")

PACKED_MAX_BYTES = 8 << 20
"""A delta larger than this is no small one: reading it takes longer than finding it."""


@dataclass(frozen=True, slots=True)
class RenewalSettings:
    """When to make something, how fast, and of which kind."""

    base_ratio: float
    base_min_bytes: int
    base_max_deltas: int
    base_max_age_seconds: float
    base_bytes_per_second: int
    native: bool
    pack_deltas: int
    inline_bytes: int


class Renewed(Protocol):
    """Something that was made."""

    @property
    def uploaded(self) -> int:
        """Bytes stored for it."""
        ...

    def applied_to(self, base: Base | None, deltas: list[Delta]) -> tuple[Base | None, list[Delta]]:
        """Base and deltas with it; as they are when it does not fit any more."""
        ...


@dataclass(frozen=True, slots=True)
class NewBase:
    """A base, and the bytes of it that were not in the storage before."""

    base: Base
    before: Base | None
    """The base that it takes the place of, and may share files with."""
    uploaded: int

    def applied_to(self, base: Base | None, deltas: list[Delta]) -> tuple[Base | None, list[Delta]]:
        """It takes the place of the base before, and of the deltas up to its epoch."""
        if base != self.before:  # the files that the two share may be gone by now
            return base, deltas
        return self.base, [delta for delta in deltas if delta.last_epoch > self.base.epoch]


@dataclass(frozen=True, slots=True)
class NewPack:
    """A packed delta, and the deltas it was made of."""

    pack: PackedDelta
    replaced: list[LogDelta]
    uploaded: int

    def applied_to(self, base: Base | None, deltas: list[Delta]) -> tuple[Base | None, list[Delta]]:
        """It takes the place of the deltas it was made of, if they are all still there."""
        paths = [delta.path if isinstance(delta, LogDelta) else "" for delta in deltas]
        if self.replaced[0].path not in paths:
            return base, deltas
        start = paths.index(self.replaced[0].path)
        stop = start + len(self.replaced)
        if paths[start:stop] != [delta.path for delta in self.replaced]:
            return base, deltas
        return base, [*deltas[:start], self.pack, *deltas[stop:]]


def wants_base(base: Base | None, deltas: Sequence[Delta], now: float, settings: RenewalSettings) -> bool:
    """Whether it is time for a new base: the deltas are too large for the last, or too many, or it is too old."""
    if isinstance(base, InheritedBase):
        return True  # so that what other stores have left can go
    if not deltas:
        return False
    base_bytes, delta_bytes = base.size if base else 0, sum(delta.size for delta in deltas)
    if delta_bytes > settings.base_ratio * base_bytes and (
        delta_bytes > settings.base_min_bytes or to_pack(deltas, settings)  # a base is no dearer than packing them
    ):
        return True
    if len(deltas) > settings.base_max_deltas:
        return True
    age = settings.base_max_age_seconds
    return age > 0 and (base is None or now - base.created > age)


def to_pack(deltas: Sequence[Delta], settings: RenewalSettings) -> list[LogDelta]:
    """The newest small deltas in a row, if they are so many that they should be packed."""
    row = []
    for delta in reversed(deltas):
        if not isinstance(delta, LogDelta) or delta.size > PACKED_MAX_BYTES:
            break
        row.append(delta)
    return row[::-1] if len(row) > settings.pack_deltas else []


class Renewal:
    """Makes bases and packed deltas of one store."""

    def __init__(
        self,
        *,
        checkpoints: CheckpointStorage,
        backend: Backend,
        backend_name: str,
        apply: Apply,
        sweep: Sweep,
        metrics: StoreMetrics,
        clock: Clock,
        attempt: Attempt,
        key_groups: range,
        settings: RenewalSettings,
        folder: str | None,
    ):
        self._checkpoints, self._backend, self._apply, self._sweep = checkpoints, backend, apply, sweep
        self._metrics, self._clock = metrics, clock
        self._owner = f"{attempt}-{key_groups.start}"  # the stores of one attempt have key groups of their own
        self._stem = f"shared/base-{self._owner}"
        self._settings, self._folder = settings, folder
        self._throttle = Throttle(settings.base_bytes_per_second, clock)
        self._uploader = Uploader(checkpoints, settings.inline_bytes, self._throttle)
        self._backend_name = backend_name
        self._native: NativeBases | None = None
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="statestore-base")
        self._making: Future[NewBase] | Future[NewPack] | None = None
        self._delta_is_damaged = False

    def start(self, base: Base | None, deltas: list[Delta]) -> None:
        """Begin to make what is due, if anything, unless something is being made."""
        if self._making is not None or is_hydrating(self._backend):
            return
        if self._delta_is_damaged or wants_base(base, deltas, self._clock.time(), self._settings):
            self._making = self._maker.submit(self._make_base, base)
        elif packable := to_pack(deltas, self._settings):
            self._making = self._maker.submit(self._make_pack, packable)

    def take(self) -> Renewed | None:
        """What was made since the last time, once."""
        if self._making is None or not self._making.done() or self._making.exception() is not None:
            return None
        made, self._making = self._making.result(), None
        return made

    def base_now(self, base: Base | None) -> NewBase:
        """A new base in the place of `base`, of which nothing was stored before; after what is being made."""
        return self._maker.submit(self._make_base, base, anew=True).result()

    def wait(self) -> None:
        """Until nothing is being made."""
        if self._making is not None:
            self._making.exception()

    def raise_failure(self) -> None:
        """Raise what ended the making of something, if it was damage of the local state."""
        if self._making is None or not self._making.done():
            return
        error = self._making.exception()
        if isinstance(error, StateStoreError) and not isinstance(error, UnavailableError):
            raise error
        if error is not None:
            logger.warning("a new base was not made, it is tried again after the next checkpoint: %s", error)
            self._making = None

    def close(self) -> None:
        """Give up what is being made."""
        self._throttle.stop()
        self._maker.shutdown(wait=True, cancel_futures=True)

    # Bases

    def _make_base(self, before: Base | None, anew: bool = False) -> NewBase:
        with self._metrics.time("base"):
            if (native_bases := self._native_bases()) is not None:
                shared = before if isinstance(before, NativeBase) and not anew else None
                native, uploaded = native_bases.make(self._apply, shared)
                made = NewBase(native, before, uploaded)
            else:
                portable = self._portable_base()
                made = NewBase(portable, before, portable.size)
        crashpoints.reach("base.made")
        self._delta_is_damaged = False
        self._metrics.bases += 1
        self._metrics.base_bytes += made.base.size
        self._metrics.base_uploaded_bytes += made.uploaded
        logger.info("a base of epoch %d: %d of its %d bytes are new", made.base.epoch, made.uploaded, made.base.size)
        return made

    def _native_bases(self) -> NativeBases | None:
        backend = settled(self._backend)
        if self._native is None and self._settings.native and isinstance(backend, SupportsNativeCheckpoint):
            self._native = NativeBases(
                backend, self._backend_name, self._uploader, self._stem, self._clock, self._folder
            )
        return self._native

    def _portable_base(self) -> BaseEntry:
        epoch = self._apply(self._backend.applied_epoch).result()
        segments = self._uploader.put_sorted(self._entries(), f"{self._stem}-{epoch}")
        return BaseEntry(epoch=epoch, created=self._clock.time(), segments=segments)

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        stored = self._sweep.without_expired(self._backend.scan(b"", None))
        return (item for item in stored if item[0][2:4] != STAMP_STATE)

    # Packing

    def _make_pack(self, deltas: list[LogDelta]) -> NewPack:
        first, last = deltas[0], deltas[-1]
        with self._metrics.time("pack"):
            files = Files(self._checkpoints, 0, 1, self._folder)
            layer = LogLayer(files, deltas, Epoch(0))
            try:
                stem = f"shared/pack-{self._owner}-{first.sequence}-{last.sequence}"
                segments = self._uploader.put_sorted(layer.scan(b"", None), stem)
            except CorruptionError as error:
                # The checkpoints with this delta can't be restored; those with a new base can.
                logger.error("a delta in checkpoint storage is damaged, a new base will take its place: %s", error)
                self._delta_is_damaged = True
                raise UnavailableError("delta", error.file, error.problem) from error
            finally:
                layer.close()
                files.close()
        pack = PackedDelta(first_epoch=first.first_epoch, last_epoch=last.last_epoch, segments=segments)
        crashpoints.reach("pack.made")
        self._metrics.packs += 1
        self._metrics.packed_deltas += len(deltas)
        return NewPack(pack, deltas, pack.size)
