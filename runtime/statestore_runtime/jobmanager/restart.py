"""Restart strategies: whether and when a job that has failed runs again. Names, meaning and defaults as in Flink."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from statestore.clock import Clock
from statestore.config import RestartConfig


class RestartStrategy(Protocol):
    """Decides after each failure."""

    def next_delay(self) -> float | None:
        """Seconds to wait before the next start, None for no start any more. Called once for each failure."""
        ...

    def succeeded(self) -> None:
        """A checkpoint has been completed: the job gets on."""
        ...


class NoRestart:
    """The first failure is the last."""

    def next_delay(self) -> float | None:
        """None."""
        return None

    def succeeded(self) -> None:
        """Nothing changes."""


class FixedDelay:
    """A number of restarts without a checkpoint in between, each after the same delay."""

    def __init__(self, attempts: int, delay_seconds: float):
        self._attempts, self._delay = attempts, delay_seconds
        self._used = 0

    def next_delay(self) -> float | None:
        """The delay, as long as there are attempts."""
        self._used += 1
        return self._delay if self._used <= self._attempts else None

    def succeeded(self) -> None:
        """Count from the beginning again."""
        self._used = 0


class FailureRate:
    """Restarts as long as no more than a number of failures fall into an interval."""

    def __init__(self, clock: Clock, max_failures: int, interval_seconds: float, delay_seconds: float):
        self._clock, self._max, self._interval, self._delay = clock, max_failures, interval_seconds, delay_seconds
        self._failures: deque[float] = deque()

    def next_delay(self) -> float | None:
        """The delay, unless this is one failure too many."""
        now = self._clock.monotonic()
        self._failures.append(now)
        while self._failures[0] <= now - self._interval:
            self._failures.popleft()
        return self._delay if len(self._failures) <= self._max else None

    def succeeded(self) -> None:
        """Nothing changes: the rate is what counts."""


class ExponentialDelay:
    """Restarts for ever, or for a number of times, each after a longer delay, until the job has run well for a while.

    Parameters
    ----------
    initial_seconds, multiplier, max_seconds
        The first delay, what each is of the one before, and the longest.
    reset_seconds
        A job that has run for as long as this since its last restart begins with the first delay again.
    jitter
        Share of a delay by which it is made longer or shorter by chance, so that jobs which failed together don't start together.
    attempts
        Restarts before a reset; None: for ever.
    chance
        Gives numbers from 0 to 1.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        initial_seconds: float,
        multiplier: float,
        max_seconds: float,
        reset_seconds: float,
        jitter: float,
        attempts: int | None,
        chance: Callable[[], float],
    ):
        self._clock, self._initial, self._multiplier, self._max = clock, initial_seconds, multiplier, max_seconds
        self._reset, self._jitter, self._attempts, self._chance = reset_seconds, jitter, attempts, chance
        self._next = initial_seconds
        self._used = 0
        self._restarted: float | None = None

    def next_delay(self) -> float | None:
        """The delay, longer than the one before unless that is long ago."""
        now = self._clock.monotonic()
        if self._restarted is not None and now - self._restarted >= self._reset:
            self._next, self._used = self._initial, 0
        self._used += 1
        if self._attempts is not None and self._used > self._attempts:
            return None
        delay = self._next * (1 + self._jitter * (2 * self._chance() - 1))
        self._next = min(self._next * self._multiplier, self._max)
        self._restarted = now + delay
        return delay

    def succeeded(self) -> None:
        """Nothing changes: only time does it."""


def restart_strategy(config: RestartConfig, clock: Clock, chance: Callable[[], float]) -> RestartStrategy:
    """The strategy that the configuration asks for."""
    match config.type:
        case "none":
            return NoRestart()
        case "fixed-delay":
            return FixedDelay(config.attempts, config.delay)
        case "failure-rate":
            return FailureRate(clock, config.max_failures_per_interval, config.failure_rate_interval, config.delay)
        case "exponential-delay":
            return ExponentialDelay(
                clock,
                initial_seconds=config.initial_backoff,
                multiplier=config.backoff_multiplier,
                max_seconds=config.max_backoff,
                reset_seconds=config.reset_backoff_threshold,
                jitter=config.jitter_factor,
                attempts=config.attempts_before_reset_backoff,
                chance=chance,
            )
