"""Results as records of a Kafka topic. Needs the extra `kafka`.

A prepared Kafka transaction can be committed by the producer that made it only, which may be dead by then. So `transactional` keeps what a
checkpoint is to make visible in staged files, and writes it in one Kafka transaction when the checkpoint is complete.

Invariants:
- a transaction holds the records of staged files and, as the offset that a consumer group of the preparing instance has come to, the
  number of the last one: both become visible, or none;
- that offset is read only after `init_transactions` with the transactional id of the preparing subtask: by then its older producers can
  commit nothing any more, so the offset says for certain which files are still to be written;
- a file is removed only after its transaction.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from statestore import crashpoints
from statestore.errors import ClosedError, CorruptionError, UsageError
from statestore_runtime.sinks.base import Sink, SinkContext
from statestore_runtime.sinks.files import FileSink
from statestore_runtime.sinks.kafka_delivery import (
    Delivery,
    KafkaCluster,
    OpenFile,
    PlainProducer,
    Record,
    StagedFileGoneError,
    encode_records,
    import_kafka,
)
from statestore_runtime.sinks.parts import VISIBLE_NAME
from statestore_runtime.sinks.values import check_callable, key_bytes, seconds_of, shared_folder, value_bytes

RECORD_OVERHEAD_BYTES = 512
DEFAULT_RECORD_BYTES_MAX = 1_000_000
DEFAULT_STAGING = ".statestore/staging"

_OWN_OPTIONS = (
    "bootstrap.servers",
    "transactional.id",
    "transaction.timeout.ms",
    "enable.idempotence",
    "group.id",
    "acks",
)


class KafkaSink(Sink):
    """Writes a record to a Kafka topic for each event.

    Parameters
    ----------
    bootstrap_servers
        Such as "broker-1:9092,broker-2:9092".
    topic
        It exists, or the brokers make topics that are asked for.
    key
        Makes a record's key: text, bytes, a number, or None. Without it there is none.
    value
        Makes its value: text or bytes as they are, anything else as JSON; None is a tombstone. Without it, the event as JSON.
    mode
        "transactional": each event once, for consumers that read committed records only, when its checkpoint is complete. "at-least-once":
        records are sent as they come, at the latest before a checkpoint; after a crash some are sent again.
    transactional_id_prefix
        What the transactional ids and groups of this sink begin with, before the topic; the job's name by default. Nobody else uses it.
    staging_dir
        Folder for what is prepared and not committed. On several machines, one that they share; what is lost with it is noticed, and not
        written again.
    timeout
        How long to wait for the brokers, in a commit too. The least of it and the brokers' `transaction.max.timeout.ms` is enough for
        as many records as there are between two checkpoints.
    options
        Further settings of librdkafka, such as those of TLS and SASL.

    Raises
    ------
    UsageError
        An argument can't be served.
    ConfigError
        The driver is not installed.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        *,
        key: Callable[[Any], Any] | None = None,
        value: Callable[[Any], Any] | None = None,
        mode: Literal["transactional", "at-least-once"] = "transactional",
        transactional_id_prefix: str | None = None,
        staging_dir: str | os.PathLike[str] = DEFAULT_STAGING,
        timeout: str = "1min",
        options: Mapping[str, Any] | None = None,
    ):
        import_kafka()
        check_callable("KafkaSink", "key", key, optional=True)
        check_callable("KafkaSink", "value", value, optional=True)
        if mode not in ("transactional", "at-least-once"):
            raise UsageError(f"KafkaSink mode is '{mode}'; known: transactional, at-least-once")
        for name in options or ():
            if name in _OWN_OPTIONS:
                raise UsageError(f"KafkaSink options can't have '{name}': the sink sets it")
        self._servers, self._topic, self._mode = bootstrap_servers, topic, mode
        self._key, self._value, self._prefix = key, value, transactional_id_prefix
        self._staging_dir = shared_folder("KafkaSink", "staging_dir", staging_dir)
        self._options = dict(options or {})
        self._timeout = seconds_of("KafkaSink", "timeout", timeout)
        try:
            self._record_bytes_max = int(self._options.get("message.max.bytes", DEFAULT_RECORD_BYTES_MAX))
        except ValueError as error:
            raise UsageError(f"KafkaSink options: message.max.bytes: {error}") from None
        self._context = SinkContext("", 0)
        self._staged: _StagedFiles | None = None
        self._producer: PlainProducer | None = None

    @property
    def name(self) -> str:
        """The servers and the topic."""
        return f"kafka://{self._servers}/{self._topic}"

    @property
    def place(self) -> str | None:
        """The servers and the topic."""
        return self.name

    def open(self, context: SinkContext) -> None:
        """See `Sink.open`. Raises ConfigError when there is no such topic, or the brokers don't allow so long a transaction."""
        self.close()
        self._context = context
        cluster = KafkaCluster(self._servers, self._topic, self._timeout, self._options)
        cluster.check_topic()
        is_transactional = self._mode == "transactional"
        if is_transactional or context.transactions or context.finished:  # those of a run with another mode
            prefix = f"{self._prefix or context.job}-{self._topic}"
            folder = self._staging_dir / re.sub(r"[^\w.-]", "_", prefix)
            self._staged = _StagedFiles(folder, Delivery(cluster, prefix, context))
            self._staged.open(context)
        if not is_transactional:
            self.close()
            self._producer = PlainProducer(cluster)

    def write(self, batch: list[Any]) -> None:
        """Send or stage the records."""
        records = [self._record(event) for event in batch]
        if self._staged is not None:
            self._staged.write(records)
            return
        if self._producer is None:
            raise ClosedError(f"the sink to {self.name} is closed")
        self._producer.send(records)

    def _record(self, event: Any) -> Record:
        key = self._key(event) if self._key is not None else None
        value = self._value(event) if self._value is not None else event
        is_tombstone = value is None and self._value is not None
        record = (
            None if key is None else key_bytes(self.name, key),
            None if is_tombstone else value_bytes(self.name, value, is_json=self._value is None),
        )
        size = len(record[0] or b"") + len(record[1] or b"") + RECORD_OVERHEAD_BYTES
        if size > self._record_bytes_max:  # it could be staged, and would then fail every commit
            limit = f"message.max.bytes is {self._record_bytes_max}; options may set another, and so must the topic"
            raise UsageError(f"{self.name}: a record of about {size} bytes can't be written: {limit}")
        return record

    def prepare(self) -> Any:
        """Stage, or have the brokers acknowledge, what was written."""
        if self._staged is not None:
            return self._staged.prepare()
        crashpoints.reach("sink.before-prepare")
        if self._producer is None:
            raise ClosedError(f"the sink to {self.name} is closed")
        self._producer.flush()
        crashpoints.reach("sink.prepared")
        return None

    def snapshot(self) -> Any:
        """That of the staged files."""
        return None if self._staged is None else self._staged.snapshot()

    def commit(self, transaction: Any) -> None:
        """See `Sink.commit`: one Kafka transaction."""
        if self._staged is None:
            raise ClosedError(f"the sink to {self.name} is closed")
        self._staged.commit(transaction)

    def close(self) -> None:
        """Give up what no barrier has come to."""
        if self._staged is not None:
            self._staged.close()
        self._staged = self._producer = None


class _StagedFiles(FileSink):
    """Files of records that are delivered instead of becoming visible. Their names, and who may touch them, are those of parts."""

    def __init__(self, folder: Path, delivery: Delivery):
        super().__init__(folder, encoder=encode_records, if_exists="append")
        self._delivery = delivery
        self._undelivered: list[Any] = []

    def open(self, context: SinkContext) -> None:
        """See `Sink.open`."""
        self._undelivered = []
        if all(snapshot is None for snapshot in context.snapshots.values()):  # of a run with another mode
            context = replace(context, fresh=True, snapshots={})
        super().open(context)
        self._delivery.open()

    def prepare(self) -> dict[str, Any] | None:
        """Name all files that are not delivered: a commit takes those before along, so that they keep their order."""
        transaction = super().prepare()
        if transaction is not None and "parts" in transaction:
            self._undelivered += transaction["parts"]
            transaction |= {"parts": list(self._undelivered), "by": self._delivery.me}
        return transaction

    def is_own(self, transaction: Any) -> bool:
        """See `Sink.is_own`."""
        if not isinstance(transaction, dict) or ("parts" in transaction) != ("by" in transaction):
            return False
        return transaction.keys() <= {"parts", "by", "replaces", "cleans"}

    def _show(self, transaction: Mapping[str, Any]) -> None:
        files = []
        for hidden, name, size in transaction.get("parts", ()):
            match = VISIBLE_NAME.fullmatch(name)
            if match is None:
                raise CorruptionError(f"{self._dir}/{name}", "the checkpoint names a file that no KafkaSink writes")
            files.append((int(match["number"]), hidden, size))
        if not files:
            return
        subtask, token = transaction["by"]
        self._delivery.deliver(subtask, token, lambda done: self._files_behind(done, files), self._folder.fence.check)
        crashpoints.reach("sink.committing")
        if [subtask, token] == self._delivery.me:
            self._undelivered = [part for part in self._undelivered if part[1] > transaction["parts"][-1][1]]
        for _, hidden, size in files:
            path = self._folder.prepared(hidden, size)
            if path is not None:
                path.unlink(missing_ok=True)

    def _files_behind(self, done: int, files: list[tuple[int, str, int]]) -> list[tuple[int, OpenFile]]:
        """Files that come after number `done`, all of which are there."""
        return [
            (number, partial(self._open_staged, number, hidden, size))
            for number, hidden, size in files
            if number > done
        ]

    def _open_staged(self, number: int, hidden: str, size: int) -> IO[bytes]:
        while (path := self._folder.prepared(hidden, size)) is not None:
            try:
                return path.open("rb")
            except FileNotFoundError:  # subtask 0 has just put it under another name
                continue
        self._folder.fence.check()
        raise StagedFileGoneError(str(self._dir / hidden), number)
