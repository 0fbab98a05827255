"""Storage behaves alike wherever it is; locks exclude; secrets do not show."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore.errors import ConfigError, CorruptionError, UnavailableError, UsageError
from statestore.io import (
    NO_KEYS,
    EncryptedAppendStorage,
    EncryptedStorage,
    FolderLock,
    FsspecStorage,
    Keyring,
    LocalStorage,
    MemoryStorage,
    checked_name,
    open_storage,
    redacted,
)
from statestore.io.local import HASTEN_MIN_BYTES
from statestore.testing.clock import FakeClock


class Clock:
    def __init__(self):
        self.now = 0.0

    def time(self):
        return self.now

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


KINDS = ["local", "memory", "fsspec"]
KEYS = [NO_KEYS, Keyring([bytes(range(32))]), Keyring([bytes(range(32))], allow_plaintext=True)]
APPEND_KINDS = ["local", "memory"]


def place(kind, folder):
    match kind:
        case "local":
            return LocalStorage(folder / "root")
        case "memory":
            return MemoryStorage("mem")
        case "fsspec":
            return FsspecStorage(f"memory://{uuid.uuid4().hex}/root")


@pytest.fixture(
    params=[
        *((kind, None, None) for kind in KINDS),
        *((kind, EncryptedStorage, keys) for kind in KINDS for keys in KEYS),
        *((kind, EncryptedAppendStorage, keys) for kind in APPEND_KINDS for keys in KEYS),
    ],
    ids=lambda param: f"{param[0]}-{param[1].__name__}-{param[2]}" if param[1] else param[0],
)
def storage(request, tmp_path):
    kind, wrapper, keys = request.param
    inner = place(kind, tmp_path)
    return wrapper(inner, keys) if wrapper else inner


@pytest.fixture(
    params=[*((kind, None) for kind in APPEND_KINDS), *((kind, keys) for kind in APPEND_KINDS for keys in KEYS)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def append_storage(request, tmp_path):
    kind, keys = request.param
    inner = place(kind, tmp_path)
    return EncryptedAppendStorage(inner, keys) if keys is not None else inner


def test_objects(storage):
    assert (storage.list(), storage.exists("a")) == ([], False)
    storage.write("folder/a", b"0123456789")
    storage.write("folder/b", b"")
    storage.write("c", b"x")
    assert storage.list() == ["c", "folder/a", "folder/b"]
    assert storage.list("folder") == ["folder/a", "folder/b"]
    assert storage.read("folder/a") == b"0123456789"
    assert storage.read("folder/a", 3, 4) == b"3456"
    assert storage.read("folder/a", 8, 100) == b"89"
    assert storage.read("folder/a", 4) == b"456789"
    assert [storage.size(name) for name in ("folder/a", "folder/b")] == [10, 0]
    storage.write("folder/a", b"new")
    assert storage.read("folder/a") == b"new"
    storage.delete("folder/a")
    storage.delete("folder/a")
    assert storage.list() == ["c", "folder/b"]
    for missing in (storage.read, storage.size):
        with pytest.raises(FileNotFoundError):
            missing("folder/a")


def test_large_objects_by_ranges(storage):
    content = random.Random(1).randbytes(200_000)
    storage.write("x", content)
    assert storage.size("x") == len(content)
    assert storage.read("x") == content
    for start in (0, 1, 65_535, 65_536, 65_537, 131_072, 199_999, 200_000):
        assert storage.read("x", start) == content[start:]
        for length in (1, 10, 65_535, 65_536, 65_537, 300_000):
            assert storage.read("x", start, length) == content[start : start + length]


def test_appending(append_storage):
    storage = append_storage
    appender = storage.appender("folder/log")
    assert (storage.exists("folder/log"), storage.read("folder/log"), storage.size("folder/log")) == (True, b"", 0)
    with pytest.raises(FileExistsError):
        storage.appender("folder/log")
    for piece in (b"abc", b"", b"defgh", b"x" * 100_000):
        appender.write(piece)
    appender.sync()
    appender.close()
    appender.close()
    content = b"abcdefgh" + b"x" * 100_000
    assert storage.list() == ["folder/log"]
    assert storage.read("folder/log") == content
    assert storage.read("folder/log", 2, 4) == b"cdef"
    assert storage.size("folder/log") == len(content)
    for size in (8, 8, 5, 4, 0):  # at the end of a piece, again there, within one, in what was cut before
        storage.truncate("folder/log", size)
        assert storage.read("folder/log") == content[:size]
        assert storage.size("folder/log") == size


def test_create_is_exclusive(storage):
    storage.create("x", b"1")
    with pytest.raises(FileExistsError):
        storage.create("x", b"2")
    assert storage.read("x") == b"1"
    storage.create("empty", b"")
    with pytest.raises(FileExistsError):
        storage.create("empty", b"x")


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_of_many_creators_one_wins(tmp_path, kind):
    storage = LocalStorage(tmp_path) if kind == "local" else MemoryStorage("mem")

    def create(number):
        try:
            storage.create(f"x-{number % 20}", b"%d" % number)
        except FileExistsError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(200))) == 20


def test_a_local_object_is_never_seen_half_written(tmp_path):
    storage, sizes = LocalStorage(tmp_path), {1000, 200_000}
    storage.write("x", b"a" * 1000)

    def write(number):
        storage.write("x", b"b" * (200_000 if number % 2 else 1000))

    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write, number) for number in range(50)]
        while not all(future.done() for future in writing):
            assert len(storage.read("x")) in sizes
    assert storage.list() == ["x"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".", "a//b", "a/./b", "a\0b"])
def test_names_never_leave_the_folder(storage, name):
    for work in (checked_name, storage.read, storage.delete, lambda name: storage.write(name, b"")):
        with pytest.raises(UsageError):
            work(name)


def test_places_that_can_not_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="file"):
        LocalStorage(tmp_path / "file" / "folder").write("x", b"")
    with pytest.raises(ConfigError, match="nonsense"):
        open_storage("nonsense://place")


def test_a_lock_excludes(tmp_path):
    lock = FolderLock(tmp_path, Clock())
    clock = Clock()
    with pytest.raises(UnavailableError, match=str(tmp_path)):
        FolderLock(tmp_path, clock, wait_seconds=3)
    assert clock.now >= 3
    lock.release()
    FolderLock(tmp_path, Clock(), wait_seconds=0).release()


def test_who_has_the_lock_may_remove_the_folder(tmp_path):
    """Who waited for it has the lock of the folder that is there, not of the one that is gone."""

    class Removing(Clock):
        def sleep(self, seconds):
            shutil.rmtree(tmp_path / "state")
            first.release()

    first = FolderLock(tmp_path / "state", Clock())
    second = FolderLock(tmp_path / "state", Removing())
    with pytest.raises(UnavailableError, match="uses it"):
        FolderLock(tmp_path / "state", Clock())
    second.release()


def test_a_lock_ends_with_its_process(tmp_path):
    program = (
        "import sys\nfrom statestore.clock import SystemClock\nfrom statestore.io import FolderLock\n"
        "lock = FolderLock(sys.argv[1], SystemClock())\nprint('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UnavailableError, match=str(holder.pid)):
            FolderLock(tmp_path, Clock(), wait_seconds=0)
        holder.kill()
        holder.wait()
        FolderLock(tmp_path, Clock(), wait_seconds=0).release()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:canary@host:1/0", "redis://:***@host:1/0"),
        ("redis://user:canary@host/0", "redis://user:***@host/0"),
        ("s3://bucket/x?secret=canary", "s3://bucket/x"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("/local/path", "/local/path"),
    ],
)
def test_redacted(url, shown):
    assert redacted(url) == shown


def test_when_an_object_was_written(tmp_path):
    clock = FakeClock(5000.0)
    memory = MemoryStorage("mem", clock)
    memory.write("a", b"")
    clock.advance(10)
    memory.create("b", b"")
    assert (memory.modified("a"), memory.modified("b")) == (5000.0, 5010.0)
    for place in (LocalStorage(tmp_path), open_storage(f"memory://{uuid.uuid4().hex}/root")):
        place.write("a", b"")
        first = place.modified("a")
        place.write("a", b"1")
        assert first <= place.modified("a")
    os.utime(tmp_path / "a", (77, 77))
    assert LocalStorage(tmp_path).modified("a") == 77
    for place in (memory, LocalStorage(tmp_path), open_storage(f"memory://{uuid.uuid4().hex}/root")):
        with pytest.raises(FileNotFoundError):
            place.modified("nowhere")


def test_a_place_that_does_not_tell_when(monkeypatch):
    storage = FsspecStorage(f"memory://{uuid.uuid4().hex}/root")
    storage.write("a", b"")
    monkeypatch.setattr(storage, "_files", Untold(storage._files))
    with pytest.raises(UnavailableError, match="does not tell when"):
        storage.modified("a")


class Untold:
    """A file system that keeps no times."""

    def __init__(self, files):
        self._inner = files

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def modified(self, path):
        raise NotImplementedError


def test_tidying_removes_what_interrupted_writes_left_and_nothing_else(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write("job/kept/a", b"")
    (tmp_path / "job" / "empty" / "deeper").mkdir(parents=True)
    for name in ("job/.tmp-1", "job/kept/.tmp-2", "other/.tmp-3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "target").mkdir()
    (tmp_path / "job" / "link").symlink_to(tmp_path / "target")
    assert storage.tidy("job", before=0) == 0
    assert storage.tidy("job", before=math.inf) == 2
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left >= {"job/kept/a", "other/.tmp-3", "target", "job/link"}
    assert not {"job/.tmp-1", "job/kept/.tmp-2", "job/empty/deeper"} & left
    storage.tidy("job", before=math.inf)
    assert not (tmp_path / "job" / "empty").exists()
    assert MemoryStorage("mem").tidy("", before=math.inf) == 0


def test_a_folder_that_is_tidied_away_before_it_is_written_to(tmp_path, monkeypatch):
    storage, make = LocalStorage(tmp_path), LocalStorage._make_folder
    calls = []

    def make_and_lose(self, folder):
        make(self, folder)
        if folder.name == "folder" and not calls:
            calls.append(folder)
            folder.rmdir()

    monkeypatch.setattr(LocalStorage, "_make_folder", make_and_lose)
    storage.write("folder/a", b"x")
    assert storage.read("folder/a") == b"x"


def test_objects_are_no_symbolic_links(tmp_path):
    storage = LocalStorage(tmp_path / "root")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptionError, match="symbolic link"):
        storage.read("link")
    assert storage.size("link") != 6
    storage.delete("link")
    assert (tmp_path / "secret").read_bytes() == b"secret"


class HttpError(Exception):
    """As drivers raise them: with the server's answer."""

    def __init__(self, status):
        super().__init__(f"HTTP {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class Answering:
    """A file system whose next conditional puts end with these HTTP statuses, or do their work first ("lost")."""

    def __init__(self, files, *answers):
        self._inner, self.answers = files, list(answers)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def pipe_file(self, path, data, mode="overwrite"):
        answer = self.answers.pop(0) if self.answers and mode == "create" else None
        if isinstance(answer, int):
            raise OSError("the request was refused") from HttpError(answer)
        self._inner.pipe_file(path, data, mode=mode)
        if answer == "lost":
            raise TimeoutError("no answer")


@pytest.fixture
def answering(monkeypatch):
    def make(*answers):
        storage = FsspecStorage(f"memory://{uuid.uuid4().hex}/root")
        monkeypatch.setattr(storage, "_files", Answering(storage._files, *answers))
        return storage

    return make


def test_a_conflict_decides_nothing_and_is_tried_again(answering):
    storage = answering(409, 409)
    storage.create("x", b"1")
    assert storage.read("x") == b"1"
    with pytest.raises(UnavailableError, match="refused"):
        answering(*[409] * 99).create("x", b"1")


def test_a_failed_precondition_may_have_been_our_own_put(answering):
    storage = answering("lost")
    storage.create("x", b"1")  # it is there: the reply was lost
    storage = answering("lost")
    with pytest.raises(UnavailableError):
        answering(500).create("x", b"1")
    storage.write("x", b"another's")
    with pytest.raises(FileExistsError):
        storage.create("x", b"1")
    assert storage.read("x") == b"another's"


def test_a_store_without_conditional_puts_replaces_nothing_that_was_there(answering):
    storage = answering()
    inner = storage._files._inner
    storage._files.pipe_file = lambda path, data, mode="overwrite": inner.pipe_file(path, data)
    storage.create("x", b"1")
    with pytest.raises(FileExistsError):
        storage.create("x", b"2")
    storage.create("x", b"1")  # the same again: a repetition
    assert storage.read("x") == b"1"


@pytest.mark.parametrize("refused", [False, True])
def test_the_disk_is_told_to_begin_with_what_is_long(tmp_path, monkeypatch, refused):
    told = []

    def advise(descriptor, offset, length, advice):
        told.append((offset, length))
        if refused:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    storage = LocalStorage(tmp_path)
    appender = storage.appender("log")
    long = random.Random(1).randbytes(HASTEN_MIN_BYTES)
    for data in (b"short", long, b"end"):
        appender.write(data)
    appender.sync()
    appender.close()
    assert told == [(5, len(long))]
    assert storage.read("log") == b"short" + long + b"end"
