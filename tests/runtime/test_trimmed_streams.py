"""Redis Streams that lose entries while they are a source, on a real server and on fakeredis."""

from __future__ import annotations

import json

import fakeredis
import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from statestore.errors import UsageError
from statestore_runtime.sources import RedisStreamSource
from tests.runtime.source_reading import Reading, stopped
from tests.runtime.stream_reading import add, numbers, some


def test_a_stream_that_was_trimmed_behind_the_position(stream_client, stream_source):
    add(stream_client, "s", *range(1, 7))
    position, batches = stopped(stream_source("s", batch_size=4), 1)
    assert numbers(batches[0]) == [1, 2, 3, 4]
    stream_client.xtrim("s", maxlen=2, approximate=False)
    reading = Reading(stream_source("s"), position)
    assert some(reading) == [5, 6]
    stream_client.xtrim("s", maxlen=0, approximate=False)
    assert some(reading) == []
    add(stream_client, "s", 7)
    assert some(reading) == [7]
    reading.close()


@pytest.mark.parametrize("is_restored", [True, False])
def test_a_stream_that_was_trimmed_past_the_position(stream_client, stream_source, is_restored):
    add(stream_client, "s", *range(1, 7))
    reading = Reading(stream_source("s", batch_size=2))
    assert numbers(reading.next_batch()) == [1, 2]
    stream_client.xtrim("s", maxlen=3, approximate=False)
    if is_restored:
        position = reading.position()
        reading.close()
        reading = Reading(stream_source("s"), position)
    with pytest.raises(
        UsageError, match=r"stream 's' was trimmed .*1 entries after id 2-1 and before id 4-1 are gone.*--restore none"
    ):
        reading.next_batch()
    stream_client.xtrim("s", maxlen=0, approximate=False)
    with pytest.raises(UsageError, match="4 entries after id 2-1 and before the end are gone"):
        reading.next_batch()
    reading.close()


def test_a_stream_that_is_trimmed_before_the_first_entry_was_read(stream_client, stream_source):
    add(stream_client, "s", 1, 2, 3, 4)
    stream_client.xtrim("s", maxlen=3, approximate=False)  # before the job: not its loss
    reading = Reading(stream_source("s"))
    position = reading.position()
    stream_client.xtrim("s", maxlen=1, approximate=False)
    with pytest.raises(UsageError, match="2 entries after id 0-0 and before id 4-1 are gone"):
        reading.next_batch()
    reading.close()
    assert position["splits"]["s"]["index"] == 1


def test_deleting_single_entries_is_no_trimming(stream_client, stream_source):
    add(stream_client, "s", *range(1, 9))
    stream_client.xdel("s", "2-1")
    reading = Reading(stream_source("s", batch_size=3))
    assert numbers(reading.next_batch()) == [1, 3, 4]
    stream_client.xdel("s", "4-1")  # the position; those before and after are there
    assert some(reading) == [5, 6, 7, 8]
    stream_client.xtrim(
        "s", maxlen=0, approximate=False
    )  # all that was read, in a stream of which we counted less than the server
    add(stream_client, "s", 9)
    assert some(reading) == [9]
    reading.close()


def test_a_server_that_does_not_count(stream_client, stream_source, monkeypatch):
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
    add(stream_client, "s", *range(1, 5))
    reading = Reading(stream_source("s", batch_size=2))
    assert some(reading) == [1, 2, 3, 4]
    stream_client.xtrim("s", maxlen=0, approximate=False)
    assert some(reading) == []
    reading.close()
    add(stream_client, "s", 5, 6)
    reading = Reading(stream_source("s", batch_size=1, start="earliest"))
    assert numbers(reading.next_batch()) == [5]
    stream_client.xtrim("s", maxlen=1, approximate=False)
    with pytest.raises(UsageError, match="entries after id 5-1 and before id 6-1 may be gone"):
        reading.next_batch()
    reading.close()


def test_a_stream_that_is_gone_or_made_anew(stream_client, stream_source):
    add(stream_client, "s", 5, 6)
    position, _ = stopped(stream_source("s"), 1)
    stream_client.delete("s")
    for is_begun in (True, False):
        with pytest.raises(UsageError, match=r"stream 's' is not there any more, the position is id 6-1"):
            Reading(stream_source("s"), position)
        if is_begun:
            add(stream_client, "s", 1)
            with pytest.raises(UsageError, match=r"made anew: its last id is 1-1, the position is id 6-1"):
                Reading(stream_source("s"), position)
            stream_client.delete("s")
    add(stream_client, "s", 7)
    with pytest.raises(UsageError, match=r"made anew: its last id is 7-1"):
        Reading(stream_source("s"), position)


def test_a_stream_that_goes_while_it_is_read(stream_client, stream_source):
    add(stream_client, "s", 1)
    reading = Reading(stream_source("s"))
    assert some(reading) == [1]
    stream_client.delete("s")
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
