"""KafkaSink against brokers in memory that have Kafka's transactions."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException

from statestore.errors import ClosedError, ConfigError, CorruptionError, FencedError, UnavailableError, UsageError
from statestore.testing.clock import FakeClock
from statestore_runtime import SinkContext
from statestore_runtime.sinks import KafkaSink, kafka_delivery
from tests.runtime.fake_kafka import Brokers
from tests.runtime.sink_conformance import JobOfSinks, SinkConformance, numbered


@pytest.fixture
def brokers(monkeypatch):
    brokers = Brokers()
    monkeypatch.setattr(kafka_delivery, "import_kafka", lambda: brokers.driver)
    return brokers


@pytest.fixture
def opened(tmp_path):
    sinks = []

    def open_sink(attempt=1, subtask=0, parallelism=1, **arguments):
        servers = arguments.pop("servers", "nowhere:9092")
        sinks.append(KafkaSink(servers, "out", **{"staging_dir": tmp_path, "timeout": "10s"} | arguments))
        sinks[-1].open(SinkContext("job", attempt, subtask, parallelism))
        return sinks[-1]

    yield open_sink
    for sink in sinks:
        sink.close()


class TestTransactions(SinkConformance):
    @pytest.fixture(autouse=True)
    def cluster(self, tmp_path, brokers, monkeypatch):
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no crash of these takes the page cache with it
        self.brokers = brokers
        self.places = (tmp_path / str(number) for number in itertools.count())

    def new_place(self):
        return next(self.places)

    def make(self, place):
        return KafkaSink("nowhere:9092", place.name, staging_dir=place)

    def output(self, place):
        return sorted(tuple(json.loads(value)) for topic, _, value in self.brokers.committed if topic == place.name)

    def expected(self, events):
        return sorted(events)

    def hidden(self, place):
        return sorted(str(path) for path in place.rglob(".part-*"))

    def lose(self, place, name):
        Path(name).unlink()


def committed(sink, *batches):
    for batch in batches:
        sink.write(batch)
    transaction = sink.prepare()
    sink.commit(transaction)
    return transaction


def values(brokers):
    return [json.loads(value) for _, _, value in brokers.committed]


def test_keys_and_values(opened, brokers):
    committed(opened(key=lambda e: e, value=lambda e: {"b": b"\xff", "c": None, "d": [1]}.get(e, e)), ["a", "b", "c"])
    committed(opened(2, value=lambda e: "text"), [1])
    assert brokers.committed == [
        ("out", b"a", b"a"),
        ("out", b"b", b"\xff"),
        ("out", b"c", None),
        ("out", None, b"text"),
    ]


def test_an_answer_that_did_not_come(opened, brokers):
    """The transaction is committed, and nobody told: the next attempt sees that it is."""
    sink = opened()
    sink.write([1, 2])
    transaction = sink.prepare()

    def lose():
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    brokers.after_commit = lose
    with pytest.raises(UnavailableError, match="whether its records are visible is found out at the next start"):
        sink.commit(transaction)
    brokers.after_commit = lambda: None
    restored = {"fresh": False, "transactions": (transaction,), "snapshots": {0: sink.snapshot()}}
    again = KafkaSink("nowhere:9092", "out", staging_dir=sink._staging_dir)
    again.open(SinkContext("job", 2, **restored))
    assert values(brokers) == [1, 2]
    again.close()


def test_a_subtask_whose_producer_another_one_fences_while_recovering(brokers, tmp_path):
    """Subtask 1 recovers what the old subtask 0 had prepared, when the new subtask 0 is open already."""
    job = JobOfSinks(lambda: KafkaSink("nowhere:9092", "out", staging_dir=tmp_path), numbered(40))
    job.deploy(2)
    for _ in range(2):
        job.process(10)
        job.checkpoint = job.barrier()
    job.checkpoint["transactions"].reverse()
    snapshots = {int(s): snapshot for s, snapshot in job.checkpoint["snapshots"].items()}
    job.attempt, job.position = 2, 20
    job.dead, made = job.sinks, job.make()
    job.sinks, job.uncommitted = [made.for_subtask(n) for n in range(2)], [[], []]
    for number, sink in enumerate(job.sinks):  # each gets what the other one prepared
        transactions = tuple(t for t in job.checkpoint["transactions"] if t["by"][0] != number)
        sink.open(SinkContext("job", 2, number, 2, False, transactions, snapshots))
    assert sorted(values(brokers)) == sorted(map(list, job.events[:20]))
    job.run_to_the_end(10)
    assert sorted(values(brokers)) == sorted(map(list, job.events))
    job.close()


@pytest.mark.parametrize("rounds", [20, 10_000])
def test_a_recovery_that_others_fence_again_and_again(opened, brokers, rounds):
    """As many as there are subtasks may recover what one has prepared; the time is the limit, not a number."""
    sink = opened()
    sink.write([1])
    transaction = sink.prepare()
    left = itertools.count(rounds, -1)

    def fence():
        if next(left) > 0:
            brokers.epochs["job-out-0"] += 1

    brokers.before_commit = fence
    again = KafkaSink("nowhere:9092", "out", staging_dir=sink._staging_dir)
    clock = FakeClock()
    context = SinkContext("job", 2, 1, 2, False, (transaction,), {0: sink.snapshot()}, clock=clock)
    if rounds == 20:
        again.open(context)
        assert values(brokers) == [1]
    else:
        with pytest.raises(FencedError):
            again.open(context)
        assert values(brokers) == []
        assert clock.monotonic() >= 60
    again.close()


def test_a_file_that_another_subtask_writes_and_removes_meanwhile(brokers, opened, monkeypatch):
    """Two subtasks recover two transactions of one: the second has the first one's file too."""
    sink = opened()
    transactions = []
    for event in (1, 2):
        sink.write([event])
        transactions.append(sink.prepare())
    snapshots = {0: sink.snapshot()}
    others = []
    last_written = kafka_delivery.Delivery._last_written

    def overtaken(delivery, token):
        done = last_written(delivery, token)
        if not others:
            others.append(KafkaSink("nowhere:9092", "out", staging_dir=sink._staging_dir))
            others[0].open(SinkContext("job", 2, 2, 3, False, (transactions[1],), snapshots))
        return done

    monkeypatch.setattr(kafka_delivery.Delivery, "_last_written", overtaken)
    again = KafkaSink("nowhere:9092", "out", staging_dir=sink._staging_dir)
    again.open(SinkContext("job", 2, 1, 3, False, (transactions[0],), snapshots))
    assert values(brokers) == [1, 2]


def test_a_zombie_with_a_staging_folder_of_its_own(opened, brokers, tmp_path):
    """On another machine, against the documentation: the brokers fence it."""
    zombie = opened(staging_dir=tmp_path / "here")
    committed(zombie, [1])
    zombie.write([2])
    transaction = zombie.prepare()
    opened(2, staging_dir=tmp_path / "there")
    with pytest.raises(FencedError, match="attempt 1 is fenced"):
        zombie.commit(transaction)
    assert values(brokers) == [1]


def test_a_zombie_whose_place_nobody_takes(brokers, tmp_path):
    job = JobOfSinks(lambda: KafkaSink("nowhere:9092", "out", staging_dir=tmp_path), numbered(40))
    job.deploy(3)
    job.checkpointed(10)
    epochs = dict(brokers.epochs)
    job.deploy(1)
    assert brokers.epochs.keys() == epochs.keys()
    assert all(brokers.epochs[name] > epoch for name, epoch in epochs.items())
    job.close()


def test_a_zombie_that_commits_while_the_next_attempt_opens(opened, brokers):
    """It has begun its transaction, and looked who owns the folder."""
    zombie = opened()
    zombie.write([1])
    transaction = zombie.prepare()
    brokers.before_commit = lambda: (setattr(brokers, "before_commit", lambda: None), opened(2))
    with pytest.raises(FencedError, match="attempt 2 owns"):
        zombie.commit(transaction)
    assert brokers.committed == []


def test_a_checkpoint_folder_that_was_removed_and_an_attempt_counted_anew(opened, brokers, tmp_path):
    committed(opened(staging_dir=tmp_path / "one"), [1])
    committed(opened(staging_dir=tmp_path / "two"), [2])
    assert values(brokers) == [1, 2]


@pytest.mark.parametrize("before", ["transactional", "at-least-once"])
def test_another_mode(opened, brokers, before):
    after = "at-least-once" if before == "transactional" else "transactional"
    sink = opened(mode=before)
    sink.write([1])
    transaction = sink.prepare()
    transactions = () if transaction is None else (transaction,)
    again = KafkaSink("nowhere:9092", "out", mode=after, staging_dir=sink._staging_dir)
    again.open(SinkContext("job", 2, 0, 1, False, transactions, {0: sink.snapshot()}))
    again.write([2])
    transaction = again.prepare()
    if transaction is not None:
        again.commit(transaction)
    again.close()
    assert values(brokers) == [1, 2]


def test_a_staged_file_that_is_gone_behind_one_that_is_there(opened, brokers, tmp_path):
    sink = opened()
    sink.write([1])
    sink.prepare()
    sink.write([2])
    transaction = sink.prepare()
    _, second = sorted(tmp_path.rglob(".part-*"))
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(CorruptionError, match="are gone, and the topic has not got them"):
        sink.commit(transaction)
    assert values(brokers) == []
    second.write_bytes(content)
    sink.commit(transaction)
    assert values(brokers) == [1, 2]


def test_a_file_that_no_sink_writes(opened, brokers):
    sink = opened()
    with pytest.raises(CorruptionError, match="no KafkaSink writes"):
        sink.commit({"parts": [[".x", "../x", 1]], "by": [0, "x"]})


def test_at_least_once_sends_before_the_checkpoint(opened, brokers):
    sink = opened(mode="at-least-once")
    sink.write([1])
    sink.write([2])
    assert (sink.prepare(), sink.snapshot(), values(brokers)) == (None, None, [1, 2])


def test_closed_sinks(opened, brokers):
    for mode in ("transactional", "at-least-once"):
        sink = opened(mode=mode)
        sink.close()
        sink.close()
        for call in (lambda sink=sink: sink.write([1]), sink.prepare, lambda sink=sink: sink.commit({})):
            with pytest.raises(ClosedError):
                call()


@pytest.mark.parametrize("mode", ["transactional", "at-least-once"])
def test_a_full_queue(opened, brokers, mode):
    sink = opened(mode=mode)
    brokers.queue_is_full = [1, 1]
    sink.write([1, 2])
    transaction = sink.prepare()
    if transaction is not None:
        sink.commit(transaction)
    assert values(brokers) == [1, 2]
    assert brokers.queue_is_full == []


@pytest.mark.parametrize("mode", ["transactional", "at-least-once"])
def test_a_record_that_is_not_delivered(opened, brokers, mode):
    sink = opened(mode=mode)
    brokers.record_error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
    with pytest.raises(UnavailableError, match="too large"):
        sink.write([1])
        sink.commit(sink.prepare())
    assert brokers.committed == [] or mode == "at-least-once"


def test_a_topic_that_is_not_there(opened, brokers):
    brokers.topic_error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, "Unknown topic", retriable=False)
    with pytest.raises(ConfigError, match="there is no topic 'out' at nowhere:9092: Unknown topic; create it"):
        opened()


@pytest.mark.parametrize(
    ("code", "kind", "problem"),
    [
        (KafkaError.INVALID_TRANSACTION_TIMEOUT, ConfigError, "the brokers allow no transaction of 10000 ms"),
        (KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, UnavailableError, "kafka unavailable at"),
    ],
)
def test_brokers_that_admit_no_transactions(opened, brokers, code, kind, problem):
    brokers.init_error = KafkaError(code)
    with pytest.raises(kind, match=problem):
        opened()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"key": "user"}, "KafkaSink key must be a function"),
        ({"value": 1}, "KafkaSink value must be a function"),
        ({"mode": "exactly-once"}, "known: transactional, at-least-once"),
        ({"staging_dir": "s3://bucket/staging"}, "staging_dir is 's3://bucket/staging': it must be a folder of a file"),
        ({"timeout": "60"}, "timeout: '60' has no unit"),
        ({"options": {"transactional.id": "x"}}, "options can't have 'transactional.id'"),
        ({"options": {"message.max.bytes": "many"}}, "message.max.bytes: invalid literal"),
    ],
)
def test_arguments_that_can_not_be_served(arguments, problem):
    with pytest.raises(UsageError, match=problem):
        KafkaSink("nowhere:9092", "out", **arguments)


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (object(), "an event can't be written"),
        ("x" * 1_000_000, "a record of about 1000514 bytes can't be written: message.max.bytes is 1000000"),
    ],
)
def test_events_that_can_not_be_written(opened, brokers, event, problem):
    sink = opened()
    with pytest.raises(UsageError, match=problem):
        sink.write([event])
    assert sink.prepare() is None


def test_without_the_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"install the extra 'statestore\[kafka\]'"):
        KafkaSink("nowhere:9092", "out")
