"""Collects in the background of a running store, so that no checkpoint waits for it.

Invariants:
- a run begins only after a checkpoint of this attempt is complete; there is one at a time;
- whatever goes wrong in it is logged, and tried again after the next checkpoint;
- a storage call that never returns keeps its thread, and nothing else: not the next checkpoint, not `close`, not the end of the process.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from statestore.checkpoint.claim import settle_claim
from statestore.checkpoint.manifest import Claim, Manifest
from statestore.checkpoint.retention import Broom, collect, sweep
from statestore.checkpoint.storage import CheckpointStorage
from statestore.clock import Clock
from statestore.errors import ClosedError, FencedError, StateStoreError
from statestore.metrics import StoreMetrics
from statestore.types import Attempt

if TYPE_CHECKING:
    from statestore.store import StoreSettings

logger = logging.getLogger("statestore.checkpoint")

CLOSING_SECONDS = 10.0
SWEEPS_PER_AGE = 4
SWEEP_SECONDS_MIN = 60.0


class Collector:
    """Removes what `StoreSettings.num_retained` and `orphan_age` let go."""

    def __init__(
        self,
        checkpoints: CheckpointStorage,
        attempt: Attempt,
        *,
        settings: StoreSettings,
        clock: Clock,
        metrics: StoreMetrics,
        claimed: Claim | None,
    ):
        self._checkpoints, self._attempt, self._settings = checkpoints, attempt, settings
        self._clock, self._metrics = clock, metrics
        self._changed = threading.Condition()
        self._is_wanted = self._is_running = self._is_closed = False
        self._next_sweep = clock.monotonic()
        self._newest: Manifest | None = None
        self.claimed = claimed
        """What of elsewhere is to be removed when it is not needed any more."""

    def start(self, newest: Manifest) -> None:
        """Begin a run after this checkpoint is complete, or have the present one followed by another."""
        with self._changed:
            self._is_wanted, self._newest = True, newest
            if self._is_running or self._is_closed:
                return
            self._is_running = True
        threading.Thread(target=self._run, name="statestore-collect", daemon=True).start()

    def wait(self, seconds: float = CLOSING_SECONDS) -> bool:
        """Wait until nothing is being collected; False when it takes longer than this."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_running, seconds)

    def close(self) -> None:
        """Remove nothing more; a removal that has begun is waited for, within bounds."""
        with self._changed:
            self._is_closed = True
        if not self.wait():
            logger.warning("removing old checkpoints at %s hangs, and is left behind", self._checkpoints.url)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._is_closed or not self._is_wanted:
                    self._is_running = False
                    self._changed.notify_all()
                    return
                self._is_wanted = False
            self._try_once()

    def _try_once(self) -> None:
        try:
            with self._metrics.time("collection"):
                self._collect()
        except FencedError as error:
            self._is_closed = True
            logger.warning("nothing more is removed: %s", error)
        except ClosedError:
            return
        except (StateStoreError, OSError) as error:
            logger.warning(
                "old checkpoints at %s were not removed, the next checkpoint tries again: %s",
                self._checkpoints.url,
                error,
            )
        except Exception:
            logger.exception("old checkpoints at %s were not removed", self._checkpoints.url)

    def _collect(self) -> None:
        checkpoints, age, newest = self._checkpoints, self._settings.orphan_age, self._newest
        broom = Broom(checkpoints, self._may_go_on)
        is_sweep = age > 0 and self._clock.monotonic() >= self._next_sweep
        listed = checkpoints.storage.list(checkpoints.job) if is_sweep else []
        try:
            found = collect(checkpoints, self._settings.num_retained, broom, listed)
            if is_sweep:
                sweep(checkpoints, found, listed, checkpoints.time() - age, broom)
                self._next_sweep = self._clock.monotonic() + max(age / SWEEPS_PER_AGE, SWEEP_SECONDS_MIN)
            if newest is not None:
                self.claimed = settle_claim(newest, self._settings.num_retained, checkpoints)
        finally:
            self._metrics.removed_files += len(broom.removed)
            self._metrics.removed_bytes += sum(item.bytes for item in broom.removed)

    def _may_go_on(self) -> None:
        if self._is_closed:
            raise ClosedError("the store is closed")
        self._checkpoints.check_owner(self._attempt)
