"""How fast a worker may read a source."""

from __future__ import annotations

from statestore.clock import Clock
from statestore.errors import UsageError


class RateLimit:
    """A token bucket. Events are taken as they come, a batch at a time; what is too much is a debt, paid by waiting.

    In any span of `s` seconds at most `rate * (s + burst_seconds)` events are read, and what the last batch of them had too many.

    Parameters
    ----------
    rate
        Events per second.
    clock
        Its monotonic time is used.
    burst_seconds
        How much unused time counts, so that a pause of the stream can be made good for. The bucket is empty at the beginning.

    Raises
    ------
    UsageError
        The rate is not positive.
    """

    def __init__(self, rate: float, clock: Clock, burst_seconds: float = 0.1):
        if not rate > 0:
            raise UsageError(f"rate_limit is {rate}, it must be more than 0")
        self._rate, self._clock, self._most = rate, clock, rate * burst_seconds
        self._tokens = 0.0
        self._filled_at = clock.monotonic()

    def take(self, count: int) -> float:
        """Note that `count` events were read. Returns the seconds to wait before the next are."""
        self._fill()
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)

    def wait_seconds(self) -> float:
        """Seconds until more may be read; 0 when they may now."""
        self._fill()
        return max(0.0, -self._tokens / self._rate)

    def _fill(self) -> None:
        now = self._clock.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
