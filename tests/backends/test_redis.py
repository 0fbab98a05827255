"""What a Redis server may do to the state, and what the backend makes of it."""

from __future__ import annotations

import socket
import threading

import pytest
import redis as driver

from statestore import ConfigError, FencedError, UnavailableError
from statestore.backend import BackendContext
from statestore.keys import EntryKeys
from statestore.testing import redis_server
from statestore_backends.redis import RedisBackend
from tests.store.stores import Stores, content, handles

GROUPS = 8
KEYS = [EntryKeys(1, GROUPS).of(f"key-{n}".encode()) for n in range(200)]


@pytest.fixture
def opened():
    backends = []

    def open_backend(url, attempt=1):
        backends.append(RedisBackend.open(BackendContext("job", None, GROUPS, attempt, {"url": url})))
        return backends[-1]

    yield open_backend
    for backend in backends:
        backend.close()


def batch(value):
    return dict.fromkeys(KEYS, value)


@pytest.fixture
def server(tmp_path):
    """A server of the test's own, that it may kill."""
    process, port = redis_server.start(tmp_path)
    yield process, port
    process.kill()
    process.wait()


def test_a_server_that_comes_back_empty(opened, server, tmp_path):
    process, port = server
    url = f"redis://127.0.0.1:{port}/0"
    backend = opened(url)
    backend.apply(batch(b"1"), 5)
    process.kill()
    process.wait()
    with pytest.raises(UnavailableError, match="is the server running"):
        backend.get_many(KEYS[:1])
    again, _ = redis_server.start(tmp_path, port)
    try:
        for work in (
            lambda: backend.get_many(KEYS[:1]),
            lambda: list(backend.scan(b"", None)),
            lambda: backend.apply(batch(b"2"), 6),
        ):
            with pytest.raises(UnavailableError, match="lost or rolled back"):
                work()
        assert opened(url, attempt=2).applied_epoch() == 0
    finally:
        again.kill()
        again.wait()


def test_an_owner_that_comes_in_the_middle_of_a_bulk_load(opened, redis_url, monkeypatch):
    """After the loader has looked for one, and before it writes."""
    zombie, owners = opened(redis_url), []
    zombie.clear(range(GROUPS))
    check = zombie._check_markers

    def checked(*arguments):
        check(*arguments)
        if not owners:
            owners.append(opened(redis_url, attempt=2))
            owners[0].clear(range(GROUPS))

    monkeypatch.setattr(zombie, "_check_markers", checked)
    with pytest.raises(FencedError):
        zombie.bulk_load(iter(sorted(batch(b"zombie").items())))
    assert list(owners[0].scan(b"", None)) == []


@pytest.mark.parametrize("group", [0, 5])
def test_a_single_key_group_that_is_lost(opened, redis_url, group):
    backend = opened(redis_url)
    backend.apply(batch(b"1"), 5)
    with driver.Redis.from_url(redis_url) as client:
        assert client.delete(f"statestore:{{job:{group}}}") == 1
    with pytest.raises(UnavailableError, match="lost or rolled back"):
        backend.get_many(KEYS)
    with pytest.raises(UnavailableError, match="lost or rolled back"):
        backend.apply({}, 6)
    assert opened(redis_url, attempt=2).applied_epoch() == 0


def test_data_that_was_rolled_back(opened, redis_url):
    """A replica that lagged, or a snapshot, took over: owner and data are there, but of an epoch before."""
    backend = opened(redis_url)
    backend.apply(batch(b"1"), 5)
    with driver.Redis.from_url(redis_url) as client:
        before = {key: client.dump(key) for key in client.scan_iter()}
        backend.apply(batch(b"2"), 6)
        for key, value in before.items():
            client.restore(key, 0, value, replace=True)
    with pytest.raises(UnavailableError, match="lost or rolled back"):
        backend.get_many(KEYS[:1])
    assert opened(redis_url, attempt=2).applied_epoch() == 5


def test_a_job_whose_redis_was_flushed_restores_its_state(places, redis_url):
    stores = Stores(places, "state.cache-size=1kb", "state.pending-size=1kb")
    names = [f"key-{n}" for n in range(100)]
    try:
        store = stores.open("redis", "none")
        for name in names:
            store.set_current_key(name)
            handles(store)["value"].update(7)
        store.checkpoint()
        assert store.count_keys() == len(names)  # it is all applied now
        expected = content(store, names)
        with driver.Redis.from_url(redis_url) as client:
            client.flushall()
        with pytest.raises(UnavailableError, match="lost or rolled back"):
            content(store, names)
        stores.crash(store)
        assert content(stores.open("redis"), names) == expected
    finally:
        stores.close()


def test_a_server_that_evicts_is_refused(opened):
    settings = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    refused = pytest.raises(ConfigError, match=r"maxmemory-policy allkeys-lru.*noeviction")
    with redis_server.running(*settings) as url, refused:
        opened(url)


def test_secrets_stay_secret(opened):
    url = f"redis://user:canary@127.0.0.1:{redis_server.free_port()}/0"
    with pytest.raises(UnavailableError) as raised:
        opened(url)
    error: BaseException | None = raised.value
    assert "redis://user:***@127.0.0.1" in str(error)
    while error is not None:
        assert "canary" not in f"{error}{error!r}{vars(error)}"
        error = error.__cause__
    context = BackendContext("job", None, GROUPS, 1, {"url": url})
    assert "canary" not in repr(context)
    with pytest.raises(ConfigError) as refused:
        opened("http://user:canary@localhost")
    assert "canary" not in str(refused.value)


def test_an_older_attempt_neither_reads_nor_writes(opened, redis_url):
    old = opened(redis_url, attempt=1)
    old.apply(batch(b"1"), 1)
    new = opened(redis_url, attempt=2)
    for work in (lambda: old.get_many(KEYS[:1]), lambda: old.apply(batch(b"2"), 2), lambda: old.clear(range(GROUPS))):
        with pytest.raises(FencedError):
            work()
    with pytest.raises(FencedError):
        opened(redis_url, attempt=1)
    assert new.get_many(KEYS[:1]) == [b"1"]
    assert new.applied_epoch() == 1


class CuttingProxy:
    """Passes bytes on to a server, and cuts every connection once so many have gone in a direction."""

    def __init__(self, port):
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.to_server = self.to_client = None
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += (client, server)
            threading.Thread(target=self._pump, args=(client, server, "to_server"), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, "to_client"), daemon=True).start()

    def _pump(self, source, target, direction):
        try:
            while data := source.recv(1 << 16):
                left = getattr(self, direction)
                if left is not None:
                    data = data[:left]
                    setattr(self, direction, left - len(data))
                target.sendall(data)
                if left is not None and left <= len(data):
                    break
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        for end in self._sockets:
            end.close()


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
@pytest.mark.parametrize("passed", [0, 1, 17, 100, 1000, 5000, 9000])
def test_a_connection_that_is_cut(opened, request, redis_url, direction, passed):
    """Whatever was cut off, all of a batch is there with its marker, or nothing."""
    port = int(redis_url.rsplit(":", 1)[1].split("/")[0])
    proxy = CuttingProxy(port)
    request.addfinalizer(proxy.close)
    backend = opened(f"redis://127.0.0.1:{proxy.port}/0")
    backend.apply(batch(b"1"), 1)
    setattr(proxy, direction, passed)
    try:
        backend.apply(batch(b"2"), 2)
        went_through = True
    except UnavailableError:
        went_through = False
    setattr(proxy, direction, None)
    with driver.Redis.from_url(redis_url) as client:
        epochs = {client.hget(f"statestore:{{job:{group}}}", b"\xffepoch") for group in range(GROUPS)}
        stored = [item for group in range(GROUPS) for item in client.hgetall(f"statestore:{{job:{group}}}").items()]
    values = {value for field, value in stored if field in KEYS}
    assert values == epochs
    assert values in ({b"1"}, {b"2"})
    assert values == {b"2"} or not went_through
    backend.apply(batch(b"2"), 2)
    assert (backend.applied_epoch(), set(backend.get_many(KEYS))) == (2, {b"2"})


@pytest.mark.parametrize("lost", ["deleted", "rolled back"])
def test_a_job_that_lost_a_key_group_restores_its_state(places, redis_url, lost):
    stores = Stores(places)
    names = [f"key-{n}" for n in range(300)]
    try:
        store = stores.open("redis", "none")
        with driver.Redis.from_url(redis_url) as client:
            before = {}
            for number in (1, 2):
                for name in names:
                    store.set_current_key(name)
                    handles(store)["value"].update(number)
                store.checkpoint()
                store._applier.finish()
                before = before or {key: client.dump(key) for key in client.scan_iter("*:5}*")}
            expected = content(store, names)
            store.close()
            for key, value in before.items():
                client.delete(key) if lost == "deleted" else client.restore(key, 0, value, replace=True)
        assert content(stores.open("redis"), names) == expected
    finally:
        stores.close()
