"""Restart strategies: whether a job that failed runs again, and when."""

from __future__ import annotations

import pytest

from statestore.config import RestartConfig, load_config
from statestore.testing.clock import FakeClock
from statestore_runtime.jobmanager.restart import (
    ExponentialDelay,
    FailureRate,
    FixedDelay,
    NoRestart,
    restart_strategy,
)


def strategy_of(clock=None, chance=0.5, **settings):
    return restart_strategy(RestartConfig(**settings), clock or FakeClock(), lambda: chance)


def test_no_restart():
    strategy = NoRestart()
    assert strategy.next_delay() is None
    strategy.succeeded()
    assert strategy.next_delay() is None


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_fixed_delay_counts_the_failures_since_the_last_checkpoint(attempts):
    strategy = FixedDelay(attempts, 2.5)
    for _ in range(3):
        assert [strategy.next_delay() for _ in range(attempts)] == [2.5] * attempts
        strategy.succeeded()
    assert [strategy.next_delay() for _ in range(attempts)] == [2.5] * attempts
    assert [strategy.next_delay(), strategy.next_delay()] == [None, None]


def test_failure_rate_counts_the_failures_of_an_interval():
    clock = FakeClock()
    strategy = strategy_of(clock, type="failure-rate", max_failures_per_interval=2, failure_rate_interval=60, delay=3)
    assert [strategy.next_delay(), strategy.next_delay()] == [3, 3]
    clock.advance(60)
    assert [strategy.next_delay(), strategy.next_delay()] == [3, 3]
    clock.advance(59)
    strategy.succeeded()
    assert strategy.next_delay() is None


def test_exponential_delay_grows_until_the_job_has_run_well():
    clock = FakeClock()
    strategy = strategy_of(clock, type="exponential-delay", max_backoff=4.0)
    assert [strategy.next_delay() for _ in range(6)] == [1.0, 1.5, 2.25, 3.375, 4.0, 4.0]
    clock.advance(3600 + 3.9)  # the last restart came 4 s after its failure
    assert strategy.next_delay() == 4.0
    clock.advance(3600 + 4.01)
    assert [strategy.next_delay(), strategy.next_delay()] == [1.0, 1.5]


def test_exponential_delay_by_chance_and_with_an_end():
    strategy = strategy_of(type="exponential-delay", attempts_before_reset_backoff=2, chance=1.0)
    assert [strategy.next_delay() for _ in range(4)] == [pytest.approx(1.1), pytest.approx(1.65), None, None]
    assert strategy_of(type="exponential-delay", chance=0.0).next_delay() == pytest.approx(0.9)


def test_flinks_names_and_defaults():
    assert isinstance(strategy_of(), ExponentialDelay)
    assert isinstance(strategy_of(type="none"), NoRestart)
    assert isinstance(strategy_of(type="failure-rate"), FailureRate)
    strategy = strategy_of(type="fixed-delay", attempts=1, delay=0.5)
    assert [strategy.next_delay(), strategy.next_delay()] == [0.5, None]
    names = {
        "restart-strategy.type": "failure-rate",
        "restart-strategy.failure-rate.max-failures-per-interval": "7",
        "restart-strategy.failure-rate.failure-rate-interval": "2min",
        "restart-strategy.exponential-delay.max-backoff": "3min",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": "9",
    }
    found = load_config(overrides=[f"{key}={value}" for key, value in names.items()]).restart
    assert (found.type, found.max_failures_per_interval, found.failure_rate_interval) == ("failure-rate", 7, 120)
    assert (found.max_backoff, found.attempts_before_reset_backoff) == (180, 9)
