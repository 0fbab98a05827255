"""The entries of a checkpoint, read where it lies.

Invariants:
- a look-up costs the footer and one block of each segment whose range holds the key, however large the state is; nothing is read before it
  is needed;
- newer layers hide older ones, a deletion included; what comes out is exactly the state at the checkpoint's epoch;
- a native base is the exception: for the first look-up its files are brought to the local disk and opened by the backend that wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby

from statestore.checkpoint.layers import Entry, Files, Layer, LogLayer, SegmentsLayer, look_up
from statestore.checkpoint.manifest import InheritedBase, LogDelta, Manifest, NativeBase, PackedDelta, Part
from statestore.checkpoint.native import NativeLayer
from statestore.checkpoint.storage import CheckpointStorage
from statestore.keys import group_start
from statestore.segment import merged

CACHE_BYTES = 32 << 20
PARALLELISM = 4


class _PartView:
    """One part's layers, newest first."""

    def __init__(self, files: Files, part: Part):
        self._temporary: list[LogLayer | NativeLayer | _PartsLayer] = []
        self._deltas: list[Layer] = []
        for is_log, some in groupby(part.deltas, lambda delta: isinstance(delta, LogDelta)):
            if is_log:
                logs = LogLayer(files, [delta for delta in some if isinstance(delta, LogDelta)], part.base_epoch)
                self._deltas.insert(0, logs)
                self._temporary.append(logs)
            else:
                for packed in some:
                    assert isinstance(packed, PackedDelta)
                    self._deltas.insert(0, SegmentsLayer(files, packed.segments))
        self._layers = list(self._deltas)
        if isinstance(part.base, NativeBase):
            native = NativeLayer(files.checkpoints, part.base, files.folder)
            self._layers.append(native)
            self._temporary.append(native)
        elif isinstance(part.base, InheritedBase):
            inherited = _PartsLayer(files, part.base.parts)
            self._layers.append(inherited)
            self._temporary.append(inherited)
        elif part.base is not None:
            self._layers.append(SegmentsLayer(files, part.base.segments))

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
        return look_up(self._layers, keys)

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return _existing([layer.scan(start, stop) for layer in self._layers])

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return _existing([layer.stream(start, stop) for layer in self._layers])

    def stream_deltas(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        return merged([layer.stream(start, stop) for layer in self._deltas])

    def close(self) -> None:
        for layer in self._temporary:
            layer.close()


def _existing(layers: list[Iterator[Entry]]) -> Iterator[tuple[bytes, bytes]]:
    return (entry for entry in merged(layers) if entry[1] is not None)  # type: ignore[misc]  # so none of them is deleted


class _PartsLayer:
    """Parts whose key groups follow each other; of each only what is of its own key groups."""

    def __init__(self, files: Files, parts: list[Part]):
        self._parts = [
            (group_start(part.first_key_group), group_start(part.last_key_group + 1), _PartView(files, part))
            for part in parts
        ]

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        found: dict[bytes, bytes | None] = {}
        keys = list(keys)
        for first, end, view in self._parts:
            own = [key for key in keys if first <= key < end]
            if own:
                found.update(view.get_many(own))
        return found

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return chain.from_iterable(view.scan(first, end) for view, first, end in self._within(start, stop))

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return chain.from_iterable(view.stream(first, end) for view, first, end in self._within(start, stop))

    def stream_deltas(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        return chain.from_iterable(view.stream_deltas(first, end) for view, first, end in self._within(start, stop))

    def _within(self, start: bytes, stop: bytes | None) -> Iterator[tuple[_PartView, bytes, bytes]]:
        for first, end, view in self._parts:
            begin, until = max(start, first), end if stop is None else min(stop, end)
            if begin < until:
                yield view, begin, until

    def close(self) -> None:
        for _, _, view in self._parts:
            view.close()


class CheckpointView:
    """Read-only map of a checkpoint's entries. All methods but `close` may be called from several threads.

    Parameters
    ----------
    cache_bytes
        Memory for decoded blocks.
    parallelism
        How many files are read at a time.
    folder
        Where temporary files may lie; None: where the machine keeps such.

    Raises
    ------
    CorruptionError
        From any read: a file that is needed is missing or damaged.
    UnavailableError
        From any read: the storage does not answer.
    """

    def __init__(
        self,
        checkpoints: CheckpointStorage,
        manifest: Manifest,
        *,
        cache_bytes: int = CACHE_BYTES,
        parallelism: int = PARALLELISM,
        folder: str | None = None,
    ):
        self._files = Files(checkpoints, cache_bytes, parallelism, folder)
        self._parts = _PartsLayer(self._files, manifest.parts)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys` in their order, None where there is none."""
        found = self._parts.get_many(keys)
        return [found.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Entries with start <= key < stop (to the end when `stop` is None), ascending."""
        return self._parts.scan(start, stop)

    def stream(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """As `scan`, for who needs all of a large range: it reads whole files, several at a time and ahead of use."""
        return self._parts.stream(start, stop)

    def stream_deltas(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """As `stream`, of what has changed since the bases; None for what is deleted."""
        return self._parts.stream_deltas(start, stop)

    def close(self) -> None:
        """End the threads that read, and remove temporary files; idempotent. What has been begun can't be read to its end then.

        Temporary files also go with the object.
        """
        self._files.close()
        self._parts.close()
