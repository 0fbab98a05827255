"""Redis Streams as a source, on a real server and on fakeredis."""

from __future__ import annotations

import functools
import itertools
import json
import uuid

import fakeredis
import msgspec
import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from statestore.errors import ConfigError, UnavailableError, UsageError
from statestore.testing import redis_server
from statestore_runtime.sources import BadRecordError, RedisStreamSource, SourceContext
from tests.runtime.source_reading import Reading, check_every_cut, read, stopped, until_bad


class Order(msgspec.Struct, frozen=True):
    id: int
    city: str = ""


@pytest.fixture(params=["server", "fake"])
def client(request, monkeypatch):
    """A client; sources connect to the same server."""
    if request.param == "server":
        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            yield client
        return
    server = fakeredis.FakeServer()
    monkeypatch.setattr(redis.Redis, "from_url", lambda url, **options: fakeredis.FakeRedis(server=server))
    with fakeredis.FakeRedis(server=server) as client:
        yield client


@pytest.fixture
def source(request, client):
    """Makes a source of the client's server."""
    url = request.getfixturevalue("redis_url") if isinstance(client, redis.Redis) else "redis://127.0.0.1:6379/0"
    return functools.partial(RedisStreamSource, url)


def add(client, stream, *numbers):
    for number in numbers:
        client.xadd(stream, {"n": number}, id=f"{number}-1")


def numbers(events):
    return [int(event["n"]) for event in events]


def some(reading, most=100):
    """What there is just now."""
    return numbers(itertools.chain(*itertools.takewhile(bool, (reading.next_batch() for _ in range(most)))))


# Reading


def test_fields_and_json(client, source):
    client.xadd("a", {"id": "7", "city": "rome"})
    client.xadd("a", {"id": "8"})
    client.xadd("b", {"data": '{"id": 9}', "other": b"\xff"})
    assert read(source("a", bounded=True)) == [{"id": "7", "city": "rome"}, {"id": "8"}]
    assert read(source("a", bounded=True, type=Order)) == [Order(7, "rome"), Order(8)]
    assert read(source("b", bounded=True, type=Order, field="data")) == [Order(9)]
    assert read(source("b", bounded=True, field="data")) == [{"id": 9}]


def test_every_cut(client, source):
    add(client, "s", *range(1, 8))
    expected = read(source("s", bounded=True))
    assert numbers(expected) == list(range(1, 8))
    check_every_cut(functools.partial(source, "s", bounded=True), expected)


def test_streams_are_splits(client, source):
    add(client, "a", 1, 2)
    add(client, "b", 3)
    both = source(["b", "a"], bounded=True)
    assert both.discover([]) == ["b", "a"]
    assert both.discover(["b"]) == ["a"]
    assert both.is_concurrent
    assert sorted(numbers(read(both))) == [1, 2, 3]
    assert both.name == "redis stream b, a"


def test_a_bounded_stream_ends_where_it_did_when_reading_began(client, source):
    add(client, "s", 1, 2, 3)
    position, batches = stopped(source("s", bounded=True, batch_size=2), 1)
    add(client, "s", 4)
    assert numbers(batches[0] + read(source("s", bounded=True), position)) == [1, 2, 3]
    assert numbers(read(source("s", bounded=True))) == [1, 2, 3, 4]


def test_a_bounded_stream_whose_last_entry_was_deleted(client, source):
    add(client, "s", 1, 2)
    client.xdel("s", "2-1")
    assert numbers(read(source("s", bounded=True))) == [1]
    client.xdel("s", "1-1")
    assert read(source("s", bounded=True)) == []


def test_a_stream_that_grows(client, source):
    reading = Reading(source("s"))  # it need not be there yet
    assert some(reading) == []
    add(client, "s", 1, 2)
    assert (some(reading), some(reading)) == ([1, 2], [])
    position = json.loads(json.dumps(reading.position()))
    add(client, "s", 3)
    assert some(reading) == [3]
    reading.close()
    reading = Reading(source("s"), position)
    assert some(reading) == [3]
    reading.close()


@pytest.mark.parametrize("is_there", [True, False])
def test_from_now_on(client, source, is_there):
    add(client, "s", *[1, 2] if is_there else [])
    reading = Reading(source("s", start="latest"))
    position = reading.position()  # before anything was read, as the first checkpoint has it
    reading.close()
    add(client, "s", 3)
    reading = Reading(source("s", start="latest"), position)
    assert some(reading) == [3]
    reading.close()


def test_waiting_for_an_entry(client, source):
    add(client, "s", 1)
    reading = Reading(source("s", block_seconds=0.001))
    assert (some(reading), some(reading)) == ([1], [])
    add(client, "s", 2)
    assert some(reading) == [2]
    reading.close()


def test_waiting_ends_when_an_entry_comes(redis_url, monkeypatch):
    """The entry comes while the server waits, of a thread of the server's own client."""
    client = redis.Redis.from_url(redis_url)
    whole = redis.Redis.xread

    def xread(self, *arguments, **options):
        add(client, "s", 5)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(redis.Redis, "xread", xread)
    reading = Reading(RedisStreamSource(redis_url, "s", block_seconds=60))
    assert numbers(reading.next_batch()) == [5]
    reading.close()
    client.close()


# Trimmed streams


def test_a_stream_that_was_trimmed_behind_the_position(client, source):
    add(client, "s", *range(1, 7))
    position, batches = stopped(source("s", batch_size=4), 1)
    assert numbers(batches[0]) == [1, 2, 3, 4]
    client.xtrim("s", maxlen=2, approximate=False)
    reading = Reading(source("s"), position)
    assert some(reading) == [5, 6]
    client.xtrim("s", maxlen=0, approximate=False)
    assert some(reading) == []
    add(client, "s", 7)
    assert some(reading) == [7]
    reading.close()


@pytest.mark.parametrize("is_restored", [True, False])
def test_a_stream_that_was_trimmed_past_the_position(client, source, is_restored):
    add(client, "s", *range(1, 7))
    reading = Reading(source("s", batch_size=2))
    assert numbers(reading.next_batch()) == [1, 2]
    client.xtrim("s", maxlen=3, approximate=False)
    if is_restored:
        position = reading.position()
        reading.close()
        reading = Reading(source("s"), position)
    with pytest.raises(
        UsageError, match=r"stream 's' was trimmed .*1 entries after id 2-1 and before id 4-1 are gone.*--restore none"
    ):
        reading.next_batch()
    client.xtrim("s", maxlen=0, approximate=False)
    with pytest.raises(UsageError, match="4 entries after id 2-1 and before the end are gone"):
        reading.next_batch()
    reading.close()


def test_a_stream_that_is_trimmed_before_the_first_entry_was_read(client, source):
    add(client, "s", 1, 2, 3, 4)
    client.xtrim("s", maxlen=3, approximate=False)  # before the job: not its loss
    reading = Reading(source("s"))
    position = reading.position()
    client.xtrim("s", maxlen=1, approximate=False)
    with pytest.raises(UsageError, match="2 entries after id 0-0 and before id 4-1 are gone"):
        reading.next_batch()
    reading.close()
    assert position["splits"]["s"]["index"] == 1


def test_deleting_single_entries_is_no_trimming(client, source):
    add(client, "s", *range(1, 9))
    client.xdel("s", "2-1")
    reading = Reading(source("s", batch_size=3))
    assert numbers(reading.next_batch()) == [1, 3, 4]
    client.xdel("s", "4-1")  # the position; those before and after are there
    assert some(reading) == [5, 6, 7, 8]
    client.xtrim(
        "s", maxlen=0, approximate=False
    )  # all that was read, in a stream of which we counted less than the server
    add(client, "s", 9)
    assert some(reading) == [9]
    reading.close()


def test_a_server_that_does_not_count(client, source, monkeypatch):
    """As before Redis 7: when the entry at the position is gone it can't be told what else is."""
    whole = redis.client.Pipeline.execute

    def execute(self, *arguments, **options):
        return [
            {name: value for name, value in answer.items() if name != "entries-added"}
            if isinstance(answer, dict)
            else answer
            for answer in whole(self, *arguments, **options)
        ]

    monkeypatch.setattr(redis.client.Pipeline, "execute", execute)
    add(client, "s", *range(1, 5))
    reading = Reading(source("s", batch_size=2))
    assert some(reading) == [1, 2, 3, 4]
    client.xtrim("s", maxlen=0, approximate=False)
    assert some(reading) == []
    reading.close()
    add(client, "s", 5, 6)
    reading = Reading(source("s", batch_size=1, start="earliest"))
    assert numbers(reading.next_batch()) == [5]
    client.xtrim("s", maxlen=1, approximate=False)
    with pytest.raises(UsageError, match="entries after id 5-1 and before id 6-1 may be gone"):
        reading.next_batch()
    reading.close()


def test_a_stream_that_is_gone_or_made_anew(client, source):
    add(client, "s", 5, 6)
    position, _ = stopped(source("s"), 1)
    client.delete("s")
    for is_begun in (True, False):
        with pytest.raises(UsageError, match=r"stream 's' is not there any more, the position is id 6-1"):
            Reading(source("s"), position)
        if is_begun:
            add(client, "s", 1)
            with pytest.raises(UsageError, match=r"made anew: its last id is 1-1, the position is id 6-1"):
                Reading(source("s"), position)
            client.delete("s")
    add(client, "s", 7)
    with pytest.raises(UsageError, match=r"made anew: its last id is 7-1"):
        Reading(source("s"), position)


def test_a_stream_that_goes_while_it_is_read(client, source):
    add(client, "s", 1)
    reading = Reading(source("s"))
    assert some(reading) == [1]
    client.delete("s")
    with pytest.raises(UsageError, match="not there any more"):
        reading.next_batch()
    reading.close()


class TrimmedStream(RuleBasedStateMachine):
    """Whatever is added, read and trimmed in which order: an entry that was trimmed unread is an error, and nothing else is."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        server = fakeredis.FakeServer()
        self.patch.setattr(redis.Redis, "from_url", lambda url, **options: fakeredis.FakeRedis(server=server))
        self.client = fakeredis.FakeRedis(server=server)
        self.added = self.kept_from = self.read = 0
        self.reading = None

    @initialize(before=st.integers(0, 4), trimmed=st.integers(0, 4))
    def begin(self, before, trimmed):
        add(self.client, "s", 1)
        self.client.xtrim("s", maxlen=0, approximate=False)
        self.added = self.kept_from = 1
        self.add(before)
        self.trim(trimmed)
        self.read = self.kept_from
        self.reading = Reading(RedisStreamSource("redis://fake", "s", batch_size=2))

    @rule(count=st.integers(1, 4))
    def add(self, count):
        add(self.client, "s", *range(self.added + 1, self.added + count + 1))
        self.added += count

    @rule(length=st.integers(0, 4))
    def trim(self, length):
        self.client.xtrim("s", maxlen=length, approximate=False)
        self.kept_from = max(self.kept_from, self.added - length)

    @rule()
    def begin_again(self):
        position = json.loads(json.dumps(self.reading.position()))
        self.reading.close()
        if self.is_lost:  # seen at once, or with the first batch
            with pytest.raises(UsageError, match="was trimmed before it was read"):
                Reading(RedisStreamSource("redis://fake", "s", batch_size=2), position).next_batch()
        self.reading = Reading(RedisStreamSource("redis://fake", "s", batch_size=2), position)

    @property
    def is_lost(self):
        return self.kept_from > self.read

    @rule()
    def take(self):
        if self.is_lost:
            with pytest.raises(UsageError, match=f"{self.kept_from - self.read} entries after .* are gone"):
                self.reading.next_batch()
            return
        expected = list(range(self.read + 1, min(self.read + 2, self.added) + 1))
        assert numbers(self.reading.next_batch()) == expected
        self.read += len(expected)

    def teardown(self):
        if self.reading is not None:
            self.reading.close()
        self.client.close()
        self.patch.undo()


TrimmedStream.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
test_any_order_of_reading_and_trimming = TrimmedStream.TestCase


# What can't be read


@pytest.mark.parametrize("batch_size", [1, 100])
def test_bad_entries(client, source, batch_size):
    for number, fields in enumerate([{"id": 1}, {"id": "x"}, {"city": "a"}, {"id": 2, "city": b"\xff"}, {"id": 3}], 1):
        client.xadd("s", fields, id=f"{number}-0")
    make = functools.partial(source, "s", type=Order, bounded=True, batch_size=batch_size)
    with pytest.raises(BadRecordError, match=r"in redis stream s, id 2-0: Expected `int`, got `str`") as caught:
        read(make())
    assert (caught.value.unit, caught.value.number, caught.value.text) == ("id", "2-0", '{"id":"x"}')
    events, position = until_bad(make())
    assert events + read(make(), position, SourceContext("skip")) == [Order(1), Order(3)]
    letters = []
    context = SourceContext("dead-letter", letters.extend)
    assert read(make(), context=context) == [Order(1), Order(3)]
    assert [(letter.source, letter.id) for letter in letters] == [("redis stream s", f"{n}-0") for n in (2, 3, 4)]
    assert letters[2].text == '{"id":"2","city":"\\\\xff"}'


def test_bad_json(client, source):
    client.xadd("s", {"data": "{"}, id="1-0")
    client.xadd("s", {"dat": "1"}, id="2-0")
    context = SourceContext("dead-letter", (letters := []).extend)
    assert read(source("s", field="data", bounded=True), context=context) == []
    assert [letter.error for letter in letters] == ["Input data was truncated", "it has no field 'data'"]


def test_keys_that_are_no_stream(client, source):
    client.set("s", "text")
    with pytest.raises(ConfigError, match=r"the key 's' at redis.* is no stream"):
        Reading(source("s"))
    with pytest.raises(ConfigError, match="there is no stream 'none'"):
        Reading(source("none", bounded=True))


def test_a_server_that_does_not_answer():
    url = f"redis://user:secret@127.0.0.1:{redis_server.free_port()}/0"
    source = RedisStreamSource(url, "s")
    with pytest.raises(UnavailableError, match="redis unavailable") as caught:
        Reading(source)
    source.close()
    assert "secret" not in str(caught.value)
    assert "secret" not in source.name


def test_a_connection_that_is_lost(redis_url, monkeypatch):
    with redis.Redis.from_url(redis_url) as client:
        stream = uuid.uuid4().hex
        add(client, stream, 1, 2, 3)
        reading = Reading(RedisStreamSource(redis_url, stream, batch_size=1))
        assert numbers(reading.next_batch()) == [1]
        client.client_kill_filter(skipme=True)
        assert some(reading) == [2, 3], "reading can be tried again"
        reading.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RedisStreamSource("http://host", "s"),
        lambda: RedisStreamSource("redis://host", []),
        lambda: RedisStreamSource("redis://host", ["s", "s"]),
        lambda: RedisStreamSource("redis://host", "s", start="middle"),
        lambda: RedisStreamSource("redis://host", "s", batch_size=0),
        lambda: RedisStreamSource("redis://host", "s", block_seconds=-1),
        lambda: RedisStreamSource("redis://host", "s", on_error="ignore"),
    ],
)
def test_wrong_arguments(make):
    with pytest.raises((UsageError, ConfigError)):
        make()
