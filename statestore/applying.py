"""Brings complete epochs to the backend, in a thread of its own.

Invariants:
- what failed to be applied stays in `Pending`, is looked up there, and is applied first of all by the next try;
- a failure is raised before a commit, never out of one that is durable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TypeVar

from statestore import crashpoints
from statestore.backend import Backend
from statestore.clock import Clock
from statestore.errors import UnavailableError
from statestore.hydration import is_hydrating
from statestore.metrics import StoreMetrics
from statestore.pending import Pending
from statestore.stamp import encode_stamp
from statestore.sweep import Sweep
from statestore.types import Attempt, Epoch

logger = logging.getLogger("statestore.store")

T = TypeVar("T")

RETRY_SECONDS = 0.1
"""Before the first try after a failure; twice as long before each further one, up to `RETRY_SECONDS_MAX`."""
RETRY_SECONDS_MAX = 10.0


class Applier:
    """The applying thread of one store.

    Parameters
    ----------
    pending_bytes
        How much may wait before it is applied; when twice as much waits, commits wait for the backend.
    retries
        Whether a backend that does not answer is tried again, as long as there is room for what waits. Else whoever supervises the
        store is told at once.
    """

    def __init__(
        self,
        backend: Backend,
        pending: Pending,
        sweep: Sweep,
        metrics: StoreMetrics,
        clock: Clock,
        *,
        stamp_key: bytes,
        attempt: Attempt,
        pending_bytes: int,
        retries: bool,
    ):
        self._backend, self._pending, self._sweep, self._metrics = backend, pending, sweep, metrics
        self._clock, self._stamp_key, self._attempt = clock, stamp_key, attempt
        self._pending_bytes, self._retries = pending_bytes, retries
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="statestore-apply")
        self._last: Future[None] | None = None
        self._retry_at, self._retry_seconds = 0.0, RETRY_SECONDS
        self.persisted = Epoch(0)
        """Epoch up to which the backend holds everything, whatever happens."""

    def complete(self, epoch: Epoch) -> None:
        """The epochs up to this one can't be rolled back: apply them when much has come together."""
        self._pending.complete(epoch)
        ready = self._pending.ready_bytes
        if ready > self._pending_bytes:
            if self._last is not None and ready > 2 * self._pending_bytes:
                self.settle()  # the backend can't keep up: wait for it, rather than fill the memory
            self._unless_busy(self._apply_ready)
        elif self._sweep.is_due() and not is_hydrating(self._backend):
            self._unless_busy(self._sweep_some)

    def start(self) -> Future[None]:
        """Apply all that is complete."""
        self._last = self._thread.submit(self._apply_ready)
        return self._last

    def then(self, task: Callable[[], T]) -> Future[T]:
        """Apply all that is complete, and do `task` before anything else is applied."""

        def apply_first() -> T:
            self._apply_ready()
            return task()

        return self._thread.submit(apply_first)

    def finish(self) -> None:
        """Apply all that is complete, now. Raises what the backend raises."""
        self.settle()
        self.start().result()

    def settle(self) -> None:
        """Wait for what is being applied, if anything is, however that ends."""
        if self._last is not None:
            wait_for([self._last])

    def raise_failure(self) -> None:
        """Raise what ended the last applying; but not a backend's silence, which may pass, while it is tried again."""
        error = self._last.exception() if self._last is not None and self._last.done() else None
        if error is None:
            return
        if not (self._retries and isinstance(error, UnavailableError)):
            raise error
        if self._clock.monotonic() >= self._retry_at:
            self.start()
        if self._pending.ready_bytes > 2 * self._pending_bytes:
            raise error

    def close(self) -> None:
        """Wait for the thread to end; idempotent."""
        self._thread.shutdown(wait=True)

    def _unless_busy(self, task: Callable[[], None]) -> None:
        """Have it done now; while something else is, or has failed, it comes with a later commit."""
        if self._last is None or (self._last.done() and self._last.exception() is None):
            self._last = self._thread.submit(task)

    # In the thread

    def _apply_ready(self) -> None:
        batch = self._pending.take()
        if batch is None:
            return
        try:
            with self._metrics.time("persistence"):
                crashpoints.reach("backend.before-apply")
                batch.entries[self._stamp_key] = encode_stamp(self._attempt, batch.epoch)
                self._backend.apply(batch.entries, batch.epoch)
                crashpoints.reach("backend.applied")
                self._pending.finish()
                self._sweep.applied(batch.entries)
                self.persisted = self._backend.persist()
        except UnavailableError as error:
            logger.warning("epoch %d was not applied: %s", batch.epoch, error)
            self._retry_at = self._clock.monotonic() + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, RETRY_SECONDS_MAX)
            raise
        self._retry_seconds = RETRY_SECONDS

    def _sweep_some(self) -> None:
        if self._sweep.has_waited():  # so that what waits for the backend is swept too, however little it is
            self._apply_ready()
        self._sweep.look()
