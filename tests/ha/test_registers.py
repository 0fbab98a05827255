"""One value with compare-and-swap, in every place that can keep it: the same contract, and what is special to each."""

from __future__ import annotations

import contextlib
import itertools
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import fakeredis
import pytest

from statestore import ConfigError, UnavailableError
from statestore.io import LocalStorage, MemoryStorage, open_storage
from statestore.testing import redis_server
from statestore.testing.redis_server import free_port
from statestore_runtime.ha.redis_register import RedisRegister, connect
from statestore_runtime.ha.storage_register import StorageRegister
from tests.command import environment

BLOCK = 4


@pytest.fixture(params=["memory", "local", "s3", "redis", "fakeredis"])
def another(request, tmp_path):
    """Makes further users of the same register."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        clients = []

        def make():
            clients.append(connect(url, 5.0, "high-availability.url"))
            return RedisRegister(clients[-1], "statestore:{job}:ha:lease", url)

        yield make
        for client in clients:
            client.close()
    elif request.param == "fakeredis":
        server = fakeredis.FakeServer()
        yield lambda: RedisRegister(fakeredis.FakeRedis(server=server), "lease", "fake")
    elif request.param == "memory":
        storage = MemoryStorage()
        yield lambda: StorageRegister(storage, "lease", BLOCK)
    else:
        url = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_url")
        yield lambda: StorageRegister(open_storage(url), "lease", BLOCK)


def test_the_first_value_and_the_next(another):
    register, other = another(), another()
    assert register.read() is None
    assert register.replace(None, b"1")
    assert not other.replace(None, b"2")
    assert other.read() == b"1"
    assert not other.replace(b"0", b"2")
    assert other.replace(b"1", b"2")
    assert not register.replace(b"1", b"3")
    assert register.read() == b"2"
    assert another().read() == b"2"


def test_who_knows_the_value_need_not_read_it(another):
    assert another().replace(None, b"1")
    assert another().replace(b"1", b"2")
    assert not another().replace(b"1", b"3")
    assert another().read() == b"2"


def test_a_long_history_and_whoever_missed_some_of_it(another):
    writer, early, reader = another(), another(), another()
    value = None
    for number in range(40):
        assert writer.replace(value, b"%d" % number)
        value = b"%d" % number
        if number in (0, 3, 4, 17):
            assert reader.read() == value
        if number == 2:
            assert early.read() == value
    assert not early.replace(b"2", b"zombie")
    assert early.read() == reader.read() == another().read() == b"39"
    assert early.replace(b"39", b"40")
    assert writer.read() == b"40"


def test_one_of_several_racing_threads_wins_each_round(another):
    racers = [another() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        value = None
        for round_number in range(10):
            values = [b"%d-%d" % (round_number, number) for number in range(4)]
            won = list(pool.map(lambda racer, new, old=value: racer.replace(old, new), racers, values))
            assert sum(won) == 1
            value = values[won.index(True)]
    assert racers[0].read() == value


# In a storage


class Interrupted(MemoryStorage):
    """Calls `before(kind, name)` before each operation."""

    def __init__(self):
        super().__init__()
        self.before = self.be_quiet
        self.meanwhile, self.has_slept = None, False

    def be_quiet(self, kind, name):
        """Let the operation happen."""

    def sleep_at(self, is_time):
        """Let `meanwhile` happen before the first operation that `is_time(kind, name)` tells."""

        def sleep(kind, name):
            if is_time(kind, name):
                self.before, self.has_slept = self.be_quiet, True
                self.meanwhile()

        self.before = sleep

    def create(self, name, data):
        self.before("create", name)
        super().create(name, data)

    def size(self, name):
        self.before("size", name)
        return super().size(name)

    def read(self, name, start=0, length=None):
        self.before("read", name)
        return super().read(name, start, length)

    def delete(self, name):
        self.before("delete", name)
        super().delete(name)


def write(register, numbers):
    for number in numbers:
        assert register.replace(b"%d" % (number - 1) if number > 1 else None, b"%d" % number)


def test_twice_a_block_of_values_is_kept():
    storage = MemoryStorage()
    write(StorageRegister(storage, "lease", BLOCK), range(1, 31))
    kept = {name for name in storage.objects if "/values/" in name}
    assert kept == {f"lease/values/{number}" for number in range(23, 31)}
    assert [name for name in storage.objects if "/blocks/" in name] == [f"lease/blocks/{n}" for n in range(1, 8)]


@pytest.mark.parametrize("known", range(8))
def test_who_slept_between_looking_and_creating_brings_nothing_back(known):
    """Whatever value it knew, and however many came since: it says that it did not replace it, and nobody ever sees what it wrote."""
    for steps in range(1, 21):
        storage = Interrupted()
        writer, sleeper = (StorageRegister(storage, "lease", BLOCK) for _ in range(2))
        write(writer, range(1, known + 1))
        value = b"%d" % known if known else None
        assert sleeper.read() == value
        storage.sleep_at(lambda kind, name: kind == "create" and "/values/" in name)
        storage.meanwhile = partial(write, writer, range(known + 1, known + 1 + steps))
        assert not sleeper.replace(value, b"zombie")
        readers = writer, sleeper, StorageRegister(storage, "lease", BLOCK)
        assert [reader.read() for reader in readers] == [b"%d" % (known + steps)] * 3
        assert b"zombie" not in storage.objects.values()


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("known", range(8))
def test_who_slept_while_looking_sees_nothing_older_than_what_was_there_before(known, at):
    for steps in range(1, 21):
        storage = Interrupted()
        writer, sleeper = (StorageRegister(storage, "lease", BLOCK) for _ in range(2))
        write(writer, range(1, known + 1))
        assert sleeper.read() == (b"%d" % known if known else None)
        write(writer, range(known + 1, 8))
        countdown = itertools.count(at, -1)
        storage.sleep_at(lambda kind, name, countdown=countdown: next(countdown) == 0)
        storage.meanwhile = partial(write, writer, range(8, 8 + steps))
        seen = int(sleeper.read())
        storage.before = storage.be_quiet
        newest = 7 + steps if storage.has_slept else 7
        assert 7 <= seen <= newest
        assert sleeper.replace(b"%d" % seen, b"mine") == (seen == newest)
        assert sleeper.read() == (b"mine" if seen == newest else b"%d" % newest)


def test_a_dead_ones_leftover_deceives_nobody():
    """Created by one that slept, and that died before it could remove it."""
    storage = MemoryStorage()
    writer, sleeper = (StorageRegister(storage, "lease", BLOCK) for _ in range(2))
    write(writer, range(1, 6))
    assert sleeper.read() == b"5"
    write(writer, range(6, 31))
    storage.create("lease/values/6", b"zombie")
    assert sleeper.read() == b"30"
    assert StorageRegister(storage, "lease", BLOCK).read() == b"30"


def test_an_emptied_folder_ends_what_was_and_begins_anew():
    storage = MemoryStorage()
    leader, standby = (StorageRegister(storage, "lease", BLOCK) for _ in range(2))
    write(leader, range(1, 11))
    assert standby.read() == b"10"
    storage.objects.clear()
    with pytest.raises(UnavailableError, match=r"its newest value is gone.*emptied"):
        leader.replace(b"10", b"11")
    assert leader.read() is None
    assert leader.replace(None, b"anew")
    with pytest.raises(UnavailableError, match="gone"):
        standby.replace(b"10", b"11")
    assert standby.read() == b"anew"


@pytest.mark.parametrize("seed", range(100))
def test_histories_in_which_every_operation_may_fail(seed):
    """Whatever failed before or after it had an effect: what replaced something forms one chain, each built on what it replaced."""
    chance = random.Random(seed)
    storage = Interrupted()
    users = [StorageRegister(storage, "lease", BLOCK) for _ in range(3)]
    built_on: dict[bytes, bytes | None] = {}

    def trouble(kind, name):
        if chance.random() < 0.1:
            if kind == "create" and "/values/" in name and chance.random() < 0.5:
                with contextlib.suppress(FileExistsError):
                    MemoryStorage.create(storage, name, value)  # only the answer is lost
            raise UnavailableError("storage", "here", "trouble")

    for number in range(80):
        user, value = chance.choice(users), b"%d" % number
        storage.before = trouble
        with contextlib.suppress(UnavailableError):
            seen = user.read()
            built_on[value] = seen if chance.random() < 0.9 else chance.choice([None, *built_on])
            if not user.replace(built_on[value], value):
                del built_on[value]
        storage.before = storage.be_quiet
        if chance.random() < 0.05:
            users[chance.randrange(3)] = StorageRegister(storage, "lease", BLOCK)
    newest = {user.read() for user in [*users, StorageRegister(storage, "lease", BLOCK)]}
    assert len(newest) == 1
    chain, held = [], newest.pop()
    while held is not None:
        chain.append(held)
        held = built_on[held]
    assert len(chain) > 5
    assert chain == sorted(chain, key=int, reverse=True)


def test_errors_of_the_operating_system_are_ours(tmp_path, monkeypatch):
    register = StorageRegister(LocalStorage(tmp_path), "lease")
    assert register.replace(None, b"1")

    def broken(self, name):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalStorage, "size", broken)
    with pytest.raises(UnavailableError, match="Input/output error"):
        register.read()
    with pytest.raises(UnavailableError, match="Input/output error"):
        register.replace(b"1", b"2")


RACER = """
import sys
from statestore.io import open_storage
from statestore_runtime.ha.storage_register import StorageRegister

name, url = sys.argv[1:]
register = StorageRegister(open_storage(url), "lease", 4)
for line in sys.stdin:
    if line == "read\\n":
        held = register.read()
        print("read", flush=True)
    else:
        print("won" if register.replace(held, f"{name} {line}".encode()) else "lost", flush=True)
"""


@pytest.mark.parametrize(("kind", "count", "rounds"), [("local", 8, 20), ("s3", 4, 4)])
def test_one_of_several_racing_processes_wins_each_round(kind, count, rounds, tmp_path, request):
    url = str(tmp_path) if kind == "local" else request.getfixturevalue("s3_url")
    pipes = {"env": environment(), "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(number), url], **pipes) for number in range(count)]

    def all_do(line):
        for racer in racers:
            racer.stdin.write(f"{line}\n")
            racer.stdin.flush()
        return [racer.stdout.readline().strip() for racer in racers]

    try:
        register = StorageRegister(open_storage(url), "lease", BLOCK)
        for number in range(rounds):
            assert all_do("read") == ["read"] * count
            answers = all_do(number)
            assert sorted(answers) == ["lost"] * (count - 1) + ["won"], answers
            assert register.read() == f"{answers.index('won')} {number}\n".encode()
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


# In Redis


def test_a_server_that_evicts_is_refused():
    with (
        redis_server.running("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as url,
        pytest.raises(ConfigError, match="allkeys-lru, which would throw the lease away"),
    ):
        connect(url, 5.0, "high-availability.url")


def test_a_server_that_is_not_there():
    url = f"redis://:canary@127.0.0.1:{free_port()}/0"
    with pytest.raises(UnavailableError, match="is the server running") as raised:
        connect(url, 5.0, "high-availability.url")
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://:canary@host/0", "redis://:canary@host:port/0"])
def test_a_bad_url(url):
    with pytest.raises(ConfigError, match=r"high-availability\.url") as raised:
        connect(url, 5.0, "high-availability.url")
    assert "canary" not in str(raised.value)


def test_a_repeated_replacement_has_one_effect(redis_url):
    """As when the driver sends it again because the answer was lost."""
    client = connect(redis_url, 5.0, "high-availability.url")
    register = RedisRegister(client, "lease", redis_url)
    assert register.replace(None, b"1")
    assert register.replace(None, b"1")
    assert register.replace(b"1", b"2")
    assert not register.replace(None, b"1")
    client.close()


def test_a_server_that_dies(tmp_path):
    process, port = redis_server.start(tmp_path)
    client = connect(f"redis://127.0.0.1:{port}/0", 2.0, "high-availability.url")
    register = RedisRegister(client, "lease", "server")
    assert register.replace(None, b"1")
    process.kill()
    process.wait()
    with pytest.raises(UnavailableError, match="redis unavailable at server"):
        register.read()
    with pytest.raises(UnavailableError):
        register.replace(b"1", b"2")
    client.close()
