"""What the configuration asks for, and places that no leader can be elected in."""

from __future__ import annotations

import threading
import time
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from statestore import ConfigError, EncryptionKeyError, UnavailableError, load_config
from statestore.io import LocalStorage, open_storage
from statestore.testing.clock import FakeClock
from statestore.testing.redis_server import free_port
from statestore_runtime.ha import high_availability_dir, open_high_availability
from statestore_runtime.ha.probing import check_exclusive_create

FOREVER = 30.0


@pytest.fixture
def opened(tmp_path):
    parts = []

    def make(*overrides, job="job", **options):
        config = load_config(overrides=[f"state.dir={tmp_path / 'state'}", *overrides])
        parts.append(open_high_availability(config, job, **options))
        return parts[-1]

    yield make
    for part in parts:
        if part is not None:
            part.close()


def test_nothing_unless_it_is_asked_for(opened):
    assert opened() is None


def test_files_in_the_jobs_folder_unless_told_otherwise(opened, tmp_path):
    first = opened("high-availability.type=file", address="host:1", above=6)
    first.leader.start()
    assert first.leader.wait_for_leadership(FOREVER) == 7
    first.latest.write(7, 3, "chk-3")
    second = opened("high-availability.type=file")
    second.leader.start()
    while second.leader.leader is None:
        time.sleep(0.01)
    assert second.leader.leader.address == "host:1"
    assert second.latest.read().path == "chk-3"
    names = LocalStorage(tmp_path / "state" / "job" / "ha").list()
    assert names == ["latest/values/1", "lease/values/1"]


def test_jobs_do_not_meet(opened, tmp_path):
    for job in ("one", "two"):
        part = opened("high-availability.type=file", f"high-availability.storageDir={tmp_path / 'ha'}", job=job)
        part.leader.start()
        assert part.leader.wait_for_leadership(FOREVER) == 1
    assert {path.name for path in (tmp_path / "ha").iterdir()} == {"one", "two"}


@pytest.mark.parametrize(
    ("dir", "expected"),
    [
        ("/var/ha", "/var/ha/job"),
        ("file:///var/ha/", "/var/ha/job"),
        ("s3://bucket/ha/", "s3://bucket/ha/job"),
        ("gs://bucket", "gs://bucket/job"),
    ],
)
def test_where_a_jobs_lease_is(dir, expected):
    assert high_availability_dir(load_config(overrides=[f"high-availability.dir={dir}"]), "job") == expected


def test_redis(opened, redis_url):
    settings = "high-availability.type=redis", f"high-availability.url={redis_url}"
    clock = FakeClock()
    first, second = opened(*settings, clock=clock), opened(*settings)
    first.latest.write(4, 3, "chk-3")
    assert second.latest.read().checkpoint == 3
    first.leader.start()
    while first.leader._election._seen_since is None:
        time.sleep(0.01)
    assert first.leader.wait_for_leadership(0.0) is None  # there may have been a lease that the server has forgotten
    clock.advance(15.0)
    assert first.leader.wait_for_leadership(FOREVER) == 1


def test_an_s3_place_is_fit(opened, s3_url):
    part = opened("high-availability.type=file", f"high-availability.dir={s3_url}")
    part.leader.start()
    assert part.leader.wait_for_leadership(FOREVER) == 1
    assert not [name for name in open_storage(f"{s3_url}/job").list() if "probe" in name]


def test_what_is_written_is_encrypted_like_all_else(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("KEY", "ab" * 32)
    settings = "high-availability.type=file", "encryption.key-env=KEY"
    first = opened(*settings, address="secret-host:1")
    first.leader.start()
    assert first.leader.wait_for_leadership(FOREVER) == 1
    files = [path for path in (tmp_path / "state" / "job" / "ha").rglob("*") if path.is_file()]
    assert files
    assert not any(b"secret-host" in path.read_bytes() for path in files)
    first.close()
    second = opened("high-availability.type=file")
    second.leader.start()
    with pytest.raises(EncryptionKeyError):
        second.leader.wait_for_leadership(FOREVER)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["high-availability.type=redis"], r"high-availability\.url.*not set"),
        (["high-availability.type=redis", "high-availability.url=http://h"], r"high-availability\.url.*no Redis URL"),
        (["high-availability.type=file", "high-availability.dir=memory://x"], "seen by this process only"),
        (["high-availability.type=file", "high-availability.dir=nonsense://x"], "nonsense"),
        (["high-availability.type=file", "high-availability.renew-interval=7s"], r"renew-interval.*0 and 6 s"),
    ],
)
def test_bad_settings(opened, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        opened(*settings)


def test_a_server_that_is_not_there(opened):
    with pytest.raises(UnavailableError, match="is the server running"):
        opened("high-availability.type=redis", f"high-availability.url=redis://127.0.0.1:{free_port()}/0")


# Places that do not create exclusively


class Replacing(MemoryFileSystem):
    """Ignores that a put is conditional, as some object stores do."""

    protocol = "replacing"
    store: dict = {}  # noqa: RUF012 - as in the class it is derived from

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value)


class Looking(MemoryFileSystem):
    """Looks whether the object is there and then puts it, as some drivers do."""

    protocol = "looking"
    store: dict = {}  # noqa: RUF012
    barrier = threading.Barrier(2)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        if mode == "create":
            try:
                self.barrier.wait(FOREVER)  # somebody else has looked, too
            except threading.BrokenBarrierError:
                pass
        super().pipe_file(path, value)


class Refusing(MemoryFileSystem):
    """Takes no conditional put at all."""

    protocol = "refusing"
    store: dict = {}  # noqa: RUF012

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create":
            raise NotImplementedError("no conditional writes")
        super().pipe_file(path, value)


class Exclusive(MemoryFileSystem):
    """Does what it says."""

    protocol = "exclusive"
    store: dict = {}  # noqa: RUF012
    lock = threading.Lock()

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        with self.lock:
            if mode == "create" and self.exists(path):
                raise FileExistsError(path)
            super().pipe_file(path, value)


@pytest.fixture
def place():
    """URL of a new place in one of these."""

    def make(files):
        fsspec.register_implementation(files.protocol, files, clobber=True)
        return f"{files.protocol}://{uuid.uuid4().hex}"

    return make


@pytest.mark.parametrize("files", [Replacing, Looking])
def test_a_place_that_does_not_create_exclusively_is_refused(opened, place, files):
    with pytest.raises(ConfigError, match=rf"high-availability\.dir.*{files.protocol}://.*only if it is absent.*S3"):
        opened("high-availability.type=file", f"high-availability.dir={place(files)}")
    assert not [name for name in files.store if "probe" in name]


def test_a_place_that_takes_no_conditional_puts_is_refused(opened, place):
    with pytest.raises(UnavailableError, match="no conditional writes"):
        opened("high-availability.type=file", f"high-availability.dir={place(Refusing)}")


def test_a_place_that_creates_exclusively_is_fit(opened, place):
    url = place(Exclusive)
    for _ in range(5):
        check_exclusive_create(url, "high-availability.dir")
    part = opened("high-availability.type=file", f"high-availability.dir={url}")
    part.leader.start()
    assert part.leader.wait_for_leadership(FOREVER) == 1


def test_a_local_file_system_without_hard_links_is_refused(opened, monkeypatch):
    def no_links(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", no_links)
    with pytest.raises(UnavailableError, match="Operation not permitted"):
        opened("high-availability.type=file")


def test_a_local_folder_that_cannot_be_written(opened, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UnavailableError, match="Not a directory"):
        opened("high-availability.type=file", f"high-availability.dir={tmp_path / 'file'}")
