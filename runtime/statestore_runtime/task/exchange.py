"""The two ends of an edge between stages: one spreads batches over the workers, the other aligns what comes from them.

Invariants:
- at most `CREDITS` batches of an edge are on their way from one worker to another, or wait there: whoever has none left stops to read;
- watermarks and barriers need no credit, and pass no batch;
- with exactly-once nothing that follows a barrier is processed until the worker has taken its part of that checkpoint.
"""

from __future__ import annotations

from collections import deque
from itertools import filterfalse
from typing import Any

from statestore.keys import key_group_of
from statestore_runtime.operators.base import Operator, Times
from statestore_runtime.operators.exchange import ExchangeOperator, KeyByOperator, Keys
from statestore_runtime.task.network import BARRIER, BATCH, CREDIT, IDLE, WATERMARK, Frame, Network
from statestore_runtime.task.sourcing import Process
from statestore_runtime.watermarks import MAX_WATERMARK

CREDITS = 16
BATCH_EVENTS = 256
"""Fewer events for a worker wait for more, as long as there is something else to do."""

CACHED_OWNERS = 1 << 16


class ExchangeOutput:
    """The sending end of an edge.

    Parameters
    ----------
    operator
        Whose `send`, `send_watermark` and `send_idle` it becomes.
    edge
        Number of the edge, the same on all workers.
    owners
        Worker of each key group.
    """

    def __init__(self, operator: ExchangeOperator, edge: int, network: Network, owners: list[int]):
        self.operator, self._edge, self._network, self._owners = operator, edge, network, owners
        self.barrier = 0  # the last that was sent
        self._credits = [CREDITS] * network.parallelism
        self._waiting: list[tuple[list[Any], list[Any], list[int]]] = [([], [], []) for _ in range(network.parallelism)]
        self._is_timed = False  # what waits has times
        self._owner_of: dict[Any, int] = {}
        operator.send, operator.send_watermark, operator.send_idle = self.send, self.send_watermark, self.send_idle

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent to everybody."""
        return min(self._credits) > 0

    def credit(self, worker: int, batches: int) -> None:
        """A worker has processed so many batches."""
        self._credits[worker] += batches

    def send(self, keys: Keys, batch: list[Any], times: Times = None) -> None:
        """Spread a batch over the workers, by their keys or to all of them."""
        if keys is None:
            for worker in range(self._network.parallelism):
                self._send_now(worker, None, batch, times)
            return
        if self._is_timed is not (times is not None):  # a frame has times for all its events, or for none
            self.flush()
            self._is_timed = times is not None
        waiting = self._waiting
        for index, owner in enumerate(self._owners_of(keys)):
            keys_there, events, times_there = waiting[owner]
            keys_there.append(keys[index])
            events.append(batch[index])
            if times is not None:
                times_there.append(times[index])
        for worker, (_, events, _) in enumerate(waiting):
            if len(events) >= BATCH_EVENTS:
                self._flush(worker)

    def check(self, keys: Keys) -> None:
        """Raise UsageError when a key is not of its type."""
        if keys is not None:
            assert isinstance(self.operator, KeyByOperator), "only key_by has keys"
            self.operator.key_codec.check_all(keys)

    def _owners_of(self, keys: list[Any]) -> list[int]:
        assert isinstance(self.operator, KeyByOperator), "only key_by has keys"
        codec, known = self.operator.key_codec, self._owner_of
        codec.check_all(keys)  # before they are looked up: 1 and True are one key there
        unknown = set(filterfalse(known.__contains__, keys))  # not `-`, which goes through all that is known
        if unknown:
            if len(known) > CACHED_OWNERS:
                known.clear()
                unknown = set(keys)
            encode, owners, groups = codec.encode, self._owners, len(self._owners)
            for key in unknown:
                known[key] = owners[key_group_of(encode(key), groups)]
        return [known[key] for key in keys]

    def _flush(self, worker: int) -> None:
        keys, events, times = self._waiting[worker]
        self._waiting[worker] = ([], [], [])
        self._send_now(worker, keys, events, times or None)

    def _send_now(self, worker: int, keys: Keys, events: list[Any], times: Times) -> None:
        self._credits[worker] -= 1
        self._network.send(worker, (BATCH, self._edge, keys, events, times))

    def flush(self) -> bool:
        """Send what waits for more; whether there was any."""
        full = [worker for worker, (_, events, _) in enumerate(self._waiting) if events]
        for worker in full:
            self._flush(worker)
        return bool(full)

    def send_watermark(self, watermark: int) -> None:
        """Tell all workers, after what was sent before."""
        self._send_to_all((WATERMARK, self._edge, watermark))

    def send_idle(self) -> None:
        """Tell all workers."""
        self._send_to_all((IDLE, self._edge))

    def send_barrier(self, checkpoint: int) -> None:
        """Let a barrier go to all workers."""
        self.barrier = checkpoint
        self._send_to_all((BARRIER, self._edge, checkpoint))

    def _send_to_all(self, frame: Frame) -> None:
        self.flush()
        for worker in range(self._network.parallelism):
            self._network.send(worker, frame)


class _Arrivals(Operator):
    """Combines the event time of all workers for the operator behind an edge: each is a port."""

    def __init__(self, operator: ExchangeOperator, parallelism: int):
        super().__init__(operator.uid)
        self._operator = operator
        for _ in range(parallelism):
            self.add_input()

    def forward_watermark(self, watermark: int) -> None:
        """Pass it on to this worker's consumers."""
        self._operator.deliver_watermark(watermark)

    def forward_idle(self) -> None:
        """Pass it on to this worker's consumers."""
        self._operator.deliver_idle()


class ExchangeInput:
    """The receiving end of an edge: a queue for each worker.

    Attributes
    ----------
    passed : int
        The last checkpoint whose barrier has come from all workers.
    first_barrier : float or None
        When the first barrier of the checkpoint that is being aligned came.
    """

    def __init__(self, operator: ExchangeOperator, edge: int, network: Network, *, aligned: bool):
        self.operator, self._edge, self._network, self._aligned = operator, edge, network, aligned
        self._queues: list[deque[Frame]] = [deque() for _ in range(network.parallelism)]
        self._arrivals = _Arrivals(operator, network.parallelism)
        self._barriers = [0] * network.parallelism  # the last that came from each worker
        self._next = 0
        self.passed = self._done = 0
        self.first_barrier: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether all workers have sent all they will, and it has been processed."""
        return self._arrivals.watermark == MAX_WATERMARK

    def arrive(self, worker: int, frame: Frame) -> None:
        """Put a frame into its queue."""
        self._queues[worker].append(frame)

    def release(self, checkpoint: int) -> None:
        """The worker's part of a checkpoint is taken, or it was given up: go on with what follows its barrier."""
        self._done = max(self._done, checkpoint)
        self.first_barrier = None

    def _is_blocked(self, worker: int) -> bool:
        return self._aligned and self._barriers[worker] > self._done

    def step(self, now: float, process: Process) -> bool:
        """Process the next frame that may be; False when there is none. `process` is as for `SourceInput.step`."""
        for offset in range(len(self._queues)):
            worker = (self._next + offset) % len(self._queues)
            queue = self._queues[worker]
            if queue and not self._is_blocked(worker):
                self._next = worker + 1
                self._process(worker, queue.popleft(), now, process)
                return True
        return False

    def _process(self, worker: int, frame: Frame, now: float, process: Process) -> None:
        kind = frame[0]
        if kind == BATCH:
            self._deliver(frame, process)
            self._network.send(worker, (CREDIT, self._edge, 1))
        elif kind == WATERMARK:
            self._arrivals.on_watermark(frame[2], worker)
        elif kind == IDLE:
            self._arrivals.on_idle(worker)
        else:
            self._take_barrier(worker, frame[2], now)

    def _deliver(self, frame: Frame, process: Process) -> None:
        _, _, keys, batch, times = frame
        deliver = self.operator.deliver

        def deliver_part(begin: int, end: int) -> None:
            if end - begin == len(batch):
                deliver(keys, batch, times)
            else:
                part = slice(begin, end)
                deliver(keys and keys[part], batch[part], times and times[part])

        process(len(batch), deliver_part, batch.__getitem__)

    def _take_barrier(self, worker: int, checkpoint: int, now: float) -> None:
        if checkpoint > self._done and checkpoint > max(self._barriers):
            self.first_barrier = now
        self._barriers[worker] = checkpoint
        self.passed = min(self._barriers)
