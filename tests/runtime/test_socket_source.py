"""Lines from a connection, which can't be read again."""

from __future__ import annotations

import socket

import msgspec
import pytest

from statestore.errors import UnavailableError, UsageError
from statestore.testing import redis_server
from statestore_runtime.sources import BadRecordError, SocketSource, SourceContext, sockets
from tests.runtime.source_reading import Reading


class Click(msgspec.Struct, frozen=True):
    user: str


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def connect(listener):
    """Makes a reading and the other end of its connection."""
    begun = []

    def connect(position=None, context=None, **options):
        reading = Reading(SocketSource(*listener.getsockname(), **options), position, context)
        peer, _ = listener.accept()
        begun.extend((reading, peer))
        return reading, peer

    yield connect
    for end in begun:
        end.close()


def wait_for(reading, count):
    """So many events; loopback delivers what was sent, so that there is an end."""
    events = []
    while len(events) < count:
        events += reading.next_batch()
    return events


def rest(reading):
    """All to the end of the connection."""
    events = []
    while (batch := reading.next_batch()) is not None:
        events += batch
    return events


def test_lines(connect):
    reading, peer = connect()
    assert reading.next_batch() == []
    peer.sendall("a\r\nb\nç".encode()[:-1])
    assert wait_for(reading, 2) == ["a", "b"]
    assert reading.next_batch() == []
    peer.sendall("ç".encode()[-1:] + b"\n\nlast")
    peer.close()
    assert rest(reading) == ["ç", "", "last"]


def test_batches_and_positions(connect):
    reading, peer = connect(batch_size=2)
    peer.sendall(b"1\n2\n3\n")
    peer.close()
    batches = []
    while (batch := reading.next_batch()) is not None:
        batches += [batch] if batch else []
    assert [event for batch in batches for event in batch] == ["1", "2", "3"]
    assert max(map(len, batches)) <= 2


def test_json_of_a_type(connect):
    context = SourceContext("dead-letter", (letters := []).extend)
    reading, peer = connect(type=Click, context=context)
    peer.sendall(b'{"user":"a"}\n\n{"user":1}\n{"user":"b"}\r\n')
    peer.close()
    assert rest(reading) == [Click("a"), Click("b")]
    assert [(letter.line, letter.text) for letter in letters] == [(3, '{"user":1}')]


def test_lines_that_are_no_text(connect):
    reading, peer = connect()
    peer.sendall(b"a\n\xff\n")
    peer.close()
    with pytest.raises(BadRecordError, match=r"bad record in socket 127\.0\.0\.1:\d+, line 2: .*utf-8"):
        rest(reading)


def test_it_does_not_go_on_from_a_checkpoint_unasked(connect):
    reading, peer = connect()
    peer.sendall(b"1\n2\n")
    assert wait_for(reading, 2) == ["1", "2"]
    position = reading.position()
    assert position["splits"] == {"0/1": 2}
    with pytest.raises(UsageError, match=r"can't be read again: what came after line 2 is lost; .*allow_loss=True"):
        connect(position)
    reading, peer = connect(position, allow_loss=True)
    peer.sendall(b"3\n")
    assert wait_for(reading, 1) == ["3"]
    assert reading.position()["splits"] == {"0/1": 3}


def test_nothing_listens():
    port = redis_server.free_port()
    with pytest.raises(
        UnavailableError, match=rf"source unavailable at socket 127\.0\.0\.1:{port}: Connection refused"
    ):
        Reading(SocketSource("127.0.0.1", port))


def test_a_connection_that_is_cut(connect):
    reading, peer = connect()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # so that closing it resets it
    peer.close()
    with pytest.raises(UnavailableError, match="Connection reset"):
        rest(reading)


def test_a_line_without_an_end(connect, monkeypatch):
    monkeypatch.setattr(sockets, "LINE_MAX_BYTES", 1000)
    reading, peer = connect()
    peer.sendall(b"x" * 2000)
    with pytest.raises(UnavailableError, match="no line ends within 1000 bytes"):
        rest(reading)


def test_names():
    assert SocketSource("localhost", 9999).name == "socket localhost:9999"
    with pytest.raises(UsageError):
        SocketSource("localhost", 9999, batch_size=0)
