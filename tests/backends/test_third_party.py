"""Backends of others: found by entry point or made known by name; the example's own corners."""

from __future__ import annotations

from importlib import metadata
from importlib.metadata import EntryPoint

import pytest

import statestore
from examples.sqlite_backend import SQLiteBackend
from statestore import ConfigError, FencedError, UnavailableError
from statestore import backend as contract
from statestore.backend import BackendContext, backend_class, register_backend
from tests.command import ROOT
from tests.command import statestore as command

JOB = """
from sqlite_backend import SQLiteBackend
from statestore.backend import register_backend
from statestore_runtime import FileSink, FileSource, Job
register_backend("sqlite", SQLiteBackend)
job = Job("numbers")
job.source(FileSource("numbers.jsonl")).key_by(lambda n: n % 2, int).reduce(lambda a, b: a + b, int).sink(FileSink("out"))
"""


@pytest.fixture
def unknown(monkeypatch):
    """Nothing was registered."""
    monkeypatch.setattr(contract, "_registered", {})


def test_a_name_that_is_not_known(unknown):
    with pytest.raises(ConfigError, match="no backend 'sqlite' is installed"):
        backend_class("sqlite")
    register_backend("sqlite", SQLiteBackend)
    assert backend_class("sqlite") is SQLiteBackend
    with pytest.raises(ConfigError, match="did you mean 'sqlite'"):
        backend_class("sqlit")


def test_an_installed_backend(unknown, monkeypatch):
    point = EntryPoint("sqlite", "examples.sqlite_backend:SQLiteBackend", contract.ENTRY_POINT_GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == contract.ENTRY_POINT_GROUP else [])
    assert backend_class("sqlite") is SQLiteBackend


def test_by_url(unknown, tmp_path):
    register_backend("sqlite", SQLiteBackend)
    for url in (f"sqlite://{tmp_path}/one", f"sqlite+file://{tmp_path}/two"):
        for expected in (None, 1):
            with statestore.open(url, dir=tmp_path / "local" / url[-3:]) as store:
                value = store.value_state("value", int)
                with store.key("key"):
                    assert value.value() == expected
                    value.update(1)
                store.commit()
    assert (tmp_path / "two" / "store.db").is_file()


def test_a_job_on_it(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "sqlite_backend.py").symlink_to(ROOT / "examples" / "sqlite_backend.py")
    (tmp_path / "numbers.jsonl").write_text("".join(f"{n}\n" for n in range(10)))
    ended = command("run", "job.py:job", "-D", "state.backend=sqlite", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / ".statestore" / "numbers" / "sqlite" / "numbers.db").is_file()


def opened(folder, attempt=1, **options):
    return SQLiteBackend.open(BackendContext("job", str(folder), 8, attempt, options))


def test_of_two_that_count_alike_the_later_owns_the_state(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    with pytest.raises(FencedError):
        first.apply({b"\0\0x": b"1"}, 1)
    second.apply({b"\0\0x": b"2"}, 1)
    assert first.get_many([b"\0\0x"]) == [b"2"]
    first.close()
    second.close()


def test_another_writer_is_waited_for_and_then_reported(tmp_path):
    backend, other = opened(tmp_path, **{"lock-timeout": "10ms"}), opened(tmp_path, 2)
    other._writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked"):
        backend.apply({b"\0\0x": b"1"}, 1)
    other._writer.execute("ROLLBACK")
    backend.close()
    other.close()


def test_a_place_that_can_not_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="file"):
        opened(tmp_path / "file")
    with pytest.raises(ConfigError, match="needs a place"):
        SQLiteBackend.open(BackendContext("job", None, 8, 1))


def test_a_scan_that_is_open_when_the_backend_closes(tmp_path):
    backend = opened(tmp_path)
    backend.apply({b"\0\0%d" % n: b"x" for n in range(3000)}, 1)
    scan = backend.scan(b"", None)
    next(scan)
    backend.close()
    assert sum(1 for _ in scan) == 2999
    again = opened(tmp_path, 2)
    assert again.applied_epoch() == 1
    again.close()
