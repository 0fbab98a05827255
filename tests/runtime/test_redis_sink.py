"""Redis sinks against a real server: staged at the barrier, visible with the checkpoint, by the newest attempt only."""

from __future__ import annotations

import itertools
import json
import os
import signal
from contextlib import contextmanager

import fakeredis
import pytest
import redis as driver

from statestore.errors import (
    ClosedError,
    ConfigError,
    CorruptionError,
    FencedError,
    UnavailableError,
    UsageError,
)
from statestore.testing import redis_server
from statestore_runtime import SinkContext
from statestore_runtime.sinks import RedisSink, RedisStreamSink, redis_staging
from tests.runtime.sink_conformance import JobOfSinks, SinkConformance, numbered

HASH = "totals"


@pytest.fixture
def client(redis_url):
    with driver.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def opened(redis_url):
    sinks = []

    def open_sink(kind=RedisSink, attempt=1, subtask=0, **arguments):
        if kind is RedisSink:
            arguments = {"key": lambda event: event[0], "value": lambda event: event[1]} | arguments
        sinks.append(kind(redis_url, **arguments))
        sinks[-1].open(SinkContext("job", attempt, subtask, 2))
        return sinks[-1]

    yield open_sink
    for sink in sinks:
        sink.close()


def committed(sink, *batches):
    for batch in batches:
        sink.write(batch)
    transaction = sink.prepare()
    if transaction is not None:
        sink.commit(transaction)


class RedisSinkConformance(SinkConformance):
    @pytest.fixture(autouse=True)
    def server(self, redis_url, client):
        self.url, self.client = redis_url, client
        self.places = (f"place-{number}" for number in itertools.count())

    def new_place(self):
        return next(self.places)

    def hidden(self, place):
        return sorted(f"{key.decode()}" for key in self.client.keys(f"statestore:sink:*{place}*:*:*:*"))

    def lose(self, place, name):
        assert self.client.delete(name) == 1


class Upserts:
    def expected(self, events):
        return dict(events)


class TestHash(Upserts, RedisSinkConformance):
    def make(self, place):
        return RedisSink(self.url, key=lambda e: e[0], value=lambda e: e[1], mode="transactional", hash=place)

    def output(self, place):
        return {int(key): int(value) for key, value in self.client.hgetall(place).items()}


class TestKeys(Upserts, RedisSinkConformance):
    def make(self, place):
        return RedisSink(self.url, key=lambda e: e[0], value=lambda e: e[1], mode="transactional", prefix=f"{place}:")

    def output(self, place):
        return {int(key.decode().split(":")[1]): int(self.client.get(key)) for key in self.client.keys(f"{place}:*")}


class TestStream(RedisSinkConformance):
    def make(self, place):
        return RedisStreamSink(self.url, place)

    def output(self, place):
        return sorted(tuple(json.loads(fields[b"data"])) for _, fields in self.client.xrange(place))

    def expected(self, events):
        return sorted(events)


class TestStreamWithoutServer(TestStream):
    """As far as fakeredis goes."""

    @pytest.fixture(autouse=True)
    def server(self, monkeypatch):
        server = fakeredis.FakeServer()
        monkeypatch.setattr(redis_staging, "connect", lambda url, timeout: fakeredis.FakeRedis(server=server))
        self.url, self.client = "redis://nowhere", fakeredis.FakeRedis(server=server)
        self.places = (f"place-{number}" for number in itertools.count())


# RedisSink: what it writes


@pytest.mark.parametrize("mode", ["idempotent", "transactional"])
@pytest.mark.parametrize("is_hash", [True, False])
def test_values(opened, client, mode, is_hash):
    where = {"hash": HASH} if is_hash else {"prefix": "p:"}
    events = [("a", "text"), (b"b", b"\x00\xff"), (3, 4), (1.5, {"x": [None]}), ("gone", 1), ("", "")]
    committed(opened(mode=mode, **where), events, [("gone", None), ("a", "newest"), ("never", None)])
    expected = {b"a": b"newest", b"b": b"\x00\xff", b"3": b"4", b"1.5": b'{"x":[null]}', b"": b""}
    found = client.hgetall(HASH) if is_hash else {key[2:]: client.get(key) for key in client.keys("p:*")}
    assert found == expected
    assert client.keys("*staged*") == []


def test_the_event_itself_is_the_value_by_default(opened, client):
    committed(opened(hash=HASH, value=None), [("a", 1)])
    assert client.hget(HASH, "a") == b'["a",1]'


def test_values_removed_in_a_later_transaction(opened, client):
    sink = opened(hash=HASH, mode="transactional")
    committed(sink, [("a", 1), ("b", 2)])
    committed(sink, [("a", None)])
    assert client.hgetall(HASH) == {b"b": b"2"}


def test_idempotent_values_are_there_before_the_checkpoint(opened, client):
    sink = opened(hash=HASH)
    sink.write([("a", 1)])
    assert client.hgetall(HASH) == {}
    assert sink.prepare() is None
    assert client.hgetall(HASH) == {b"a": b"1"}


@pytest.mark.parametrize("mode", ["idempotent", "transactional"])
def test_many_values_do_not_wait_in_memory(opened, client, mode, monkeypatch):
    sink = opened(hash=HASH, mode=mode)
    sink.write([(n, n) for n in range(redis_staging.STAGE_ENTRIES + 1)])
    assert len(sink._waiting) == 1
    sink.write([("large", "x" * redis_staging.STAGE_BYTES)])
    assert len(sink._waiting) == 0
    committed(sink)
    assert client.hlen(HASH) == redis_staging.STAGE_ENTRIES + 2


@pytest.mark.parametrize("where", [{"hash": HASH}, {"prefix": ""}])
def test_an_idempotent_zombie_changes_nothing(opened, client, where):
    zombie = opened(**where)
    zombie.write([("a", "old")])
    committed(opened(attempt=2, **where), [("a", "new")])
    with pytest.raises(FencedError, match=r"attempt 1 is fenced.*attempt 2 owns"):
        zombie.prepare()
    assert (client.hget(HASH, "a") if where.get("hash") else client.get("a")) == b"new"


# RedisStreamSink: what it writes


def test_fields_of_an_entry(opened, client):
    sink = opened(RedisStreamSink, stream="s", fields=lambda event: {"k": event, "raw": b"\xff", "j": {"n": 1}})
    committed(sink, ["a", "b"])
    assert [fields for _, fields in client.xrange("s")] == [
        {b"k": key, b"raw": b"\xff", b"j": b'{"n":1}'} for key in (b"a", b"b")
    ]


def test_entries_stay_in_order_in_many_pages(opened, client):
    numbers = list(range(4500))
    committed(opened(RedisStreamSink, stream="s"), numbers[:3000], numbers[3000:])
    assert [int(fields[b"data"]) for _, fields in client.xrange("s")] == numbers


def test_a_stream_of_a_greatest_length(opened, client):
    committed(opened(RedisStreamSink, stream="s", maxlen=100), list(range(3000)))
    assert 100 <= client.xlen("s") < 1000
    assert client.xrevrange("s", count=1)[0][1] == {b"data": b"2999"}


@pytest.mark.parametrize("kind", ["hash", "stream"])
def test_staging_that_is_repeated(opened, client, kind):
    """As the driver does when the connection breaks before the answer."""
    sink = opened(mode="transactional", hash="out") if kind == "hash" else opened(RedisStreamSink, stream="out")
    evaluate = sink._client.eval
    sink._client.eval = lambda *arguments: (evaluate(*arguments), evaluate(*arguments))[1]
    committed(sink, [("a", 1), ("b", 2)])
    committed(sink, [("c", 3)])
    assert (client.hlen("out") if kind == "hash" else client.xlen("out")) == 3


@pytest.mark.parametrize("kind", ["hash", "idempotent", "stream"])
def test_scripts_that_arrive_once_more_behind_others(opened, client, kind):
    """As from a connection that was given up, when the network delivers late what had been sent over it."""
    modes = {"hash": "transactional", "idempotent": "idempotent"}
    late, evaluate = [], driver.Redis.eval

    def evaluated(self, *arguments):
        late.append(arguments)
        return evaluate(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver.Redis, "eval", evaluated)
        sink = opened(RedisStreamSink, stream="out") if kind == "stream" else opened(mode=modes[kind], hash="out")
        committed(sink, [("a", 1), ("b", 1)])
        sink.write([("a", 2)])
        transaction = sink.prepare()

    def state():
        return client.xrange("out") if kind == "stream" else client.hgetall("out")

    before = state()
    for arguments in late:
        client.eval(*arguments)
    assert state() == before
    if transaction is not None:
        sink.commit(transaction)
    if kind == "stream":
        assert [json.loads(fields[b"data"]) for _, fields in state()] == [["a", 1], ["b", 1], ["a", 2]]
    else:
        assert state() == {b"a": b"2", b"b": b"1"}


@pytest.mark.parametrize("kind", ["hash", "stream"])
def test_a_target_that_is_something_else(client, redis_url, kind):
    client.set("out", "text")
    sink = RedisSink(redis_url, key=str, hash="out") if kind == "hash" else RedisStreamSink(redis_url, "out")
    with pytest.raises(ConfigError, match=f"'out' at redis:.* is a string, and no {kind}; give the sink another name"):
        sink.open(SinkContext("job", 1))
    sink.close()


# Servers


@pytest.mark.parametrize("moment", ["prepare", "commit"])
def test_a_server_that_lost_its_data(opened, client, moment):
    sink = opened(RedisStreamSink, stream="s")
    sink.write([1])
    if moment == "commit":
        transaction = sink.prepare()
    client.flushall()
    with pytest.raises(UnavailableError, match="its data was lost"):
        sink.prepare() if moment == "prepare" else sink.commit(transaction)
    if moment == "commit":
        again = RedisStreamSink(sink._url, "s")
        with pytest.raises(CorruptionError, match="is gone from the server"):
            again.open(SinkContext("job", 2, fresh=False, transactions=(transaction,)))
        again.close()


def test_the_last_output_of_a_finished_run_on_a_server_that_was_emptied(opened, client, redis_url, caplog):
    sink = opened(RedisStreamSink, stream="s")
    sink.write([1])
    finished = sink.prepare()
    client.flushall()
    again = RedisStreamSink(redis_url, "s")
    again.open(SinkContext("job", 1, finished=(finished,)))
    committed(again, [2])
    again.close()
    assert "the last output of the run before" in caplog.text
    assert client.xlen("s") == 1


def test_a_commit_without_an_answer(tmp_path):
    process, port = redis_server.start(tmp_path)
    sink = RedisStreamSink(f"redis://127.0.0.1:{port}", "s", socket_timeout="500ms")
    sink.open(SinkContext("job", 1))
    sink.write([1])
    transaction = sink.prepare()
    process.kill()
    process.wait()
    with pytest.raises(UnavailableError, match="is the server running"):
        sink.commit(transaction)
    sink.close()


def test_no_server():
    sink = RedisSink(f"redis://user:secret@127.0.0.1:{redis_server.free_port()}", key=str)
    with pytest.raises(UnavailableError) as raised:
        sink.open(SinkContext("job", 1))
    assert "secret" not in str(raised.value)
    assert "secret" not in sink.place


def test_a_server_that_evicts(opened):
    with redis_server.running("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as url:
        with pytest.raises(ConfigError, match="maxmemory-policy allkeys-lru"):
            RedisStreamSink(url, "s").open(SinkContext("job", 1))
        sink = RedisSink(url, key=str)
        sink.open(SinkContext("job", 1))
        sink.close()


@pytest.mark.parametrize(("before", "after"), [("transactional", "idempotent"), ("idempotent", "transactional")])
def test_another_mode(opened, client, redis_url, before, after):
    sink = opened(mode=before, hash=HASH)
    sink.write([("a", 1)])
    transaction = sink.prepare()
    again = RedisSink(redis_url, key=lambda e: e[0], value=lambda e: e[1], mode=after, hash=HASH)
    again.open(SinkContext("job", 2, 0, 1, False, (transaction,) if transaction else (), {0: None}))
    assert client.hgetall(HASH) == {b"a": b"1"}
    again.close()


def test_closed_sinks(opened):
    sink = opened(hash=HASH)
    sink.close()
    sink.close()
    sink.write([("a", 1)])
    with pytest.raises(ClosedError):
        sink.prepare()


@contextmanager
def cluster():
    """A cluster of one node, which insists on one slot for the keys of a script as any does."""
    options = ("--cluster-enabled", "yes", "--cluster-port", str(redis_server.free_port()))
    with redis_server.running(*options) as url, driver.Redis.from_url(url) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while client.cluster("info")["cluster_state"] != "ok":
            pass
        yield url.removesuffix("/0").replace("redis://", "redis+cluster://"), client


def test_a_cluster():
    with cluster() as (url, client):
        sinks = [
            RedisStreamSink(url, "s"),
            RedisSink(url, key=str, mode="transactional", hash="h"),
            RedisSink(url, key=str, mode="transactional", prefix="{k}:"),
            RedisSink(url, key=str, hash="i"),
            RedisSink(url, key=str, prefix="{j}:"),
        ]
        for sink in sinks:
            job = JobOfSinks(lambda sink=sink: sink, numbered(10))
            job.deploy(2)
            job.process(5)
            job.checkpoint = job.barrier()
            job.deploy(1)
            job.run_to_the_end(5)
            job.close()
        assert client.xlen("s") == client.hlen("h") == client.hlen("i") == 10
        assert len(client.keys("{k}:*")) == len(client.keys("{j}:*")) == 10
        process_id = client.info("server")["process_id"]
        os.kill(process_id, signal.SIGKILL)
        with pytest.raises(UnavailableError):
            RedisStreamSink(url, "s").open(SinkContext("job", 9))


# Arguments


@pytest.mark.parametrize(
    ("kind", "arguments", "problem"),
    [
        (
            RedisSink,
            {"key": str, "url": "redis+cluster://host", "prefix": "p:"},
            "takes a hash, or a prefix with braces",
        ),
        (RedisSink, {"key": "user"}, "RedisSink key must be a function of an event, not str"),
        (RedisSink, {"key": str, "value": 1}, "value must be a function"),
        (RedisSink, {"key": str, "mode": "exactly-once"}, "known: idempotent, transactional"),
        (RedisSink, {"key": str, "hash": "h", "prefix": "p"}, "a hash or a prefix, not both"),
        (RedisSink, {"key": str, "socket_timeout": "5"}, "socket_timeout: '5' has no unit"),
        (RedisStreamSink, {"stream": "s", "maxlen": 0}, "maxlen is 0"),
        (RedisStreamSink, {"stream": "s", "fields": {}}, "fields must be a function"),
    ],
)
def test_arguments_that_can_not_be_served(kind, arguments, problem):
    with pytest.raises(UsageError, match=problem):
        kind(**{"url": "redis://127.0.0.1"} | arguments)


def test_a_url_that_is_none(opened):
    with pytest.raises(ConfigError, match="redis://host:6379/0"):
        RedisSink("http://:secret@host", key=str).open(SinkContext("job", 1))


@pytest.mark.parametrize(
    ("kind", "arguments", "event", "problem"),
    [
        (RedisSink, {"hash": HASH}, (None, 1), "totals: a key must be text, bytes or a number, not NoneType"),
        (RedisSink, {"hash": HASH}, (True, 1), "not bool"),
        (RedisSink, {"hash": HASH}, ("a", object()), "an event can't be written"),
        (RedisSink, {"hash": HASH, "value": None}, ("a", object()), "an event can't be written"),
        (RedisStreamSink, {"stream": "s"}, object(), "an event can't be written"),
        (RedisStreamSink, {"stream": "s", "fields": lambda event: {}}, 1, "a dict of 1 to 1000, not {}"),
        (RedisStreamSink, {"stream": "s", "fields": lambda event: [1]}, 1, "a dict of 1 to 1000"),
    ],
)
def test_events_that_can_not_be_written(opened, kind, arguments, event, problem):
    sink = opened(kind, **arguments)
    with pytest.raises(UsageError, match=problem):
        sink.write([event])
