"""Records to brokers: one Kafka transaction for the staged files of a checkpoint, or as they come."""

from __future__ import annotations

import logging
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import msgspec

from statestore.errors import ConfigError, CorruptionError, FencedError, UnavailableError
from statestore_runtime.sinks.base import SinkContext

logger = logging.getLogger("statestore_runtime.sinks")

Record = tuple[bytes | None, bytes | None]
"""Key and value."""

OpenFile = Callable[[], IO[bytes]]

FilesBehind = Callable[[int], list[tuple[int, OpenFile]]]
"""Numbers of the files behind a number, in their order, and what opens them."""

GIVE_WAY_SECONDS = 0.02
POLL_SECONDS = 0.1

_LENGTH = struct.Struct("<I")
_decode_record = msgspec.msgpack.Decoder(Record).decode


def import_kafka() -> Any:
    """The driver. Raises ConfigError when it is not installed."""
    try:
        import confluent_kafka
    except ImportError as error:
        raise ConfigError("confluent-kafka is not installed", hint="install the extra 'statestore[kafka]'") from error
    return confluent_kafka


def encode_records(records: list[Record]) -> bytes:
    """Each with its length before it."""
    pieces = []
    for record in map(msgspec.msgpack.encode, records):
        pieces += [_LENGTH.pack(len(record)), record]
    return b"".join(pieces)


def read_records(open_file: OpenFile) -> Iterator[Record]:
    """The records of a staged file."""
    with open_file() as file:
        while head := file.read(_LENGTH.size):
            yield _decode_record(file.read(_LENGTH.unpack(head)[0]))


class KafkaCluster:
    """Brokers, a topic, and how to reach them."""

    def __init__(self, servers: str, topic: str, timeout_seconds: float, options: Mapping[str, Any]):
        self.servers, self.topic, self.timeout_seconds = servers, topic, timeout_seconds
        self._options = {**options, "bootstrap.servers": servers}
        self.driver = import_kafka()

    @property
    def name(self) -> str:
        """The servers and the topic."""
        return f"kafka://{self.servers}/{self.topic}"

    def producer(self, **settings: Any) -> Any:
        """A producer. Raises ConfigError for a setting that it does not take."""
        milliseconds = max(1000, int(self.timeout_seconds * 1000))
        base = {"acks": "all", "enable.idempotence": True, "message.timeout.ms": milliseconds}
        try:
            return self.driver.Producer({**base, **self._options, **settings}, logger=logger)
        except self.driver.KafkaException as error:
            raise ConfigError(f"the Kafka producer can't be made: {error.args[0].str()}", hint="see options") from error

    def transactional_producer(self, transactional_id: str) -> Any:
        """A producer after which older ones of the same id can commit nothing. Raises ConfigError, UnavailableError."""
        milliseconds = max(1000, int(self.timeout_seconds * 1000))
        producer = self.producer(**{"transactional.id": transactional_id, "transaction.timeout.ms": milliseconds})
        try:
            producer.init_transactions(self.timeout_seconds)
        except self.driver.KafkaException as error:
            if error.args[0].code() == self.driver.KafkaError.INVALID_TRANSACTION_TIMEOUT:
                hint = "choose a smaller timeout, or raise transaction.max.timeout.ms of the brokers"
                raise ConfigError(f"the brokers allow no transaction of {milliseconds} ms", hint=hint) from error
            raise self.unavailable(error) from error
        return producer

    def consumer(self, group: str) -> Any:
        """A member of no group that asks for the group's offsets."""
        settings = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        return self.driver.Consumer({**self._options, **settings}, logger=logger)

    def check_topic(self) -> None:
        """Raise ConfigError when there is no such topic, UnavailableError when the brokers don't answer."""
        try:
            metadata = self.producer().list_topics(self.topic, timeout=self.timeout_seconds)
        except self.driver.KafkaException as error:
            raise self.unavailable(error) from error
        problem = metadata.topics[self.topic].error
        if problem is not None and not problem.retriable():  # one that is being made is no problem
            raise ConfigError(f"there is no topic '{self.topic}' at {self.servers}: {problem.str()}", hint="create it")

    def unavailable(self, error: Any, *, hint: str | None = None) -> UnavailableError:
        """What a driver's exception means."""
        return UnavailableError("kafka", self.name, error.args[0].str(), hint=hint)


class PlainProducer:
    """Sends records as they come."""

    def __init__(self, cluster: KafkaCluster):
        self._cluster, self._producer = cluster, cluster.producer()
        self._failure: str | None = None

    def send(self, records: list[Record]) -> None:
        """Hand records to the driver. Raises UnavailableError when one before was not delivered."""
        try:
            for record in records:
                produce(self._cluster, self._producer, record, self._delivered)
        except self._cluster.driver.KafkaException as error:
            raise self._cluster.unavailable(error) from error
        self._producer.poll(0)
        self._raise_failure()

    def _delivered(self, error: Any, message: object) -> None:
        if error is not None and self._failure is None:
            self._failure = error.str()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise UnavailableError("kafka", self._cluster.name, f"a record was not delivered: {self._failure}")

    def flush(self) -> None:
        """Wait until the brokers have acknowledged all. Raises UnavailableError."""
        left = self._producer.flush(self._cluster.timeout_seconds)
        self._raise_failure()
        if left:
            raise UnavailableError("kafka", self._cluster.name, f"{left} records were not acknowledged in time")


def produce(cluster: KafkaCluster, producer: Any, record: Record, delivered: Callable[..., None]) -> None:
    """Hand a record to the driver; wait while its queue is full. Raises the driver's exception."""
    while True:
        try:
            producer.produce(cluster.topic, record[1], record[0], on_delivery=delivered)
            return
        except BufferError:  # the driver gives up what can't be sent after message.timeout.ms, so there will be room
            producer.poll(POLL_SECONDS)


class Delivery:
    """Writes staged files in Kafka transactions, each file once.

    Parameters
    ----------
    prefix
        What the transactional ids, one for each subtask, and the groups, one for each opening, begin with.

    Attributes
    ----------
    me : list
        The subtask, and a token of this opening.
    """

    def __init__(self, cluster: KafkaCluster, prefix: str, context: SinkContext):
        self._cluster, self._prefix, self._context = cluster, prefix, context
        self.me = [
            context.subtask,
            secrets.token_hex(8),
        ]  # attempts may be counted anew, but not what a group has come to
        self._producer: Any = None
        self._done = 0

    def _transactional_id(self, subtask: int) -> str:
        return f"{self._prefix}-{subtask}"

    def open(self) -> None:
        """Let no older producer of these subtasks commit anything any more."""
        context = self._context
        if self._producer is None:
            self._producer = self._cluster.transactional_producer(self._transactional_id(context.subtask))
        if context.is_first:
            for subtask in context.snapshots:
                if subtask >= context.parallelism:  # nobody opens in its place
                    self._cluster.transactional_producer(self._transactional_id(subtask))

    def deliver(self, subtask: int, token: str, files_behind: FilesBehind, check_owner: Callable[[], None]) -> None:
        """Write the files of an opening in a subtask that are not written yet.

        Raises
        ------
        FencedError
            A newer attempt has come.
        UnavailableError
            The brokers don't answer; whether the transaction is committed shows at the next start.
        StagedFileGoneError
            One that is not written is not there.
        """
        is_own, clock = [subtask, token] == self.me, self._context.clock
        deadline = clock.monotonic() + self._cluster.timeout_seconds
        while clock.monotonic() < deadline:
            check_owner()
            try:
                if is_own and self._producer is not None:
                    self._write(self._producer, token, files_behind(self._done))
                else:
                    self._recover(subtask, token, files_behind)
                return
            except StagedFileGoneError as error:
                if error.number > self._last_written(token):
                    raise
                # Otherwise another subtask, which has to commit what was prepared next, has just written it and removed it.
            except _FencedProducerError as error:
                logger.info("%s: the producer of subtask %d was fenced: %s", self._cluster.name, subtask, error)
                if self._done:  # other subtasks of this attempt recover before its first checkpoint only
                    break
                if subtask == self._context.subtask:
                    self._producer = None
                # Subtasks that recover what the same one prepared fence each other: without pauses of different lengths, again and again.
                clock.sleep(GIVE_WAY_SECONDS * (1 + self._context.subtask))
        raise FencedError(self._cluster.name, self._context.attempt)

    def _recover(self, subtask: int, token: str, files_behind: FilesBehind) -> None:
        """Write what a producer that is dead, or fenced, may have written.

        That of a subtask of this attempt may be alive: it is fenced too, and comes here in its turn.
        """
        producer = self._cluster.transactional_producer(self._transactional_id(subtask))
        self._write(producer, token, files_behind(self._last_written(token)))
        if subtask == self._context.subtask:
            self._producer = producer

    def _group(self, token: str) -> str:
        return f"{self._prefix}-{token}"

    def _last_written(self, token: str) -> int:
        """Number of the last file that was written in a committed transaction."""
        driver, consumer = self._cluster.driver, self._cluster.consumer(self._group(token))
        try:
            wanted = [driver.TopicPartition(self._cluster.topic, 0)]
            (found,) = consumer.committed(wanted, timeout=self._cluster.timeout_seconds)
            if found.error is not None:
                raise driver.KafkaException(found.error)
            return max(0, int(found.offset))
        except driver.KafkaException as error:
            raise self._cluster.unavailable(error) from error
        finally:
            consumer.close()

    def _write(self, producer: Any, token: str, files: list[tuple[int, OpenFile]]) -> None:
        if not files:
            return
        driver, cluster = self._cluster.driver, self._cluster
        failures: list[Any] = []

        def delivered(error: Any, message: object) -> None:
            if error is not None:
                failures.append(error)

        consumer = cluster.consumer(self._group(token))
        try:
            producer.begin_transaction()
            for _, open_file in files:
                for record in read_records(open_file):
                    produce(cluster, producer, record, delivered)
                    producer.poll(0)
            last = files[-1][0]
            marker = [driver.TopicPartition(cluster.topic, 0, last)]
            producer.send_offsets_to_transaction(marker, consumer.consumer_group_metadata(), cluster.timeout_seconds)
            left = producer.flush(cluster.timeout_seconds)
            if failures or left:
                raise driver.KafkaException(
                    failures[0] if failures else driver.KafkaError(driver.KafkaError._TIMED_OUT)
                )
            producer.commit_transaction(cluster.timeout_seconds)
        except driver.KafkaException as error:
            raise self._failed(error) from error
        except BaseException:
            self._producer = None  # it has begun something that it must not go on with
            raise
        finally:
            consumer.close()
        if token == self.me[1]:
            self._done = last

    def _failed(self, error: Any) -> Exception:
        """The producer is not used again: the next one aborts, or finishes, what it has begun."""
        kafka_error, codes = error.args[0], self._cluster.driver.KafkaError
        if kafka_error.code() in (codes._FENCED, codes.PRODUCER_FENCED, codes.INVALID_PRODUCER_EPOCH):
            return _FencedProducerError(kafka_error.str())
        self._producer = None
        hint = "whether its records are visible is found out at the next start, which writes them if they are not"
        return self._cluster.unavailable(error, hint=hint)


class StagedFileGoneError(CorruptionError):
    """A staged file is not there."""

    def __init__(self, file: str, number: int):
        self.number = number
        super().__init__(
            file,
            "records that the checkpoint counts on are gone, and the topic has not got them",
            hint="is staging_dir one folder for all machines? Restore an older checkpoint, or start over",
        )


class _FencedProducerError(Exception):
    """Another producer has taken the transactional id."""
