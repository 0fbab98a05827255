"""Windows, joins, timers and broadcast state over several workers, and over another number of them after a restore."""

from __future__ import annotations

import pytest

from statestore import load_config, open_store, split_key_groups
from statestore.checkpoint.parts import complete_parts
from statestore.checkpoint.storage import CheckpointStorage
from statestore.io import open_storage
from statestore.keys import key_group_of
from statestore_runtime import KeyedBroadcastProcessFunction, KeyedProcessFunction, Session, Tumbling
from statestore_runtime.operators import ExchangeOperator
from tests.conftest import BACKENDS
from tests.runtime.driving import Driver, timed_job

MAX_PARALLELISM = 6
KEYS = [f"key-{n}" for n in range(20)]
EVENT = tuple[str, int]


class Workers:
    """Workers of a job in one process: what one sends arrives at once where it belongs. Events come in at the first."""

    def __init__(self, places, backend, parallelism, restore, job):
        url = f"{places.folder}/checkpoints"
        self.checkpoints = CheckpointStorage(open_storage(url), "job")
        settings = [f"checkpointing.dir={url}", f"state.max-parallelism={MAX_PARALLELISM}"]
        config = load_config(overrides=[*places.overrides(backend), *settings])
        attempt = self.checkpoints.claim_attempt()
        self.ranges = split_key_groups(parallelism, MAX_PARALLELISM)
        self.workers = [
            _Worker(
                job, open_store(config, "job", restore=restore, key_groups=own, attempt=attempt), number, parallelism
            )
            for number, own in enumerate(self.ranges)
        ]
        for uid, operator in self.workers[0].operators.items():
            if isinstance(operator, ExchangeOperator):
                self._connect(operator, [worker[uid] for worker in self.workers])

    def _connect(self, sender, receivers):
        def send(keys, batch, times):
            for own, receiver in zip(self.ranges, receivers, strict=True):
                places = range(len(batch))
                if sender.kind == "hash":
                    encoded = map(sender.key_codec.encode, keys)
                    places = [n for n, key in enumerate(encoded) if key_group_of(key, MAX_PARALLELISM) in own]
                kept = [[values[n] for n in places] if values else None for values in (keys, batch, times)]
                receiver.deliver(*kept)

        def send_watermark(watermark):
            for receiver in receivers:
                receiver.deliver_watermark(watermark)

        sender.send, sender.send_watermark = send, send_watermark

    def __getattr__(self, name):
        return getattr(self.workers[0], name)

    def checkpoint(self):
        snapshots = [
            {uid: operator.snapshot() for uid, operator in worker.operators.items()} for worker in self.workers
        ]
        pending = [worker.store.begin_checkpoint({"operators": snapshots}) for worker in self.workers]
        info = complete_parts(self.checkpoints, [part.upload() for part in pending], {"operators": snapshots})
        for worker in self.workers:
            worker.store.complete(info)

    def release(self):
        for worker in self.workers:
            worker.store.release()


class _Worker(Driver):
    def __init__(self, job, store, subtask, parallelism):
        super().__init__(job, store, None, subtask, parallelism)

    def restore(self):
        if self.store.restored is not None:
            snapshots = self.store.restored.meta["operators"]
            for uid, operator in self.operators.items():
                states = [of_worker[uid] for of_worker in snapshots if of_worker[uid] is not None]
                if states:
                    operator.restore(states)


class Silence(KeyedProcessFunction):
    def process(self, event, ctx):
        ctx.timers.register_event_time_timer(ctx.timestamp + 10)

    def on_timer(self, timestamp, ctx):
        yield "silence", ctx.key, timestamp


class Known(KeyedBroadcastProcessFunction):
    def process(self, event, ctx):
        yield "known", event, ctx.state.get("a")

    def process_broadcast(self, event, ctx):
        ctx.state[event] = True


def everything(made):
    """A job with one of each."""
    job, events, others, rules = timed_job("events", "others", "rules")
    keyed = events.key_by(lambda event: event[0], str)
    for windows in (Tumbling("1s"), Session("1s")):
        keyed.window(windows).count().map(lambda r: ("window", r.key, r.start, r.end, r.value)).sink(made.append)
    other = others.key_by(lambda event: event[0], str)
    keyed.interval_join(other, "-1s", "1s", (EVENT, EVENT)).map(lambda a, b: ("pair", a, b)).sink(made.append)
    keyed.process(Silence()).sink(made.append)
    keyed.connect(rules.broadcast("rules", str, bool)).process(Known()).sink(made.append)
    return job


def push(driver, times, uid):
    for time in times:
        driver.push([(key, time) for key in KEYS], [time] * len(KEYS), uid)


def story(open_workers):
    """What comes in before and after a restore."""
    before = open_workers("none", 0)
    push(before, [0, 700], "events")
    push(before, [500], "others")
    before.push(["a"], uid="rules")
    before.watermark(300)
    before.checkpoint()
    push(before, [900], "events")
    after = open_workers("latest", 1)
    push(after, [200, 1500], "events")
    push(after, [1600], "others")
    after.watermark(999)
    after.end()
    after.release()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parallelisms", [(1, 3), (3, 2), (2, 1)], ids=str)
def test_another_number_of_workers_makes_no_difference(places, tmp_path, backend, parallelisms):
    made, expected = [], []

    def opener(into, backend, parallelisms, folder):
        job, opened = everything(into), []

        def open_workers(restore, step):
            while opened:
                opened.pop().release()
                into.clear()
            places.folder = tmp_path / folder
            opened.append(Workers(places, backend, parallelisms[step], restore, job))
            return opened[0]

        return open_workers

    story(opener(expected, "memory", (1, 1), "one"))
    story(opener(made, backend, parallelisms, "several"))
    assert len(expected) > 8 * len(KEYS)
    assert sorted(map(repr, made)) == sorted(map(repr, expected))
    assert {kind for kind, *_ in made} == {"window", "pair", "silence", "known"}
