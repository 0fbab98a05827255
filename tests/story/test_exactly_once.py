"""Every event counts exactly once, whatever happens in between: on all backends, with one worker and with several."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from statestore_runtime.testing import CHECKPOINT, CRASH, EOF, RESCALE, RESTART
from tests.conftest import seeds
from tests.story import jobs
from tests.story.jobs import check_two_stages, events_of, pairs

SCRIPTS = [
    [1, 2, CRASH, 3],
    [CRASH, 1, 2, 3],
    [1, 2, 3, CRASH],
    [1, 2, CHECKPOINT, CRASH, 3],
    [1, 2, CHECKPOINT, 3, CRASH, 4, 5, CRASH, 6],
    [1, CHECKPOINT, 2, RESTART, 3, CHECKPOINT, 4, 8, 15, RESTART, 22],
    [1, 8, RESCALE(2), 15, 2, 9, CRASH, 3, 10, RESCALE(3), 4, CRASH, 11],
    [1, 2, 3, EOF, 4, 5, CRASH, 6, EOF, EOF, 7],
    [*range(20), CHECKPOINT, *range(20, 40), CRASH, *range(40, 60), CHECKPOINT, CRASH, *range(60, 80)],
    [*range(20), CHECKPOINT, *range(20), RESCALE(4), *range(20), CRASH, *range(20), RESCALE(1), CRASH, *range(20)],
    [*[5] * 30, CHECKPOINT, *[5] * 30, CRASH, *[5] * 30],
    [],
]


@pytest.mark.parametrize(("backend", "parallelism", "script"), pairs(SCRIPTS))
def test_two_stages(redis_url, backend, parallelism, script):
    harness = jobs.harness(jobs.two_stages, redis_url, backend, parallelism, batch_size=3)
    check_two_stages(harness.run(script), events_of(script))
    assert harness.finished.events == len(events_of(script))


@pytest.mark.parametrize(("backend", "parallelism", "script"), pairs(SCRIPTS[::-1]))
def test_sources_of_several_parts(redis_url, backend, parallelism, script):
    harness = jobs.harness(jobs.two_stages, redis_url, backend, parallelism, splits=5, batch_size=2)
    check_two_stages(harness.run(script), events_of(script), in_order=False)


def random_script(seed, make):
    rng = random.Random(seed)
    markers = [CHECKPOINT, CHECKPOINT, CRASH, RESTART, RESCALE(1), RESCALE(2), RESCALE(3), EOF]
    script = []
    for number in range(60):
        script.append(make(rng, number))
        if rng.random() < 0.12:
            script.append(rng.choice(markers))
    return script


@pytest.mark.parametrize(("backend", "parallelism", "seed"), pairs(seeds(8)))
def test_at_random(monkeypatch, redis_url, backend, parallelism, seed):
    jobs.UnevenWorkers(monkeypatch, seed)
    script = random_script(seed, lambda rng, number: rng.randrange(100))
    settings = {"restart.attempts": 30, "job.on-error": ("fail", "skip")[seed // 4 % 2]}
    options = {"splits": 1 + seed % 2, "batch_size": 1 + seed % 5, "settings": settings}
    harness = jobs.harness(jobs.two_stages, redis_url, backend, parallelism, **options)
    check_two_stages(harness.run(script), events_of(script), in_order=seed % 2 == 0)


def timed_event(rng, number):
    return rng.choice(["ann", "bob", "cid"]), max(0, number + rng.randrange(-2, 3)), rng.randrange(20)


@pytest.mark.parametrize(("backend", "parallelism", "seed"), pairs(seeds(8)))
def test_windows_and_timers(monkeypatch, redis_url, backend, parallelism, seed):
    """The end of the source would let all windows fire: so it ends once."""
    jobs.UnevenWorkers(monkeypatch, seed)
    script = [element for element in random_script(seed, timed_event) if element is not EOF]
    settings = {"restart.attempts": 30, "job.on-error": ("fail", "skip")[seed // 4 % 2]}
    harness = jobs.harness(jobs.windows, redis_url, backend, parallelism, settings=settings)
    assert sorted(harness.run(script)) == sorted(jobs.alarms(events_of(script)))


@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_at_least_once_loses_nothing(monkeypatch, parallelism, seed):
    """Counts and totals may be too high after a crash, never too low."""
    jobs.UnevenWorkers(monkeypatch, seed)
    script = random_script(seed, lambda rng, number: number)
    settings = {"checkpointing.mode": "at-least-once", "restart.attempts": 30}
    found = jobs.harness(jobs.two_stages, parallelism=parallelism, splits=2, settings=settings).run(script)
    events = events_of(script)
    assert {row[1] for row in found if isinstance(row[0], str)} == set(events)
    most = Counter()
    for row in found:
        most[row[0]] = max(most[row[0]], row[1] if isinstance(row[0], int) else row[2])
    for name, count in Counter(map(jobs.user_of, events)).items():
        assert most[name] >= count
    for group, count in Counter(jobs.group_of((jobs.user_of(event),)) for event in events).items():
        assert most[group] >= count


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_events_that_are_dropped_are_counted_once(parallelism, policy):
    """Of ann's two are late, of bob's one; what is skipped is not counted even when it comes with a late one."""
    script = [("ann", 20, 1), ("bob", 30, 2), ("ann", 1, 3), CHECKPOINT, ("bob", 2, 4), CRASH, ("ann", 3, 5)]
    script += [] if policy == "fail" else [("bob", 40, "no number"), CHECKPOINT, CRASH]
    settings = {"job.on-error": policy}
    harness = jobs.harness(jobs.windows, parallelism=parallelism, batch_size=2, settings=settings)
    found = harness.run([*script, RESCALE(3)])
    assert {row[2] for row in found if row[0] == "sum"} == {1, 2}
    assert (harness.finished.late_events, harness.finished.skipped_events) == (3, int(policy == "skip"))
