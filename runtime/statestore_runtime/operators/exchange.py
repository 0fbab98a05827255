"""Edges between stages: where events may leave for another worker.

With one worker everything goes straight on. With several, whoever runs the task replaces `send`, `send_watermark` and `send_idle` by
functions that spread over all workers, and calls `deliver`, `deliver_watermark` and `deliver_idle` with what arrives for this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from statestore.keys import KeyCodec
from statestore_runtime.operators.base import Guard, Operator, Times

Keys = list[Any] | None


class ExchangeOperator(Operator):
    """An edge between two stages.

    Attributes
    ----------
    kind
        "hash": each event goes to the worker that has its key's group. "broadcast": every event goes to every worker.
    send
        Called with keys (None where there are none), batch and times. By default `deliver`.
    send_watermark
        Called with the watermark that holds for all that was sent. By default `deliver_watermark`.
    send_idle
        Called when nothing comes for the time being, until the next watermark. By default `deliver_idle`.
    """

    kind: ClassVar[Literal["hash", "broadcast"]]

    def __init__(self, uid: str):
        super().__init__(uid)
        self.send: Callable[[Keys, list[Any], Times], None] = self.deliver
        self.send_watermark: Callable[[int], None] = self.deliver_watermark
        self.send_idle: Callable[[], None] = self.deliver_idle

    def deliver(self, keys: Keys, batch: list[Any], times: Times = None) -> None:
        """Push what has arrived to the consumers."""
        if keys is None:
            self.emit(batch, times)
        elif batch:
            for consumer, port in self.consumers:
                consumer.push_keyed(keys, batch, times, port)

    def deliver_watermark(self, watermark: int) -> None:
        """Tell the consumers how far event time has come with all that is sent to this worker."""
        super().forward_watermark(watermark)

    def deliver_idle(self) -> None:
        """Tell the consumers that nothing is sent to this worker for the time being."""
        super().forward_idle()

    def forward_watermark(self, watermark: int) -> None:
        """Send it."""
        self.send_watermark(watermark)

    def forward_idle(self) -> None:
        """Send it."""
        self.send_idle()


class KeyByOperator(ExchangeOperator):
    """Gives each event its key.

    Attributes
    ----------
    key_codec
        Encodes keys; the key group of an encoded one says where its event goes. It does not check them: the operators with state do.
    """

    kind = "hash"

    def __init__(self, uid: str, function: Callable[[Any], Any], key_type: Any):
        super().__init__(uid)
        self._function = function
        self.key_codec = KeyCodec(key_type)

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Find the keys, once for all consumers."""
        function, events = self._function, iter(batch)
        with Guard(self.uid, batch, events):
            keys = [function(event) for event in events]
        self.send(keys, batch, times)


class BroadcastOperator(ExchangeOperator):
    """Gives every event to every worker."""

    kind = "broadcast"

    def push(self, batch: list[Any], times: Times = None, port: int = 0) -> None:
        """Send the events."""
        self.send(None, batch, times)
