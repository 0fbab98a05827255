"""The checkpoints of one deployment, one after the other.

    begun ──▶ acknowledged by all workers ──▶ its manifest is written ──▶ complete
      └───────────────┴──────────────────────────────┴──(too late, or an error)──▶ failed

Invariants:
- at most one is pending; it is complete when each worker has acknowledged it and its manifest is written, and has failed otherwise;
- one whose manifest is being written is never given up: only a new deployment can tell whether it is complete;
- after one that the workers stop with there is no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from statestore.checkpoint.snapshot import CheckpointInfo
from statestore.clock import Clock
from statestore.config import CheckpointingConfig
from statestore.errors import StateStoreError, UnavailableError
from statestore_runtime.jobmanager.coordinator import CheckpointCoordinator
from statestore_runtime.jobmanager.events import Committed, Deployment, RequestRefusedError, TakeCheckpoint
from statestore_runtime.jobmanager.failures import DeclinedError
from statestore_runtime.jobmanager.requests import Requests
from statestore_runtime.jobmanager.workers import Workers
from statestore_runtime.messages import CheckpointCompleted, CheckpointFailed, Message
from statestore_runtime.protocol import Abort, Acknowledged, Complete, Declined, Trigger
from statestore_runtime.task.meta import merged_meta

logger = logging.getLogger("statestore_runtime.jobmanager")

RETRY_SECONDS = 1.0
"""From a failed checkpoint to the next, where the job waits for one."""


@dataclass(slots=True)
class Round:
    """One checkpoint in the making."""

    number: int
    begun: float
    final: bool
    stop: bool
    acknowledged: dict[int, Acknowledged] = field(default_factory=dict)
    is_committing: bool = False
    replies: list[TakeCheckpoint] = field(default_factory=list)


class Rounds:
    """Makes checkpoints: by the clock, because somebody asks for one, and those that the job can't go on without.

    Parameters
    ----------
    number
        Of the deployment.
    workers, deployment
        Who is told, and who carries out what is decided.
    requests
        Who waits for a checkpoint.
    emit
        Called with what is worth showing.
    on_complete
        Called when a checkpoint is complete and everybody has been told.
    on_failed
        Called when one has failed, with the error that the deployment is to fail with, if it is.

    Attributes
    ----------
    insisted : Trigger or None
        The checkpoint that is made again and again until it is complete.
    is_regular : bool
        Whether checkpoints are also made by the clock and for those who ask.
    is_over : bool
        Whether the last one is complete.
    """

    def __init__(
        self,
        clock: Clock,
        settings: CheckpointingConfig,
        *,
        number: int,
        workers: Workers,
        deployment: Deployment,
        requests: Requests,
        emit: Callable[[Message], object],
        on_complete: Callable[[Round, CheckpointInfo], None],
        on_failed: Callable[[StateStoreError | None], None],
    ):
        self._clock, self._settings, self._number, self._workers = clock, settings, number, workers
        self._deployment, self._requests, self._emit = deployment, requests, emit
        self._on_complete, self._on_failed = on_complete, on_failed
        self._coordinator = CheckpointCoordinator(
            clock,
            interval_seconds=settings.interval,
            min_pause_seconds=settings.min_pause,
            timeout_seconds=settings.timeout,
            tolerable_failed=settings.tolerable_failed,
        )
        self.insisted: Trigger | None = None
        self.is_regular = self.is_over = False
        self._not_before = 0.0  # the next one that is insisted on
        self._is_wanted = False
        self._pending: Round | None = None
        self._count = 0

    # When

    def insist(self, trigger: Trigger) -> None:
        """Make a checkpoint, again and again until one is complete or too many have failed."""
        self.insisted, self._not_before = trigger, self._clock.monotonic()

    def want(self) -> None:
        """Make one as soon as the pause allows."""
        self._is_wanted = True

    def tick(self) -> None:
        """Begin what is due, give up what is overdue."""
        if self.is_over:
            return
        if self._pending is not None:
            self._check_time(self._pending)
        elif self.insisted is not None:
            if self._seconds_to_insisted() == 0:
                self._begin(self.insisted)
        elif self.is_regular and self._is_due():
            self._begin(Trigger(checkpoint=0))

    def seconds_left(self) -> float | None:
        """Until one is to be begun, or looked at; None when that depends on others."""
        if self.is_over:
            return None
        if self._pending is not None:
            return self._coordinator.seconds_to_due()
        if self.insisted is not None:
            return self._seconds_to_insisted()
        if not self.is_regular:
            return None
        return self._coordinator.seconds_to_pause() if self._is_asked_for else self._coordinator.seconds_to_due()

    def _seconds_to_insisted(self) -> float:
        return max(0.0, self._not_before - self._clock.monotonic(), self._coordinator.seconds_to_pause())

    @property
    def _is_asked_for(self) -> bool:
        return self._is_wanted or self._requests.want_checkpoint

    def _is_due(self) -> bool:
        return self._coordinator.is_due() or (self._is_asked_for and self._coordinator.seconds_to_pause() == 0)

    def _begin(self, trigger: Trigger) -> None:
        self._count += 1
        self._is_wanted = False
        self._coordinator.begin()
        current = self._pending = Round(self._count, self._clock.monotonic(), trigger.final, trigger.stop)
        current.replies = self._requests.take_checkpoints()
        base = any(request.base for request in current.replies)
        self._workers.send_all(replace(trigger, checkpoint=self._count, base=base))

    def _check_time(self, current: Round) -> None:
        if not current.is_committing:
            if self._coordinator.is_overdue():
                missing = sorted(set(range(self._workers.parallelism)) - current.acknowledged.keys())
                reason = (
                    f"it took longer than checkpointing.timeout ({self._settings.timeout:g} s): "
                    f"worker {' and '.join(map(str, missing))} has not acknowledged it"
                )
                self._fail(UnavailableError("checkpoint", self._workers.checkpoints, reason))
        elif self._coordinator.is_stuck():
            reason = "writing its manifest takes for ever, so that only a new start can tell whether it is complete"
            self._on_failed(UnavailableError("checkpoint", self._workers.checkpoints, reason))

    # What becomes of it

    def acknowledge(self, worker: int, report: Acknowledged | Declined) -> None:
        """A worker has done its part of a checkpoint, or could not."""
        current = self._pending
        if current is None or report.checkpoint != current.number or current.is_committing:
            logger.debug("checkpoint %d is over: what worker %d says of it is passed over", report.checkpoint, worker)
            return
        if isinstance(report, Declined):
            self._fail(report.cause or DeclinedError(report))
            return
        current.acknowledged[worker] = report
        if len(current.acknowledged) == self._workers.parallelism:
            current.is_committing = True
            reports = [current.acknowledged[worker] for worker in range(self._workers.parallelism)]
            self._deployment.commit(
                self._number,
                current.number,
                [each.manifest for each in reports],
                merged_meta([each.meta for each in reports]),
                self._clock.monotonic() - current.begun,
            )

    def committed(self, event: Committed) -> None:
        """A checkpoint's manifest is written, or could not be."""
        current = self._pending
        if current is None or event.checkpoint != current.number:
            return
        if event.info is None:
            assert event.error is not None
            self._fail(event.error)
            return
        self._pending, info = None, event.info
        self._coordinator.complete()
        insisted, self.insisted = self.insisted, None
        if insisted is not None and (insisted.final, insisted.stop) != (current.final, current.stop):
            self.insist(insisted)  # this one was begun before
        else:
            self.is_over = current.stop or current.final
        self._workers.send_all(
            Complete(checkpoint=current.number, manifest=info.manifest, path=info.path, seconds=info.seconds)
        )
        self._emit(self._completed_message(current, info))
        for request in current.replies:
            if request.savepoint_dir is None:
                request.reply(info.path)
            else:
                self._deployment.copy(self._number, info.manifest, request.savepoint_dir, request.reply)
        self._on_complete(current, info)

    def _completed_message(self, current: Round, info: CheckpointInfo) -> CheckpointCompleted:
        return CheckpointCompleted(
            checkpoint=info.checkpoint_id,
            epoch=info.epoch,
            seconds=info.seconds,
            uploaded_bytes=info.uploaded_bytes,
            total_bytes=info.total_bytes,
            tasks=[current.acknowledged[worker].phases for worker in range(self._workers.parallelism)],
            commit_seconds=max(0.0, self._clock.monotonic() - current.begun - info.seconds),
        )

    def _fail(self, error: BaseException) -> None:
        current, self._pending = self._pending, None
        assert current is not None
        self._workers.send_all(Abort(checkpoint=current.number, reason=str(error)))
        self._emit(CheckpointFailed(checkpoint=current.number, reason=str(error)))
        for request in current.replies:
            request.reply(error)
        self._not_before = self._clock.monotonic() + RETRY_SECONDS
        too_many = None
        try:
            self._coordinator.fail(error)
        except StateStoreError as raised:
            too_many = raised
        self._on_failed(too_many)

    def give_up(self, reason: str) -> None:
        """The deployment ends: who waits for the pending checkpoint hears the reason."""
        current, self._pending = self._pending, None
        if current is not None:
            for request in current.replies:
                request.reply(RequestRefusedError(reason))
