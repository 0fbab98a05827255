"""Kafka topics as a source."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from statestore.errors import ConfigError, StateStoreError, UnavailableError, UsageError
from statestore_runtime.sources.base import (
    DEFAULT_BATCH_SIZE,
    OnError,
    Source,
    SourceContext,
    SplitReader,
    checked_batch_size,
)
from statestore_runtime.sources.kafka.client import Partition, SharedConsumer

if TYPE_CHECKING:
    from confluent_kafka import Message

logger = logging.getLogger("statestore_runtime.sources.kafka")

Start = Literal["earliest", "latest"] | datetime.datetime

DISCOVERY_SECONDS = 300.0
_OWN_PROPERTIES = ("bootstrap.servers", "enable.auto.commit", "auto.offset.reset", "enable.partition.eof", "error_cb")
_NEW = "/new"
"""Ends the name of a partition's split that is read from its beginning whatever `start` is: the partition came later."""


class KafkaSource(Source):
    """Records of Kafka topics, each partition a split. Needs the extra `kafka`.

    Partitions are assigned by the runtime and positions are in the checkpoint: no consumer group is joined and no offset is committed. An
    offset that the broker has no more ends the job with an error that names topic, partition and offsets; nothing is skipped.

    Parameters
    ----------
    bootstrap_servers
        "host:port", or several with commas between.
    topics
        A topic, or several.
    type
        What a record's value, which is JSON, is decoded into. A record without a value (a tombstone) is None, where the type admits that.
    decode
        Makes an event of a `confluent_kafka.Message` instead, with its key, value, headers and timestamp. A record is bad when it raises.
    start
        "earliest", "latest" or a time: where reading begins when there is no position. Partitions that are added to a topic later are read
        from their beginning.
    bounded
        Whether a partition ends at what was its end when reading began; otherwise it never does.
    properties
        Further properties of librdkafka's consumer, such as those of security. Only committed records are read unless they say otherwise.
    batch_size
        Records that are processed between two looks at the clock.
    timeout_seconds
        How long the brokers may be away before the job fails.
    on_error
        What happens to a record that can't be read: "fail", "skip" or "dead-letter". Default: `source.on-error` of the configuration.
    discovery_interval
        Seconds between looks for new partitions; 300 by default, and none when it is bounded.
    rate_limit
        Events per second and worker.

    Raises
    ------
    UsageError, ConfigError
        An argument can't be served.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topics: str | Sequence[str],
        *,
        type: Any = None,
        decode: Callable[[Message], Any] | None = None,
        start: Start = "earliest",
        bounded: bool = False,
        properties: Mapping[str, Any] | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        timeout_seconds: float = 30.0,
        on_error: OnError | None = None,
        discovery_interval: float | None = None,
        rate_limit: float | None = None,
    ):
        self._topics = [topics] if isinstance(topics, str) else list(topics)
        if not self._topics or len(set(self._topics)) != len(self._topics):
            raise UsageError(f"topics are {self._topics}: give at least one, and each once")
        if type is not None and decode is not None:
            raise UsageError("give type or decode, not both")
        if bounded and discovery_interval is not None:
            raise UsageError("a bounded source ends, and looks for no new partitions: leave discovery_interval out")
        if not timeout_seconds > 0:
            raise UsageError(f"timeout_seconds is {timeout_seconds}, it must be more than 0")
        self._properties = _checked_properties(bootstrap_servers, properties or {})
        self._decode = decode or _ValueDecoder(type).decode
        self._start, self._is_bounded = _checked_start(start), bounded
        self._batch_size, self._timeout_seconds = checked_batch_size(batch_size), timeout_seconds
        if discovery_interval is None and not bounded:
            discovery_interval = DISCOVERY_SECONDS
        self._set_options(on_error, rate_limit, discovery_interval)
        self._consumer: SharedConsumer | None = None

    @property
    def name(self) -> str:
        """The topics."""
        return f"kafka topic {', '.join(self._topics)}"

    def discover(self, known: Collection[str]) -> list[str]:
        """The topics' partitions that are not known. While some are, brokers that are away are a matter of those who read.

        Raises
        ------
        ConfigError
            A topic is not there, confluent-kafka is not installed, or a property is no good.
        UnavailableError
            No broker answers, and nothing is known yet.
        """
        try:
            return self._unknown(self._shared(), {_partition_of(split) for split in known})
        except UnavailableError as error:
            if not known:
                raise
            logger.warning("%s: new partitions can't be looked for now: %s", self.name, error)
            return []

    def _unknown(self, consumer: SharedConsumer, known_partitions: Collection[tuple[str, int]]) -> list[str]:
        known_topics = {topic for topic, _ in known_partitions}
        found = []
        for topic in self._topics:
            suffix = _NEW if topic in known_topics and self._start == "latest" else ""
            for number in consumer.partitions(topic):
                if (topic, number) not in known_partitions:
                    found.append(f"{topic}/{number}{suffix}")
        return found

    def read(self, split: str, position: Any | None, context: SourceContext) -> SplitReader:
        """Go to an offset, or where `start` says.

        Raises
        ------
        UsageError
            The broker does not have that offset any more, or not yet.
        ConfigError
            confluent-kafka is not installed, or a property is no good.
        UnavailableError
            No broker answers.
        """
        consumer, (topic, number) = self._shared(), _partition_of(split)
        consumer.clock = context.clock
        low, high = consumer.watermarks(topic, number)
        if position is not None:
            offset, end = position["offset"], position["end"]
            consumer.check_offset(topic, number, offset, low, high)
        else:
            offset, end = self._first_offset(consumer, split, low, high), None
        if not self._is_bounded:
            end = None
        elif end is None:
            end = high
        return _PartitionReader(
            consumer, consumer.assign(topic, number, offset), end, self._decode, context, self._batch_size
        )

    def _first_offset(self, consumer: SharedConsumer, split: str, low: int, high: int) -> int:
        if self._start == "earliest" or split.endswith(_NEW):
            return low
        if self._start == "latest":
            return high
        found = consumer.offset_at(*_partition_of(split), round(self._start.timestamp() * 1000))
        return high if found is None else found

    def _shared(self) -> SharedConsumer:
        if self._consumer is None:
            self._consumer = SharedConsumer(self._properties, self._timeout_seconds, self._batch_size)
        return self._consumer

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


class _ValueDecoder:
    """Makes an event of a record's value."""

    def __init__(self, declared: Any):
        self._declared = Any if declared is None else declared
        self._decoder = msgspec.json.Decoder(self._declared)

    def decode(self, message: Message) -> Any:
        value = message.value()
        return msgspec.convert(None, self._declared) if value is None else self._decoder.decode(value)


class _PartitionReader(SplitReader):
    """Reads one partition."""

    def __init__(
        self,
        consumer: SharedConsumer,
        partition: Partition,
        end: int | None,
        decode: Callable[[Message], Any],
        context: SourceContext,
        batch_size: int,
    ):
        self._consumer, self._partition, self._end = consumer, partition, end
        self._decode, self._context, self._batch_size = decode, context, batch_size
        self._offset = partition.first_offset

    def next_batch(self) -> list[Any] | None:
        """Events of up to `batch_size` records."""
        if self._end is not None and self._offset >= self._end:
            return None
        messages, offset = self._consumer.take(self._partition, self._batch_size)
        if self._end is not None:
            messages = [message for message in messages if _offset_of(message) < self._end]
            offset = min(offset, self._end)
        events = self._decoded(messages)
        self._offset = max(self._offset, offset)
        return events

    def _decoded(self, messages: list[Message]) -> list[Any]:
        events = []
        for message in messages:
            try:
                events.append(self._decode(message))
            except StateStoreError:
                raise
            except Exception as error:
                text = (message.value() or b"").decode(errors="backslashreplace")
                problem = str(error) if isinstance(error, msgspec.MsgspecError) else f"{type(error).__name__}: {error}"
                self._context.bad_record(self._partition.name, "offset", _offset_of(message), text, problem)
        return events

    def position(self) -> dict[str, Any]:
        """Offset of the next record, and where the partition ends for this source."""
        return {"offset": self._offset, "end": self._end}

    def close(self) -> None:
        """Fetch no more of the partition."""
        self._consumer.release(self._partition)


def _offset_of(message: Message) -> int:
    offset = message.offset()
    assert offset is not None, "records of a broker have one"
    return offset


def _partition_of(split: str) -> tuple[str, int]:
    topic, number = split.removesuffix(_NEW).rsplit("/", 1)
    return topic, int(number)


def _checked_properties(bootstrap_servers: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    own = next((name for name in properties if name in _OWN_PROPERTIES), None)
    if own is not None:
        raise ConfigError(f"the property '{own}' is set by KafkaSource itself", key="source", hint="leave it out")
    return {"group.id": "statestore", **properties, "bootstrap.servers": bootstrap_servers}


def _checked_start(start: Start) -> Start:
    if isinstance(start, datetime.datetime):
        if start.tzinfo is None:
            raise UsageError(f"start is {start}, which has no time zone: add tzinfo=datetime.timezone.utc, or another")
    elif start not in ("earliest", "latest"):
        raise UsageError(f"start is '{start}', it must be 'earliest', 'latest' or a datetime")
    return start
