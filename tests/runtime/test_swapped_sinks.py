"""Sinks that find what another kind of sink has left under their uid: never taken for their own, never passed over in silence."""

from __future__ import annotations

import itertools
import json

import pytest

from statestore.errors import IncompatibleStateError
from statestore_runtime import CallableSink, CollectSink, FileSink, PrintSink, SinkContext
from statestore_runtime.sinks import KafkaSink, RedisSink, RedisStreamSink, kafka_delivery
from tests.runtime.fake_kafka import Brokers

KINDS = ("collect", "file", "kafka", "redis", "stream")


@pytest.fixture
def make(tmp_path, redis_url, monkeypatch):
    driver, numbers, sinks = Brokers().driver, itertools.count(), []
    monkeypatch.setattr(kafka_delivery, "import_kafka", lambda: driver)
    makers = {
        "collect": lambda name: CollectSink(),
        "file": lambda name: FileSink(tmp_path / name),
        "kafka": lambda name: KafkaSink("nowhere:9092", name, staging_dir=tmp_path),
        "kafka-plain": lambda name: KafkaSink("nowhere:9092", name, staging_dir=tmp_path, mode="at-least-once"),
        "redis": lambda name: RedisSink(redis_url, key=str, hash=name, mode="transactional"),
        "redis-plain": lambda name: RedisSink(redis_url, key=str, hash=name),
        "stream": lambda name: RedisStreamSink(redis_url, name),
        "function": lambda name: CallableSink(str),
        "print": lambda name: PrintSink(),
    }

    def make_sink(kind):
        sinks.append(makers[kind](f"out-{next(numbers)}"))
        return sinks[-1]

    yield make_sink
    for sink in sinks:
        sink.close()


def prepared(sink):
    """Transaction and snapshot of a sink, as a checkpoint has them."""
    sink.open(SinkContext("job", 1))
    sink.write([1])
    return json.loads(json.dumps([sink.prepare(), sink.snapshot()]))


OTHERS = [
    (before, after)
    for before in KINDS
    for after in (*KINDS, "kafka-plain", "redis-plain", "function", "print")
    if before != after.partition("-")[0] and {before, after.partition("-")[0]} != {"redis", "stream"}
]


@pytest.mark.parametrize(("before", "after"), OTHERS)
def test_a_restored_transaction_of_another_sink_is_refused(make, before, after):
    transaction, snapshot = prepared(make(before))
    context = SinkContext("job", 2, fresh=False, transactions=(transaction,), snapshots={0: snapshot})
    with pytest.raises(IncompatibleStateError, match=r"another sink has this sink's uid: .*--restore none"):
        make(after).open(context)


@pytest.mark.parametrize(("before", "after"), OTHERS)
def test_the_last_output_of_the_run_before_hinders_nobody(make, before, after, caplog):
    transaction, _ = prepared(make(before))
    make(after).open(SinkContext("job", 2, finished=(transaction,)))
    assert "was another sink's" in caplog.text


@pytest.mark.parametrize("after", ["redis", "redis-plain", "stream"])
def test_a_transaction_with_something_in_common(make, after):
    """FileSink's and the Redis sinks' may clean up."""
    transaction, snapshot = prepared(make("file"))
    context = SinkContext("job", 2, fresh=False, transactions=(transaction | {"cleans": 1},), snapshots={0: snapshot})
    with pytest.raises(IncompatibleStateError):
        make(after).open(context)
