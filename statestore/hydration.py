"""A backend that is filled from a checkpoint while it is used already.

Invariants:
- what it shows is at every moment exactly the checkpoint's state with the batches applied since: entries before `_position` and those
  written since are in the backend below, all others in the checkpoint;
- the backend below keeps marker 0 until it holds everything; the last step sets stamp and marker. So what dies before that restores
  again, from the newest checkpoint, and `persist` promises nothing until then;
- a failure of the copying is raised by every later call: a state that can't be completed is not worked with.

One thread copies, in ascending order and in pieces; `_lock` keeps it apart from whoever applies. Readers take no lock: a key's
entry is copied before `_position` passes it, and neither of `_position` and `_written` ever takes a key back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence

from statestore import crashpoints
from statestore.backend import Backend, BackendContext, Batch, next_piece
from statestore.checkpoint.view import CheckpointView
from statestore.errors import ClosedError, UsageError
from statestore.keys import group_bounds
from statestore.progress import RestoreMeter, RestoreProgress
from statestore.segment import merged
from statestore.stamp import stamp_key
from statestore.types import Epoch

logger = logging.getLogger("statestore.recovery")

ENTRIES_PER_PIECE = 50_000
BYTES_PER_PIECE = 8 << 20
HEAD_START_SECONDS = 0.2
"""What a store does first, it does without having to share the processor."""


class Hydrating(Backend):
    """`Backend` over another one, just cleared, and a checkpoint that is copied into it.

    `start` begins the copying. When it is done, every call goes straight to the backend below.

    Parameters
    ----------
    key_groups
        What is copied; the checkpoint may hold more.
    epoch, stamp
        Epoch of the checkpoint's state, and the stamp that goes with it.
    """

    def __init__(
        self,
        backend: Backend,
        view: CheckpointView,
        key_groups: range,
        epoch: Epoch,
        stamp: bytes,
        meter: RestoreMeter,
    ):
        self.durable = backend.durable
        self._backend = backend
        self._view: CheckpointView | None = view  # None: all is in the backend
        self._position, self._end = group_bounds(key_groups)
        self._entries = view.stream(self._position, self._end)
        self._written: set[bytes] = set()
        self._epoch, self._stamp_key, self._stamp, self._meter = epoch, stamp_key(key_groups), stamp, meter
        self._lock, self._stepping = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, context: BackendContext) -> Hydrating:
        """Refused: recovery makes it of a backend that is open."""
        raise UsageError("a hydrating backend is made of an open one, it can't be opened itself")

    # Copying

    def start(self) -> None:
        """Begin to copy, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="statestore-hydrate", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._closing.wait(HEAD_START_SECONDS)
            while self.step():
                pass
        except BaseException as error:
            logger.error("the state can't be restored to its end: %s", error)
            self._failure = error
        finally:
            self._ended.set()

    def step(self) -> bool:
        """Copy the next piece; False when there is nothing left to do. Raises what reading or writing raises."""
        with self._stepping:
            if self._view is None or self._closing.is_set():
                return False
            piece = next_piece(self._entries, entries_max=ENTRIES_PER_PIECE, bytes_max=BYTES_PER_PIECE)
            with self._lock:
                if not piece:
                    self._complete()
                    return False
                missing: dict[bytes, bytes | None] = {key: value for key, value in piece if key not in self._written}
                if missing:
                    self._backend.apply(missing, Epoch(0))
                self._position = piece[-1][0] + b"\0"
            self._meter.add(len(piece))
            crashpoints.reach("hydration.piece")
            return True

    def _complete(self) -> None:
        crashpoints.reach("hydration.copied")
        self._backend.apply({self._stamp_key: self._stamp}, self._epoch)
        self._backend.persist()
        crashpoints.reach("hydration.done")
        view, self._view = self._view, None
        if view is not None:
            view.close()
        self._written = set()
        self._meter.end()
        self._ended.set()

    @property
    def is_done(self) -> bool:
        """Whether the backend below holds everything."""
        return self._view is None

    def progress(self) -> RestoreProgress:
        """How far the copying is."""
        return self._meter.progress()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all is copied; False when it is not within `timeout` seconds. Raises what ended the copying."""
        self._ended.wait(timeout)
        self.raise_failure()
        return self.is_done

    def raise_failure(self) -> None:
        """Raise what ended the copying, if anything did."""
        if self._failure is not None:
            raise self._failure

    # The contract

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is copied or written from the backend, the rest from the checkpoint."""
        view = self._view
        if view is None:
            return self._backend.get_many(keys)
        self.raise_failure()
        position, written = self._position, self._written
        afar = [index for index, key in enumerate(keys) if key >= position and key not in written]
        if not afar:
            return self._backend.get_many(keys)
        found = view.get_many([keys[index] for index in afar])
        if len(afar) == len(keys):
            return found
        values = dict(zip(afar, found, strict=True))
        here = [index for index in range(len(keys)) if index not in values]
        values.update(zip(here, self._backend.get_many([keys[index] for index in here]), strict=True))
        return [values[index] for index in range(len(keys))]

    def apply(self, batch: Batch, epoch: Epoch) -> None:
        """Write to the backend, with marker 0 as long as it does not hold everything."""
        with self._lock:
            if self._view is None:
                self._backend.apply(batch, epoch)
                return
            self.raise_failure()
            self._backend.apply(batch, Epoch(0))
            self._written.update(key for key in batch if key >= self._position)
            self._stamp = batch.get(self._stamp_key) or self._stamp
            self._epoch = epoch

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The backend's entries, and those of the checkpoint that are not copied or written yet."""
        view = self._view
        if view is None:
            return self._backend.scan(start, stop)
        self.raise_failure()
        written, first = self._written, max(start, self._position)
        last = self._end if stop is None else min(stop, self._end)
        if last <= first:
            return self._backend.scan(start, stop)
        afar = (entry for entry in view.scan(first, last) if entry[0] not in written)
        return merged([self._backend.scan(start, stop), afar])

    def applied_epoch(self) -> Epoch:
        """The epoch of what it shows."""
        if self._view is None:
            return self._backend.applied_epoch()
        return self._epoch

    def persist(self) -> Epoch:
        """As the backend does; 0 as long as it does not hold everything."""
        with self._lock:
            if self._view is None:
                return self._backend.persist()
            self.raise_failure()
            return Epoch(0)

    def clear(self, key_groups: range) -> None:
        """Copy everything, then clear what is to go."""
        while self.step():
            pass
        self._backend.clear(key_groups)

    def close(self) -> None:
        """Stop copying after the piece that is being copied, and close the backend; what is not done begins anew at the next opening."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        if self._view is not None:
            self._view.close()
            self._failure = self._failure or ClosedError("the backend was closed before it held everything")
        self._ended.set()
        self._backend.close()


def settled(backend: Backend) -> Backend:
    """The backend itself, also where it was filled from a checkpoint and is full by now."""
    return backend._backend if isinstance(backend, Hydrating) and backend.is_done else backend


def is_hydrating(backend: Backend) -> bool:
    """Whether a backend does not hold everything yet: what reads all of it, or gives up what it comes from, has to wait."""
    return isinstance(backend, Hydrating) and not backend.is_done
