"""What is encrypted opens only whole, unchanged, in its place, and with its key."""

from __future__ import annotations

import base64
import logging
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore import ConfigError, CorruptionError, EncryptionKeyError
from statestore.backend import Batch
from statestore.io import (
    NO_KEYS,
    EncryptedAppendStorage,
    EncryptedStorage,
    Keyring,
    MemoryStorage,
    keyring,
    load_keyring,
    open_storage,
    sealing,
)
from statestore.testing.clock import FakeClock
from statestore.ttl import Times
from statestore.wal.log import Log, segment_name
from statestore.wal.record import Columns, CommitRecord

OLD, NEW = Keyring([b"o" * 32]), Keyring([b"n" * 32])
BOTH = Keyring([b"n" * 32, b"o" * 32])
CHUNK = sealing.CHUNK_BYTES
STORED = sealing.STORED_CHUNK_BYTES
HEAD = sealing.HEADER_BYTES


@pytest.fixture
def inner():
    return MemoryStorage("mem")


@pytest.fixture
def storage(inner):
    return EncryptedStorage(inner, NEW)


# Objects written whole


def test_nothing_of_the_content_shows(inner, storage):
    storage.write("x", b"canary" * 100)
    storage.create("y", b"canary" * 100)
    assert all(b"canary" not in data for data in inner.objects.values())
    assert inner.objects["x"][HEAD:] != inner.objects["y"][HEAD:]  # the same content twice does not look the same


@pytest.mark.parametrize("size", [0, 1, 100])
def test_every_flipped_bit_is_noticed(inner, storage, size):
    storage.write("x", b"x" * size)
    stored = inner.objects["x"]
    for position in range(len(stored)):
        for bit in (1, 128):
            damaged = bytearray(stored)
            damaged[position] ^= bit
            inner.objects["x"] = bytes(damaged)
            for read in (lambda: storage.read("x"), lambda: EncryptedStorage(inner, NEW).read("x", 1, 5)):
                with pytest.raises(CorruptionError, match="mem/x at byte"):
                    read()


def test_every_length_that_is_too_short_is_noticed(inner, storage):
    storage.write("x", b"x" * 300)
    stored = inner.objects["x"]
    for length in range(len(stored)):
        inner.objects["x"] = stored[:length]
        with pytest.raises(CorruptionError, match="mem/x"):
            storage.read("x")
    inner.objects["x"] = stored + b"\0"
    with pytest.raises(CorruptionError, match="mem/x"):
        storage.read("x")


@pytest.mark.parametrize("chunks", [[0, 1], [0, 2, 1, 3], [0, 1, 1, 2, 3], [1, 2, 3], [0, 1, 3]])
def test_chunks_stay_where_they_are(inner, storage, chunks):
    storage.write("x", random.Random(1).randbytes(3 * CHUNK + 10))
    stored = inner.objects["x"]
    parts = [stored[HEAD + n * STORED : HEAD + (n + 1) * STORED] for n in range(4)]
    inner.objects["x"] = stored[:HEAD] + b"".join(parts[n] for n in chunks)
    with pytest.raises(CorruptionError, match="mem/x at byte"):
        storage.read("x")


def test_chunks_and_objects_of_others_do_not_open(inner, storage):
    for name in ("folder/x", "folder/y"):
        storage.write(name, b"z" * 1000)
    x, y = inner.objects["folder/x"], inner.objects["folder/y"]
    for wrong in (y, x[:HEAD] + y[HEAD:], y[:HEAD] + x[HEAD:]):
        inner.objects["folder/x"] = wrong
        with pytest.raises(CorruptionError):
            storage.read("folder/x")
    inner.objects["moved/x"] = x  # a folder may be renamed, or copied to another place
    assert storage.read("moved/x") == b"z" * 1000


def test_an_appended_object_is_no_whole_one(inner):
    storage = EncryptedAppendStorage(inner, NEW)
    appender = storage.appender("x")
    appender.write(b"content")
    changed = bytearray(inner.objects["x"])
    changed[len(sealing.MAGIC) + 1] = sealing.WHOLE
    inner.objects["x"] = bytes(changed)
    with pytest.raises(CorruptionError):
        storage.read("x")


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 3 * CHUNK), data=st.data())
def test_any_range(size, data):
    content = random.Random(size).randbytes(size)
    storage = EncryptedStorage(MemoryStorage("mem"), NEW)
    storage.write("x", content)
    assert storage.size("x") == size
    for _ in range(5):
        start = data.draw(st.integers(0, size + 10))
        length = data.draw(st.none() | st.integers(0, size + 10))
        assert storage.read("x", start, length) == content[start : None if length is None else start + length]


class Counting(MemoryStorage):
    """Counts requests and bytes."""

    def __init__(self):
        super().__init__("mem")
        self.requests, self.bytes = 0, 0

    def read(self, name, start=0, length=None):
        data = super().read(name, start, length)
        self.requests, self.bytes = self.requests + 1, self.bytes + len(data)
        return data

    def size(self, name):
        self.requests += 1
        return super().size(name)

    def cost(self, work):
        self.requests = self.bytes = 0
        work()
        return self.requests, self.bytes


def test_ranges_and_sizes_are_cheap():
    inner = Counting()
    EncryptedStorage(inner, NEW).write("x", bytes(100 * CHUNK))
    storage = EncryptedStorage(inner, NEW)
    assert inner.cost(lambda: storage.size("x")) == (1, 0)
    assert inner.cost(lambda: storage.read("x", 50 * CHUNK, CHUNK)) == (2, HEAD + STORED + 1)
    assert inner.cost(lambda: storage.read("x", 70 * CHUNK + 5, 10)) == (1, STORED + 1)
    assert inner.cost(lambda: storage.read("x", 0, 8)) == (1, HEAD + STORED + 1)
    assert inner.cost(lambda: storage.read("x"))[0] == 1


def test_an_object_that_was_replaced_is_read_anew(inner, storage):
    storage.write("x", b"a" * 2 * CHUNK)
    assert storage.read("x", CHUNK, 1) == b"a"
    EncryptedStorage(inner, NEW).write("x", b"b" * 2 * CHUNK)
    assert storage.read("x", CHUNK, 1) == b"b"


def test_a_storage_that_returns_too_little(inner, storage, monkeypatch):
    storage.write("x", b"x" * 3 * CHUNK)
    read = inner.read
    monkeypatch.setattr(inner, "read", lambda *arguments: read(*arguments)[:-1])
    with pytest.raises(CorruptionError):
        storage.read("x")
    with pytest.raises(CorruptionError):
        storage.read("x", 0, CHUNK)


# Appended objects


@pytest.fixture
def log(inner):
    """Storage, content, and where its three frames end in it and in what is stored."""
    storage = EncryptedAppendStorage(inner, NEW)
    appender, stored, whole = storage.appender("log"), [HEAD], [0]
    for piece in (b"first", b"the second", b"the third and last"):
        appender.write(piece)
        stored.append(len(inner.objects["log"]))
        whole.append(whole[-1] + len(piece))
    return storage, storage.read("log"), list(zip(stored, whole, strict=True))


def test_an_interrupted_write_is_left_out_at_every_length(inner, log, caplog):
    storage, content, ends = log
    full = inner.objects["log"]
    stored_ends = [end for end, _ in ends]
    for length in range(len(full) + 1):
        whole = max((size for end, size in ends if end <= length), default=0)
        inner.objects["log"] = full[:length]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert storage.read("log") == content[:whole]
        told = [record for record in caplog.records if record.name == "statestore.io"]
        assert bool(told) == (length > HEAD and length not in stored_ends)
        if length in (0, *range(HEAD, len(full) + 1)):  # a file system may have grown the file before its data
            inner.objects["log"] = full[:length] + bytes(64)
            assert storage.read("log") == content[:whole]


def test_every_flipped_bit_in_a_log_is_noticed(inner, log):
    storage, _, ends = log
    full = inner.objects["log"]
    for position in range(len(full)):
        damaged = bytearray(full)
        damaged[position] ^= 1
        inner.objects["log"] = bytes(damaged)
        with pytest.raises(CorruptionError, match="mem/log") as caught:
            storage.read("log")
        frame_starts = [0, *(end for end, _ in ends)]
        assert caught.value.offset in frame_starts or position < HEAD
        assert caught.value.offset <= position or position < HEAD


def test_frames_stay_where_they_are(inner, log):
    storage, _, ends = log
    full, (a, b, c, d) = inner.objects["log"], [end for end, _ in ends]
    for wrong in (full[:a] + full[b:], full[:a] + full[b:c] + full[a:b] + full[c:], full[:b] + full[a:d]):
        inner.objects["log"] = wrong
        with pytest.raises(CorruptionError, match="mem/log"):
            storage.read("log")


def test_writes_larger_than_a_frame(inner, monkeypatch):
    monkeypatch.setattr("statestore.io.encrypted.FRAME_MAX_BYTES", 10)
    storage = EncryptedAppendStorage(inner, NEW)
    storage.appender("log").write(b"0123456789" * 3 + b"x")
    assert storage.read("log") == b"0123456789" * 3 + b"x"


def batch(epoch) -> Batch:
    return {b"\0\0key-%d" % n: b"value %d" % epoch for n in range(epoch)}


def written(storage, epochs):
    log = Log(storage, "job", 8, FakeClock())
    log.recover()
    log.begin(attempt=1, epoch=0, sequence=1, previous="")
    for epoch in range(1, epochs + 1):
        log.append(Columns.of(batch(epoch)), epoch, CommitRecord({}, Times()))
    log.close()


def replayed(storage):
    log = Log(storage, "job", 8, FakeClock())
    log.recover()
    return [(group.epoch, dict(item for part in group.entries() for item in part.items())) for group in log.groups(0)]


def test_a_torn_log_is_recovered_to_its_last_whole_commit(inner):
    storage = EncryptedAppendStorage(inner, NEW)
    written(storage, 4)
    name, lengths = segment_name(1), set()
    full = inner.objects[name]
    for length in range(len(full) + 1):
        inner.objects[name] = full[:length]
        found = replayed(storage)
        lengths.add(len(found))
        assert found == [(epoch, batch(epoch)) for epoch in range(1, len(found) + 1)]
        assert replayed(storage) == found  # what was cut off stays off
        inner.objects.pop(name, None)
    assert lengths == {0, 1, 2, 3, 4}


# Keys


def test_a_key_that_is_not_there_is_named(inner, storage):
    append = EncryptedAppendStorage(inner, NEW)
    storage.write("x", b"x" * 100)
    append.appender("log").write(b"x")
    for keys, parts in (
        (OLD, [NEW.ids[0], OLD.ids[0], "previous-key-files"]),
        (NO_KEYS, [NEW.ids[0], "no key is configured", "encryption.key-file"]),
    ):
        for read in (
            lambda keys=keys: EncryptedStorage(inner, keys).read("x"),
            lambda keys=keys: EncryptedStorage(inner, keys).read("x", 0, 8),
            lambda keys=keys: EncryptedAppendStorage(inner, keys).read("x"),
            lambda keys=keys: EncryptedAppendStorage(inner, keys).read("log"),
        ):
            with pytest.raises(EncryptionKeyError) as caught:
                read()
            assert caught.value.key_id == NEW.ids[0]
            assert all(part in str(caught.value) for part in ["mem/", *parts])


def test_what_is_not_encrypted_is_read_only_when_allowed(inner, storage):
    inner.write("x", b"plain")
    inner.appender("log").write(b"plain")
    for read in (
        lambda: storage.read("x"),
        lambda: storage.read("x", 2),
        lambda: EncryptedAppendStorage(inner, NEW).read("log"),
    ):
        with pytest.raises(EncryptionKeyError, match=r"mem/.* is not encrypted.*allow-plaintext") as caught:
            read()
        assert caught.value.key_id is None
    lenient = Keyring([b"n" * 32], allow_plaintext=True)
    for allowed in (EncryptedStorage(inner, lenient), EncryptedAppendStorage(inner, lenient)):
        assert [allowed.read("x"), allowed.read("x", 1, 2), allowed.read("log"), allowed.size("x")] == [
            b"plain",
            b"la",
            b"plain",
            5,
        ]
    EncryptedStorage(inner, lenient).write("y", b"sealed")
    assert storage.read("y") == b"sealed"


def test_old_keys_are_read_and_the_newest_is_written(inner):
    EncryptedStorage(inner, OLD).write("x", b"x")
    rotated = EncryptedStorage(inner, BOTH)
    assert rotated.read("x") == b"x"
    rotated.write("y", b"y")
    assert [rotated.key_id(name) for name in "xy"] == [OLD.ids[0], NEW.ids[0]]
    assert EncryptedStorage(inner, NO_KEYS).key_id("y") == NEW.ids[0]
    assert EncryptedStorage(inner, NEW).read("y") == b"y"


def loaded(environ=(), **options):
    defaults = {"key_file": None, "key_env": None, "previous_key_files": (), "previous_key_envs": ()}
    return load_keyring(**{**defaults, "allow_plaintext": False, **options}, environ=dict(environ))


@pytest.mark.parametrize(
    "form",
    [
        bytes,
        lambda key: key.hex().encode() + b"\n",
        lambda key: key.hex().upper().encode(),
        lambda key: base64.b64encode(key) + b"\n",
        lambda key: base64.urlsafe_b64encode(key).rstrip(b"="),
    ],
)
def test_forms_of_a_key(tmp_path, form):
    key = b"\xfb\xff" + bytes(range(30))
    (tmp_path / "key").write_bytes(form(key))
    expected = Keyring([key]).ids
    assert loaded(key_file=str(tmp_path / "key")).ids == expected
    if form is not bytes:
        assert loaded({"KEY": form(key).decode()}, key_env="KEY").ids == expected
        assert (
            loaded({"KEY": form(key).decode(), "NEW": "ab" * 32}, key_env="NEW", previous_key_envs=("KEY",)).ids[1:]
            == expected
        )


def test_what_is_no_key_is_refused_without_being_shown(tmp_path):
    (tmp_path / "bad").write_text("canary" * 7)
    (tmp_path / "good").write_text("ab" * 32)
    bad, good = str(tmp_path / "bad"), str(tmp_path / "good")
    for options, match in (
        ({"key_file": bad}, r"encryption.key-file.*bad.*is no key"),
        ({"key_file": good, "previous_key_files": (bad,)}, r"previous-key-files.*bad"),
        ({"key_file": str(tmp_path / "none")}, r"encryption.key-file.*none.*No such file"),
        ({"key_env": "NOWHERE"}, r"encryption.key-env.*NOWHERE.*no such environment variable"),
        ({"key_env": "BAD"}, r"encryption.key-env.*BAD"),
        ({"key_file": good, "key_env": "GOOD"}, "not both"),
        ({"previous_key_files": (good,)}, "no key to write with"),
        ({"allow_plaintext": True}, "no key to write with"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            loaded({"BAD": "canary", "GOOD": "ab" * 32}, **options)
        assert "canary" not in str(caught.value)
    assert "canary" not in repr(Keyring([b"canary" * 5 + b"!!"]))
    assert not loaded()


def test_the_extra_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigError, match=r"statestore\[encryption\]"):
        keyring.Keyring([bytes(32)])


def test_storages_by_url_take_keys(tmp_path):
    open_storage(str(tmp_path), NEW).write("x", b"x")
    with pytest.raises(EncryptionKeyError):
        open_storage(f"file://{tmp_path}").read("x")
