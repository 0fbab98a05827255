"""Which workers have been silent for too long."""

from __future__ import annotations

from statestore.clock import Clock


class HeartbeatMonitor:
    """When each worker was heard last.

    Parameters
    ----------
    timeout_seconds
        After which a silent worker counts as dead.
    """

    def __init__(self, clock: Clock, timeout_seconds: float):
        self._clock, self.timeout_seconds = clock, timeout_seconds
        self._heard: dict[int, float] = {}

    def watch(self, workers: int) -> None:
        """Expect to hear of workers 0 to `workers` - 1, and of no others, from now on."""
        now = self._clock.monotonic()
        self._heard = dict.fromkeys(range(workers), now)

    def heard(self, worker: int) -> None:
        """A worker has said something, no matter what."""
        if worker in self._heard:
            self._heard[worker] = self._clock.monotonic()

    def ended(self, worker: int) -> None:
        """Expect to hear no more of a worker."""
        self._heard.pop(worker, None)

    def forget(self) -> None:
        """Expect to hear of nobody."""
        self._heard.clear()

    def silent(self) -> int | None:
        """A worker that has been silent for longer than the time-out, None when there is none."""
        latest = self._clock.monotonic() - self.timeout_seconds
        return next((worker for worker, heard in self._heard.items() if heard <= latest), None)

    def seconds_left(self) -> float | None:
        """Until the first one will have been silent for too long; None when nobody is watched."""
        if not self._heard:
            return None
        return max(0.0, min(self._heard.values()) + self.timeout_seconds - self._clock.monotonic())
