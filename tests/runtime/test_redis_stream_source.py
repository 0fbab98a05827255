"""Redis Streams as a source, on a real server and on fakeredis."""

from __future__ import annotations

import functools
import json
import uuid

import msgspec
import pytest
import redis

from statestore.errors import ConfigError, UnavailableError, UsageError
from statestore.testing import redis_server
from statestore_runtime.sources import BadRecordError, RedisStreamSource, SourceContext
from tests.runtime.source_reading import Reading, check_every_cut, read, stopped, until_bad
from tests.runtime.stream_reading import add, numbers, some


class Order(msgspec.Struct, frozen=True):
    id: int
    city: str = ""


def test_fields_and_json(stream_client, stream_source):
    stream_client.xadd("a", {"id": "7", "city": "rome"})
    stream_client.xadd("a", {"id": "8"})
    stream_client.xadd("b", {"data": '{"id": 9}', "other": b"\xff"})
    assert read(stream_source("a", bounded=True)) == [{"id": "7", "city": "rome"}, {"id": "8"}]
    assert read(stream_source("a", bounded=True, type=Order)) == [Order(7, "rome"), Order(8)]
    assert read(stream_source("b", bounded=True, type=Order, field="data")) == [Order(9)]
    assert read(stream_source("b", bounded=True, field="data")) == [{"id": 9}]


def test_every_cut(stream_client, stream_source):
    add(stream_client, "s", *range(1, 8))
    expected = read(stream_source("s", bounded=True))
    assert numbers(expected) == list(range(1, 8))
    check_every_cut(functools.partial(stream_source, "s", bounded=True), expected)


def test_streams_are_splits(stream_client, stream_source):
    add(stream_client, "a", 1, 2)
    add(stream_client, "b", 3)
    both = stream_source(["b", "a"], bounded=True)
    assert both.discover([]) == ["b", "a"]
    assert both.discover(["b"]) == ["a"]
    assert both.is_concurrent
    assert sorted(numbers(read(both))) == [1, 2, 3]
    assert both.name == "redis stream b, a"


def test_a_bounded_stream_ends_where_it_did_when_reading_began(stream_client, stream_source):
    add(stream_client, "s", 1, 2, 3)
    position, batches = stopped(stream_source("s", bounded=True, batch_size=2), 1)
    add(stream_client, "s", 4)
    assert numbers(batches[0] + read(stream_source("s", bounded=True), position)) == [1, 2, 3]
    assert numbers(read(stream_source("s", bounded=True))) == [1, 2, 3, 4]


def test_a_bounded_stream_whose_last_entry_was_deleted(stream_client, stream_source):
    add(stream_client, "s", 1, 2)
    stream_client.xdel("s", "2-1")
    assert numbers(read(stream_source("s", bounded=True))) == [1]
    stream_client.xdel("s", "1-1")
    assert read(stream_source("s", bounded=True)) == []


def test_a_stream_that_grows(stream_client, stream_source):
    reading = Reading(stream_source("s"))  # it need not be there yet
    assert some(reading) == []
    add(stream_client, "s", 1, 2)
    assert (some(reading), some(reading)) == ([1, 2], [])
    position = json.loads(json.dumps(reading.position()))
    add(stream_client, "s", 3)
    assert some(reading) == [3]
    reading.close()
    reading = Reading(stream_source("s"), position)
    assert some(reading) == [3]
    reading.close()


@pytest.mark.parametrize("is_there", [True, False])
def test_from_now_on(stream_client, stream_source, is_there):
    add(stream_client, "s", *[1, 2] if is_there else [])
    reading = Reading(stream_source("s", start="latest"))
    position = reading.position()  # before anything was read, as the first checkpoint has it
    reading.close()
    add(stream_client, "s", 3)
    reading = Reading(stream_source("s", start="latest"), position)
    assert some(reading) == [3]
    reading.close()


def test_waiting_for_an_entry(stream_client, stream_source):
    add(stream_client, "s", 1)
    reading = Reading(stream_source("s", block_seconds=0.001))
    assert (some(reading), some(reading)) == ([1], [])
    add(stream_client, "s", 2)
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


# What can't be read


@pytest.mark.parametrize("batch_size", [1, 100])
def test_bad_entries(stream_client, stream_source, batch_size):
    for number, fields in enumerate([{"id": 1}, {"id": "x"}, {"city": "a"}, {"id": 2, "city": b"\xff"}, {"id": 3}], 1):
        stream_client.xadd("s", fields, id=f"{number}-0")
    make = functools.partial(stream_source, "s", type=Order, bounded=True, batch_size=batch_size)
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


def test_bad_json(stream_client, stream_source):
    stream_client.xadd("s", {"data": "{"}, id="1-0")
    stream_client.xadd("s", {"dat": "1"}, id="2-0")
    context = SourceContext("dead-letter", (letters := []).extend)
    assert read(stream_source("s", field="data", bounded=True), context=context) == []
    assert [letter.error for letter in letters] == ["Input data was truncated", "it has no field 'data'"]


def test_keys_that_are_no_stream(stream_client, stream_source):
    stream_client.set("s", "text")
    with pytest.raises(ConfigError, match=r"the key 's' at redis.* is no stream"):
        Reading(stream_source("s"))
    with pytest.raises(ConfigError, match="there is no stream 'none'"):
        Reading(stream_source("none", bounded=True))


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
