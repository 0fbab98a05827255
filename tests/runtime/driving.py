"""Drives the operators of a job by hand, over a store: what comes in, how far time has come, where it crashes."""

from __future__ import annotations

from statestore.testing.clock import FakeClock
from statestore_runtime import CollectionSource, Job
from statestore_runtime.operators import SourceOperator, TaskContext
from statestore_runtime.watermarks import MAX_WATERMARK

NOTHING = CollectionSource([])
"""What stands for a source: the tests push its events."""


def timed_job(*uids):
    """A job and its sources, whose events have the times that tests push with them."""
    job = Job("job")
    streams = [job.source(NOTHING, uid) for uid in uids or ("in",)]
    for node in job.nodes:
        node.is_timed = True
    return job, *streams


class Driver:
    """The operators of one worker, on an opened store."""

    def __init__(self, job, store, clock=None, subtask=0, parallelism=1):
        self.store, self.clock = store, clock or FakeClock(1000.0)
        self.operators = {operator.uid: operator for operator in job.build()}
        self.context = TaskContext(store, self.clock, job.name, store.attempt, subtask, parallelism)
        for operator in self.operators.values():
            operator.open(self.context)
        self.restore()

    def __getitem__(self, uid):
        return self.operators[uid]

    @property
    def sources(self):
        return [operator for operator in self.operators.values() if isinstance(operator, SourceOperator)]

    def push(self, batch, times=None, uid=None):
        """Push to a source, by default the first."""
        (self[uid] if uid else self.sources[0]).push(list(batch), None if times is None else list(times))

    def watermark(self, watermark, uid=None):
        """Event time of a source has come that far, by default of all."""
        for source in [self[uid]] if uid else self.sources:
            source.on_watermark(watermark)

    def end(self, uid=None):
        """A source has ended, by default all."""
        self.watermark(MAX_WATERMARK, uid)

    def advance(self, seconds):
        """Let processing time pass."""
        self.clock.advance(seconds)
        self.look_at_clock()

    def look_at_clock(self):
        for operator in self.operators.values():
            operator.on_processing_time(int(self.clock.time() * 1000))

    def checkpoint(self):
        snapshots = {uid: operator.snapshot() for uid, operator in self.operators.items()}
        info = self.store.checkpoint({uid: state for uid, state in snapshots.items() if state is not None})
        for operator in self.operators.values():
            operator.on_checkpoint_complete(info.checkpoint_id)
        return info

    def restore(self):
        restored = self.store.restored
        if restored is not None:
            for uid, state in restored.meta.items():
                self[uid].restore([state])
            for operator in self.operators.values():
                operator.on_restore(restored.checkpoint_id)

    def close(self):
        for operator in self.operators.values():
            operator.close()


def opener(stores, backend="memory"):
    """Opens a job's store again and again, each time letting go of the one before as a dead process does."""
    opened = []

    def open_store(restore="none", *settings):
        while opened:
            stores.crash(opened.pop())
        opened.append(stores.open(backend, restore, *settings))
        return opened[0]

    return open_store
