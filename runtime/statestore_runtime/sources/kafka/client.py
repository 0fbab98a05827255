"""One Kafka consumer for all partitions that a worker reads, with the driver's errors made ours.

A consumer is several threads and connections, too much to have one for each partition. What it hands out is sorted into queues; a partition
whose queue is full is paused.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from statestore.clock import Clock, SystemClock
from statestore.errors import ConfigError, UnavailableError, UsageError

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, TopicPartition

logger = logging.getLogger("statestore_runtime.sources.kafka")

T = TypeVar("T")

REQUEST_SECONDS = 10.0
_QUEUE_BATCHES = 4
"""A queue is full with so many batches."""


class Partition:
    """A partition that is read, and what of it was fetched and not yet taken."""

    def __init__(self, topic: str, number: int, first_offset: int):
        self.topic, self.number, self.first_offset = topic, number, first_offset
        self.messages: deque[Message] = deque()
        self.next_offset = first_offset
        """Offset behind all that was fetched, also what is no record."""
        self.error: KafkaError | None = None
        self.is_paused = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.topic}/{self.number}"


class SharedConsumer:
    """A consumer, and the partitions it fetches.

    Parameters
    ----------
    properties
        Of librdkafka's consumer.
    timeout_seconds
        How long brokers may be away.
    batch_size
        Records that are taken at a time.

    Raises
    ------
    ConfigError
        confluent-kafka is not installed, or a property is no good.
    """

    def __init__(self, properties: Mapping[str, Any], timeout_seconds: float, batch_size: int):
        self._kafka = _import_driver()
        self._place = properties["bootstrap.servers"]
        self._timeout_seconds, self._batch_size = timeout_seconds, batch_size
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._down_since: float | None = None
        self._failure: KafkaError | None = None
        self.clock: Clock = SystemClock()
        settings = {
            **properties,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",  # no offset is ever replaced by another
            "enable.partition.eof": True,
            "error_cb": self._note_error,
        }
        try:
            self._consumer = self._kafka.Consumer(settings, logger=logger)
        except self._kafka.KafkaException as error:
            raise ConfigError(f"Kafka's consumer can't be made: {error.args[0].str()}", key="source") from None

    # Asking

    def partitions(self, topic: str) -> list[int]:
        """Numbers of a topic's partitions. Raises ConfigError when there is no such topic."""
        metadata = self._ask(lambda: self._consumer.list_topics(topic, REQUEST_SECONDS)).topics[topic]
        if metadata.error is not None:
            if metadata.error.code() == self._kafka.KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise ConfigError(f"there is no topic '{topic}' at {self._place}", key="source")
            raise self._unavailable(metadata.error)
        return sorted(metadata.partitions)

    def watermarks(self, topic: str, number: int) -> tuple[int, int]:
        """The first offset that the broker has, and the one that the next record will get."""
        place = self._kafka.TopicPartition(topic, number)
        found: tuple[int, int] | None = self._ask(lambda: self._consumer.get_watermark_offsets(place, REQUEST_SECONDS))
        if found is None:
            raise UnavailableError("kafka", self._place, f"the offsets of {topic}/{number} are not known")
        return found

    def offset_at(self, topic: str, number: int, milliseconds: int) -> int | None:
        """Offset of the first record at or after a time; None when there is none."""
        place = self._kafka.TopicPartition(topic, number, milliseconds)
        (found,) = self._ask(lambda: self._consumer.offsets_for_times([place], REQUEST_SECONDS))
        if found.error is not None:
            raise self._unavailable(found.error)
        return found.offset if found.offset >= 0 else None

    def check_offset(self, topic: str, number: int, offset: int, low: int, high: int) -> None:
        """Raise UsageError unless records can be read from an offset on without a gap."""
        if low <= offset <= high:
            return
        problem = (
            f"records from offset {offset} to {low - 1} have been deleted"
            if offset < low
            else f"its end is offset {high}: it was made anew, or has lost records"
        )
        raise UsageError(
            f"kafka partition {topic}/{number} can't be read from offset {offset}: {problem}; "
            "keep records for longer (retention.ms), or start over with --restore none"
        )

    # Reading

    def assign(self, topic: str, number: int, offset: int) -> Partition:
        """Begin to fetch a partition."""
        partition = Partition(topic, number, offset)
        self._partitions[topic, number] = partition
        place = self._kafka.TopicPartition(topic, number, offset)
        self._ask(lambda: self._consumer.incremental_assign([place]))
        return partition

    def release(self, partition: Partition) -> None:
        """Fetch a partition no more; idempotent."""
        if self._partitions.get((partition.topic, partition.number)) is partition:
            del self._partitions[partition.topic, partition.number]
            self._ask(lambda: self._consumer.incremental_unassign([self._place_of(partition)]))

    def take(self, partition: Partition, count: int) -> tuple[list[Message], int]:
        """Up to `count` records of a partition that follow those taken before, and the offset behind them."""
        if not partition.messages:
            self._fetch()
        messages = [partition.messages.popleft() for _ in range(min(count, len(partition.messages)))]
        if not messages and partition.error is not None:
            self._raise(partition)
        if partition.is_paused and len(partition.messages) < self._batch_size:
            partition.is_paused = False
            self._ask(lambda: self._consumer.resume([self._place_of(partition)]))
        return messages, _offset(partition.messages[0]) if partition.messages else partition.next_offset

    def _fetch(self) -> None:
        """Sort what has come into the queues."""
        messages = self._ask(lambda: self._consumer.consume(self._batch_size, 0))
        for message in messages:
            partition = self._partitions.get((message.topic() or "", _number(message)))
            error = message.error()
            if partition is None:  # released, or the matter is none of a partition's
                if error is not None and message.topic() is None:
                    self._note_error(error)
            elif error is None:
                partition.messages.append(message)
                partition.next_offset = _offset(message) + 1
            elif error.code() == self._kafka.KafkaError._PARTITION_EOF:
                partition.next_offset = max(partition.next_offset, _offset(message))
            else:
                partition.error = error
        self._pause_full()
        if messages:
            self._down_since = None
        self._check_reachable()

    def _pause_full(self) -> None:
        full = [
            partition
            for partition in self._partitions.values()
            if not partition.is_paused and len(partition.messages) >= _QUEUE_BATCHES * self._batch_size
        ]
        if full:
            self._ask(lambda: self._consumer.pause([self._place_of(partition) for partition in full]))
        for partition in full:
            partition.is_paused = True

    def _place_of(self, partition: Partition) -> TopicPartition:
        place: TopicPartition = self._kafka.TopicPartition(partition.topic, partition.number)
        return place

    # Errors

    def _note_error(self, error: KafkaError) -> None:
        """Called by the driver while it is asked something."""
        codes = self._kafka.KafkaError
        if error.fatal() or error.code() in (codes._AUTHENTICATION, codes._SSL):
            self._failure = error
        elif error.code() == codes._ALL_BROKERS_DOWN and self._down_since is None:
            self._down_since = self.clock.monotonic()

    def _check_reachable(self) -> None:
        if self._failure is not None:
            raise self._unavailable(self._failure)
        if self._down_since is None or self.clock.monotonic() - self._down_since < self._timeout_seconds:
            return
        self._ask(lambda: self._consumer.list_topics(timeout=REQUEST_SECONDS))
        self._down_since = None  # they are back, and have nothing new

    def _raise(self, partition: Partition) -> None:
        error, offset = partition.error, partition.next_offset
        assert error is not None
        if error.code() == self._kafka.KafkaError._AUTO_OFFSET_RESET:
            low, high = self.watermarks(partition.topic, partition.number)
            self.check_offset(partition.topic, partition.number, offset, low, high)
        raise UnavailableError("kafka", self._place, f"partition {partition.name} at offset {offset}: {error.str()}")

    def _ask(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except self._kafka.KafkaException as error:
            raise self._unavailable(error.args[0]) from error

    def _unavailable(self, error: KafkaError) -> UnavailableError:
        return UnavailableError("kafka", self._place, error.str())

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None, "what comes from a broker has one"
    return offset


def _number(message: Message) -> int:
    number = message.partition()
    return -1 if number is None else number


def _import_driver() -> Any:
    try:
        import confluent_kafka
    except ImportError as error:
        raise ConfigError("confluent-kafka is not installed", hint="install the extra 'statestore[kafka]'") from error
    return confluent_kafka
