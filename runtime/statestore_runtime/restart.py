"""Restart strategies: whether and when a job that has failed runs again. Names and meaning as in Flink."""

from __future__ import annotations

from typing import Protocol

from statestore.config import RestartConfig


class RestartStrategy(Protocol):
    """Decides after each failure."""

    def next_delay(self) -> float | None:
        """Seconds to wait before the next start, None for no start any more."""
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


def restart_strategy(config: RestartConfig) -> RestartStrategy:
    """The strategy that the configuration asks for."""
    return NoRestart() if config.type == "none" else FixedDelay(config.attempts, config.delay)
