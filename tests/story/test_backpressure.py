"""A worker that is slow: the others wait for it, and what is on its way stays within the credits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from statestore_runtime import Job
from statestore_runtime.task import exchange
from statestore_runtime.task.exchange import ExchangeInput, ExchangeOutput
from statestore_runtime.task.network import BATCH
from statestore_runtime.task.task import Task
from statestore_runtime.testing import CHECKPOINT, CRASH
from tests.story import jobs

ROWS = 50
EVENTS = 3000


def array(number):
    return np.full(ROWS, number)


@pytest.mark.parametrize("mode", ["exactly-once", "at-least-once"])
def test_a_slow_worker(monkeypatch, mode):
    """With small batches, so that there are many; each event is an array."""
    most, steps, starved = [0], Counter(), [0]
    arrive, step, has_room = ExchangeInput.arrive, Task.step, ExchangeOutput.has_room.fget

    def counting_arrive(receiving, worker, frame):
        arrive(receiving, worker, frame)
        waiting = sum(one[0] == BATCH for one in receiving._queues[worker])
        most[0] = max(most[0], waiting)

    def slow_step(task):
        steps[task.subtask] += 1
        return True if task.subtask == 1 and steps[1] % 20 else step(task)

    def counting_room(output):
        starved[0] += not has_room(output)
        return has_room(output)

    monkeypatch.setattr(exchange, "BATCH_EVENTS", 4)
    monkeypatch.setattr(ExchangeInput, "arrive", counting_arrive)
    monkeypatch.setattr(ExchangeOutput, "has_room", property(counting_room))
    monkeypatch.setattr(Task, "step", slow_step)

    def build(source, sink):
        job = Job("story")
        rows = job.source(source).map(array)
        first = rows.key_by(lambda row: int(row[0]) % 50, int).reduce(lambda one, other: other, np.ndarray)
        second = first.key_by(lambda row: int(row[0]) % 7, int).reduce(lambda one, other: other, np.ndarray)
        second.map(lambda row: (int(row[0]), len(row))).sink(sink)
        return job

    script = [*range(EVENTS // 2), CHECKPOINT, *range(EVENTS // 2, EVENTS - 100), CRASH, *range(EVENTS - 100, EVENTS)]
    harness = jobs.harness(build, parallelism=2, batch_size=8, settings={"checkpointing.mode": mode})
    found = harness.run(script)
    assert 1 < most[0] <= exchange.CREDITS
    assert starved[0] > 0
    if mode == "exactly-once":
        assert sorted(found) == [(number, ROWS) for number in range(EVENTS)]
    else:
        assert set(found) == {(number, ROWS) for number in range(EVENTS)}
