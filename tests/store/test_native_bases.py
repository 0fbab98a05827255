"""Bases that consist of RocksDB's own files: what is stored of them, when they are refused, where they can be restored."""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from statestore import CorruptionError
from statestore.checkpoint.manifest import NativeBase, decode_manifest, encode_manifest
from statestore.checkpoint.native import restore_native
from statestore.checkpoint.verify import verify
from statestore.checkpoint.view import CheckpointView
from statestore.io import FsspecStorage, LocalStorage
from tests.conftest import BACKENDS
from tests.store.stores import Stores, content, handles

KEYS = [f"key-{n}" for n in range(40)]
MANY = 20_000
RETAIN_ALL = "checkpointing.num-retained=100"


def fill(store, turn):
    states = handles(store)
    for n, key in enumerate(KEYS[turn:]):
        store.set_current_key(key)
        states["value"].update(n * turn)
        states["list"].add_all(["x" * turn] * n)
        states["map"].put(f"{turn}", n)
        states["sum"].add(n)


def tables(base):
    return {file.path: file.size for file in base.members if file.immutable}


def with_bases(stores, *, turns=3):
    """A store with a native base and a delta behind it, and what it holds."""
    store = stores.open("rocksdb", "none", RETAIN_ALL)
    for turn in range(turns):
        if turn == turns - 1:
            store._backend._db.compact_range(None, None)  # so that few more tables don't have them all written anew
        info = store.checkpoint(base=turn == turns - 1)
        fill(store, turn)
    info = store.checkpoint({"turn": turns - 1})
    assert isinstance(info.manifest.parts[0].base, NativeBase)
    assert info.manifest.parts[0].deltas
    return store, info, content(store, KEYS)


@pytest.fixture
def native(stores):
    store, info, expected = with_bases(stores)
    store.close()
    return info, expected


def test_touching_one_percent_stores_a_small_share(stores):
    randomness = random.Random(1)
    store = stores.open("rocksdb", "none", "checkpointing.base-min-size=1kb", "checkpointing.base-ratio=0")
    state = store.value_state("state", bytes)

    def touch(keys):
        state.update_many([f"key-{n:06}" for n in keys], [randomness.randbytes(100) for _ in keys])
        store.checkpoint()
        store._chain.wait()
        return store.checkpoint().manifest.parts[0].base

    first = touch(range(MANY))
    stored = store.metrics.base_uploaded_bytes
    assert stored == first.size > 100 * MANY
    for _ in range(2):
        last, base = store._chain._base, touch(randomness.sample(range(MANY), MANY // 100))
        assert set(tables(last)) < set(tables(base)), "the tables of the last base are named again"
        new = {path: size for path, size in tables(base).items() if path not in tables(last)}
        assert 0 < sum(new.values()) < 0.03 * first.size
        store._chain.wait()
    assert store.metrics.base_uploaded_bytes < 1.1 * stored
    assert store.metrics.base_bytes > 2 * stored


def test_tables_are_known_again_after_a_restart(stores):
    store, info, _ = with_bases(stores, turns=2)
    store.close()
    again = stores.open("rocksdb", "latest", "checkpointing.base-min-size=1b", "checkpointing.base-ratio=0")
    fill(again, 5)
    again.checkpoint()
    again._chain.wait()
    base = again.checkpoint().manifest.parts[0].base
    assert base != info.manifest.parts[0].base
    assert tables(info.manifest.parts[0].base).keys() < tables(base).keys(), "and not because of their names"


def test_what_only_old_bases_name_is_collected(stores):
    settings = ["base-min-size=1b", "base-ratio=0", "num-retained=2"]
    store = stores.open("rocksdb", "none", *[f"checkpointing.{setting}" for setting in settings])
    shared = stores.checkpoints / "job" / "shared"
    for turn in range(12):
        fill(store, turn)
        info = store.checkpoint()
        store._chain.wait()
        assert verify(store.checkpoints, info.manifest).problems == []
    retained = [store.checkpoints.load(number) for number in store.checkpoints.retained()]
    named = {entry.path for manifest in retained for entry in manifest.files() if entry.data is None}
    unadopted = {file.path for file in store._chain._renewal._making.result().base.files()}
    assert {f"shared/{path.name}" for path in shared.iterdir()} <= named | unadopted


@pytest.mark.parametrize("position", [0, 0.2, 0.6, 0.999])
def test_a_damaged_table_ends_the_base_before_anything_refers_to_it(stores, position):
    store = stores.open("rocksdb", "none", "checkpointing.base-min-size=1gb")
    state = store.value_state("state", bytes)
    randomness = random.Random(1)
    for turn in range(2):
        names = [f"key-{n}" for n in range(turn * 500, turn * 500 + 500)]
        state.update_many(names, [randomness.randbytes(100) for _ in names])
        store.commit()
        info = store.checkpoint()
    flip_when_copied(store, position)
    with pytest.raises(CorruptionError, match=r"\.sst.*read whole"):
        store.checkpoint(base=True)
    stored = {path.name for path in (stores.checkpoints / "job" / "shared").iterdir()}
    assert not any(name.endswith(".sst") for name in stored)
    assert store.checkpoints.latest() == info.checkpoint_id


def flip(file, position):
    """Flip a bit in place, so in all links to the file."""
    with file.open("r+b") as opened:
        data = bytearray(opened.read())
        data[int(position * (len(data) - 1))] ^= 1
        opened.seek(0)
        opened.write(data)


def flip_when_copied(store, position):
    """Damage a table just when RocksDB has made its checkpoint."""
    original = store._backend.native_checkpoint

    def native_checkpoint(folder):
        copy = original(folder)
        flip(Path(folder, min(copy.immutable)), position)
        return copy

    store._backend.native_checkpoint = native_checkpoint


def test_damage_found_in_the_background_is_raised(stores):
    store = stores.open("rocksdb", "none", "checkpointing.base-min-size=1b")
    flip_when_copied(store, 0.5)
    fill(store, 1)
    store.checkpoint()
    store._chain.wait()
    with pytest.raises(CorruptionError, match=r"\.sst"):
        store.commit()


@pytest.mark.parametrize("local", [True, False], ids=["linked", "copied"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_native_base_restores_on_each_backend(stores, native, monkeypatch, backend, local):
    info, expected = native
    if not local:
        monkeypatch.setattr(LocalStorage, "link", lambda *arguments: False)
    stores.forget_local()
    restored = stores.open(backend)
    assert restored.restored.meta == {"turn": 2}
    assert content(restored, KEYS) == expected
    assert restored.count_keys() == len(KEYS)
    fill(restored, 3)
    restored.checkpoint()
    expected = content(restored, KEYS)
    restored.close()
    assert not list((stores._places.folder / "local").rglob("statestore-*")), "temporary files are gone"
    stores.forget_local()
    again = stores.open(backend)
    assert content(again, KEYS) == expected
    assert verify(again.checkpoints, info.manifest).problems == []


def test_a_portable_base_restores_on_rocksdb(stores):
    store = stores.open("rocksdb", "none", "checkpointing.base-format=portable")
    fill(store, 1)
    store.checkpoint(base=True)
    expected = content(store, KEYS)
    store.close()
    stores.forget_local()
    restored = stores.open("rocksdb")
    assert content(restored, KEYS) == expected
    fill(restored, 2)
    assert isinstance(restored.checkpoint(base=True).manifest.parts[0].base, NativeBase)


def test_a_restored_database_shares_the_tables_of_the_checkpoint(stores, native):
    """So that a local restore does not copy the state; RocksDB never writes to them again."""
    info, expected = native
    stores.forget_local()
    stored = {path: (stores.checkpoints / "job" / path).stat().st_ino for path in tables(info.manifest.parts[0].base)}
    restored = stores.open("rocksdb", "latest", RETAIN_ALL)
    database = stores._places.folder / "local" / "job" / "rocksdb"
    assert set(stored.values()) <= {path.stat().st_ino for path in database.glob("*.sst")}
    for turn in range(20):
        fill(restored, turn)
        restored.checkpoint()
        restored._applier.finish()
    restored._backend._db.compact_range(None, None)
    assert verify(restored.checkpoints, info.manifest).problems == []
    restored.close()
    stores.forget_local()
    assert content(stores.open("rocksdb", info.path), KEYS) == expected


def test_a_native_base_elsewhere(stores, native, tmp_path):
    info, expected = native
    stores.forget_local()
    stores.checkpoints = tmp_path / "elsewhere"
    moved = stores.open("rocksdb", info.path)
    assert content(moved, KEYS) == expected
    fill(moved, 3)
    first = moved.checkpoint()
    assert first.uploaded_bytes >= first.manifest.parts[0].base.size
    expected = content(moved, KEYS)
    moved.close()
    stores.forget_local()
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    assert content(stores.open("rocksdb"), KEYS) == expected


def test_an_older_checkpoint_over_a_database_that_is_further(stores):
    store, info, expected = with_bases(stores)
    for turn in range(5, 9):
        fill(store, turn)
        store.checkpoint(base=turn % 2 == 0)
    store.close()
    older = stores.open("rocksdb", info.path)
    assert content(older, KEYS) == expected
    fill(older, 9)
    older.checkpoint()
    expected = content(older, KEYS)
    stores.crash(older)
    assert content(stores.open("rocksdb"), KEYS) == expected


@pytest.mark.parametrize("backend", ["rocksdb", "memory"])
@pytest.mark.parametrize("fault", ["missing", "shorter", "flipped", "flipped-copy"])
def test_a_damaged_base_gives_way_to_an_older_checkpoint(stores, monkeypatch, caplog, backend, fault):
    store = stores.open("rocksdb", "none", "checkpointing.inline-threshold=0")
    fill(store, 1)
    store.checkpoint({"turn": 1})
    expected = content(store, KEYS)
    fill(store, 2)
    newest = store.checkpoint({"turn": 2}, base=True)
    store.close()
    stores.forget_local()
    path = min(tables(newest.manifest.parts[0].base))
    if fault == "flipped" and backend == "rocksdb":  # of the small files every hash is checked
        path = next(file.path for file in newest.manifest.parts[0].base.members if file.name.startswith("MANIFEST"))
    damaged = stores.checkpoints / "job" / path
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    if fault == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(data[:-1] if fault == "shorter" else data)
    if fault == "flipped-copy":
        monkeypatch.setattr(LocalStorage, "link", lambda *arguments: False)
    restored = stores.open(backend)
    assert restored.restored.meta == {"turn": 1}
    assert content(restored, KEYS) == expected
    assert damaged.name in caplog.text


def test_a_restored_table_that_is_damaged_is_an_error_when_it_is_read(stores, native):
    """A linked table is not read by a restore; RocksDB checks each block when it reads it."""
    info, _ = native
    stores.forget_local()
    table = (
        stores.checkpoints
        / "job"
        / max(tables(info.manifest.parts[0].base), key=tables(info.manifest.parts[0].base).get)
    )
    data = bytearray(table.read_bytes())
    data[len(data) // 3] ^= 1
    table.write_bytes(data)
    with pytest.raises(CorruptionError):
        content(stores.open("rocksdb"), KEYS)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "/etc/x"])
def test_names_that_leave_the_backends_folder_are_refused(native, name):
    info, _ = native
    base = info.manifest.parts[0].base
    evil = replace(base, members=[replace(base.members[0], name=name), *base.members[1:]])
    manifest = replace(info.manifest, parts=[replace(info.manifest.parts[0], base=evil)])
    with pytest.raises(CorruptionError):
        decode_manifest(encode_manifest(manifest), "_metadata")


def test_a_view_of_a_native_base(stores, native, tmp_path):
    info, expected = native
    reader = stores.open("memory")
    held = dict(reader._backend.scan(b"", None))
    with closing(CheckpointView(reader.checkpoints, info.manifest, folder=str(tmp_path / "work"))) as view:
        entries = dict(view.scan(b"", None))
        entries_held = {key: value for key, value in held.items() if key in entries}
        assert entries == entries_held
        assert len(held) == len(entries) + 1  # the stamp is the backend's, not the checkpoint's
        assert view.get_many([*entries, b"\0\0none"]) == [*entries.values(), None]
        assert dict(view.stream_deltas(b"", None)).items() <= {**entries, **dict(view.stream_deltas(b"", None))}.items()
        middle = sorted(entries)[len(entries) // 2]
        assert [key for key, _ in view.scan(middle, None)] == sorted(key for key in entries if key >= middle)
        assert len(list((tmp_path / "work").iterdir())) == 1
    assert list((tmp_path / "work").iterdir()) == []
    forgotten = CheckpointView(reader.checkpoints, info.manifest, folder=str(tmp_path / "work"))
    next(forgotten.scan(b"", None))
    del forgotten
    assert list((tmp_path / "work").iterdir()) == []
    assert content(reader, KEYS) == expected


def test_what_a_killed_process_left_is_removed(stores, native):
    left = stores._places.folder / "local" / "job" / "tmp" / "statestore-left"
    left.mkdir(parents=True)
    stores.open("rocksdb")
    assert not left.exists()


def test_killed_between_the_steps_of_a_restore(stores, native, monkeypatch):
    """The database's folder is gone, or is the base without the deltas: either is noticed."""
    info, expected = native
    for step in ("removed", "placed", "half of the deltas"):
        stores.forget_local()
        restored = stores.open("rocksdb")
        stores.crash(restored)
        database = stores._places.folder / "local" / "job" / "rocksdb"
        if step == "removed":
            shutil.rmtree(database)
        else:
            restored = stores.open("rocksdb", "none")
            assert restore_native(restored._backend, restored.checkpoints, info.manifest.parts[0], None)
            if step != "placed":
                restored._backend.apply({}, 0)
            stores.crash(restored)
        again = stores.open("rocksdb")
        assert content(again, KEYS) == expected
        stores.crash(again)


def test_native_bases_on_s3(places, s3_url):
    stores = Stores(places)
    stores.checkpoints = s3_url
    store, info, expected = with_bases(stores)
    settings = ["checkpointing.base-min-size=1b", "checkpointing.base-ratio=0"]
    store.close()
    stores.forget_local()
    restored = stores.open("rocksdb", "latest", *settings)
    assert isinstance(restored.checkpoints.storage.inner, FsspecStorage)
    assert content(restored, KEYS) == expected
    fill(restored, 3)
    restored.checkpoint()
    restored._chain.wait()
    base = restored.checkpoint().manifest.parts[0].base
    assert tables(info.manifest.parts[0].base).keys() & tables(base).keys()
    expected = content(restored, KEYS)
    restored.close()
    for backend in ("rocksdb", "memory"):
        stores.forget_local()
        again = stores.open(backend)
        assert content(again, KEYS) == expected
        again.close()
