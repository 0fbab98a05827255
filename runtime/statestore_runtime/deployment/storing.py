"""The JobManager's dealings with checkpoint storage, each in a thread of its own: one that is stuck delays nothing else."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.parts import complete_parts
from statestore.checkpoint.savepoint import save_checkpoint
from statestore.checkpoint.storage import CheckpointStorage
from statestore.clock import Clock
from statestore.config import Config
from statestore.opening import open_checkpoints
from statestore.types import CheckpointId
from statestore_runtime.jobmanager.events import Claimed, Committed, Copied, Event, Reply


class Storing:
    """Claims attempts, completes checkpoints, copies savepoints.

    Parameters
    ----------
    post
        Takes what comes of it; called in another thread.
    """

    def __init__(self, config: Config, job: str, clock: Clock, post: Callable[[Event], None]):
        self._config, self._job, self._clock, self._post = config, job, clock, post
        self._pinning = threading.Lock()
        self._pinned: Counter[CheckpointId] = Counter()  # by copies; not those that somebody else has pinned
        self.copies = 0
        """Savepoints that are being copied, or have not been replied to yet."""

    @functools.cached_property
    def checkpoints(self) -> CheckpointStorage:
        """Where they are. Raises UnavailableError, ConfigError."""
        return open_checkpoints(self._config, self._job)

    def claim(self, deployment: int, above: int) -> None:
        """See `Deployment.claim`."""

        def claimed() -> Event:
            try:
                return Claimed(deployment, self.checkpoints.claim_attempt(above=above))
            except BaseException as error:
                return Claimed(deployment, None, error)

        self._in_thread("claim", claimed)

    def commit(
        self, deployment: int, checkpoint: int, manifests: list[Manifest], meta: dict[str, Any], seconds: float
    ) -> None:
        """See `Deployment.commit`."""

        def committed() -> Event:
            begun = self._clock.monotonic()
            try:
                info = complete_parts(self.checkpoints, manifests, meta)
                info = replace(info, seconds=seconds + self._clock.monotonic() - begun)
            except BaseException as error:
                return Committed(deployment, checkpoint, None, error)
            return Committed(deployment, checkpoint, info)

        self._in_thread("checkpoint", committed)

    def copy(self, deployment: int, manifest: Manifest, dir: str, reply: Reply) -> None:
        """See `Deployment.copy`. The checkpoint is pinned meanwhile: its job goes on, and would remove it in time."""
        self.copies += 1

        def replied(outcome: Any) -> None:
            self.copies -= 1  # only now: who waits for the copies is not to leave before somebody has heard of them
            reply(outcome)

        def copied() -> Event:
            try:
                with self._pin(manifest.checkpoint_id):
                    return Copied(save_checkpoint(self.checkpoints, manifest, dir, self._clock).path, replied)
            except BaseException as error:
                return Copied(None, replied, error)

        self._in_thread("savepoint", copied)

    @contextmanager
    def _pin(self, checkpoint_id: CheckpointId) -> Iterator[None]:
        """Keep a checkpoint until the last one who copies it is done; what somebody else has pinned stays so."""
        with self._pinning:
            is_ours = self._pinned[checkpoint_id] > 0 or checkpoint_id not in self.checkpoints.pins.numbers()
            if is_ours and not self._pinned[checkpoint_id]:
                self.checkpoints.pin(checkpoint_id)
            self._pinned[checkpoint_id] += is_ours
        try:
            yield
        finally:
            with self._pinning:
                self._pinned[checkpoint_id] -= is_ours
                if is_ours and not self._pinned[checkpoint_id]:
                    self.checkpoints.unpin(checkpoint_id)

    def _in_thread(self, what: str, function: Callable[[], Event]) -> None:
        def run() -> None:
            self._post(function())

        threading.Thread(target=run, name=f"statestore-{what}", daemon=True).start()
