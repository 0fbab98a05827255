"""What the checkpoints of a store consist of: bases, deltas, packed deltas, files in the manifest."""

from __future__ import annotations

import logging
import random
import weakref
from contextlib import closing

import pytest
from msgspec.structs import replace

from statestore import ConfigError, CorruptionError, UnavailableError
from statestore.checkpoint.manifest import BaseEntry, LogDelta, NativeBase, PackedDelta
from statestore.checkpoint.verify import verify
from statestore.checkpoint.view import CheckpointView
from statestore.errors import ClosedError
from statestore.io import LocalStorage
from statestore.testing.clock import FakeClock
from tests.conftest import BACKENDS
from tests.store.stores import Stores, content, handles

NEVER = "checkpointing.base-min-size=1gb"
NO_PACKS = "checkpointing.pack-deltas=1000"
ONCE = "checkpointing.base-ratio=1e9"


_states = weakref.WeakKeyDictionary()


def state_of(store):
    """Registered at the first call."""
    if store not in _states:
        _states[store] = store.value_state("state", bytes)
    return _states[store]


def touch(store, names, size=100, seed=0):
    randomness = random.Random(f"{seed}-{names}")
    state_of(store).update_many([f"key-{n:06}" for n in names], [randomness.randbytes(size) for _ in names])


def values(store, names):
    return state_of(store).get_many([f"key-{n:06}" for n in names])


def kinds(info):
    """Kind of base, then of each delta."""
    part = info.manifest.parts[0]
    return [type(part.base), *map(type, part.deltas)]


def checkpoint(store):
    """A checkpoint, and all that is made in the background after it."""
    info = store.checkpoint()
    store._chain.wait()
    return info


def with_base(store, names):
    """The store, with a base that holds these, and a delta of nothing behind it."""
    touch(store, names)
    store.checkpoint()
    store.checkpoint(base=True)
    return store


# When there is a new base


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_base_when_the_deltas_have_outgrown_the_last(stores, backend):
    store = stores.open(backend, "none", "checkpointing.base-min-size=10kb", "checkpointing.base-ratio=0.5")
    touch(store, range(200))
    assert kinds(checkpoint(store)) == [type(None), LogDelta]
    first = checkpoint(store)
    base = first.manifest.parts[0].base
    assert base is not None
    assert base.size > 200 * 100
    assert all(delta.first_epoch > base.epoch for delta in first.manifest.parts[0].deltas)
    touch(store, range(20))
    checkpoint(store)
    assert checkpoint(store).manifest.parts[0].base == base
    touch(store, range(150))
    checkpoint(store)
    assert checkpoint(store).manifest.parts[0].base.epoch > base.epoch
    assert store.metrics.bases == 2
    expected = values(store, range(200))
    store.close()
    stores.forget_local()
    assert values(stores.open(backend), range(200)) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_base_when_there_are_too_many_deltas(stores, backend):
    store = stores.open(backend, "none", NEVER, NO_PACKS, "checkpointing.base-max-deltas=5")
    for n in range(6):
        touch(store, [n])
        assert kinds(checkpoint(store)) == [type(None), *[LogDelta] * (n + 1)]
    assert kinds(checkpoint(store))[0] is not type(None)
    assert store.metrics.bases == 1


def test_a_base_when_the_last_is_too_old(places):
    clock = FakeClock()
    stores = Stores(places, NEVER, "checkpointing.base-max-age=1h", clock=clock)
    store = stores.open("memory", "none")
    checkpoint(store)
    first = checkpoint(store).manifest.parts[0].base
    assert first.created == clock.time()  # a state without a base gets one
    clock.advance(3600)
    checkpoint(store)
    assert checkpoint(store).manifest.parts[0].base == first
    clock.advance(1)
    checkpoint(store)
    assert checkpoint(store).manifest.parts[0].base.created == clock.time()
    stores.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_base_on_demand(stores, backend):
    store = stores.open(backend, "none", NEVER)
    touch(store, range(100))
    before = store.checkpoint()
    touch(store, range(50))
    info = store.checkpoint({"position": 1}, base=True)
    assert info.manifest.parts[0].base.epoch == before.epoch  # what is not complete is in the delta
    assert [delta.first_epoch for delta in info.manifest.parts[0].deltas] == [before.epoch + 1]
    again = store.checkpoint({"position": 2}, base=True)
    assert not {file.path for file in info.manifest.parts[0].base.files()} & {
        file.path for file in again.manifest.parts[0].base.files()
    }
    assert again.uploaded_bytes >= again.manifest.parts[0].base.size > 100 * 100
    assert store.metrics.base_uploaded_bytes == store.metrics.base_bytes
    expected = values(store, range(100))
    store.close()
    stores.forget_local()
    restored = stores.open(backend)
    assert restored.restored.meta == {"position": 2}
    assert values(restored, range(100)) == expected


def test_an_embedded_store_has_nothing_but_the_base_then(embedded):
    store = embedded.open("rocksdb", None, NEVER)
    touch(store, range(100))
    info = store.checkpoint(base=True)
    assert kinds(info) == [NativeBase]
    assert info.manifest.parts[0].base.epoch == info.epoch
    touch(store, [1])
    assert kinds(store.checkpoint()) == [NativeBase, LogDelta]


def test_a_base_on_demand_that_later_commits_have_overtaken(embedded):
    """It would hold what came after its checkpoint."""
    store = embedded.open("memory", None, NEVER, "state.pending-size=1b")
    touch(store, [1])
    pending = store.begin_checkpoint(base=True)
    touch(store, [1], seed=1)
    store.commit()
    store.commit()
    with pytest.raises(UnavailableError, match="take it again"):
        pending.finish()
    assert store.checkpoint(base=True).epoch == 4


def test_a_base_made_meanwhile_gives_way_to_the_one_on_demand(stores):
    """It may share files with the base before, which nothing names any more."""
    store = stores.open("rocksdb", "none", "checkpointing.base-min-size=1kb", "checkpointing.num-retained=1")
    touch(store, range(100))
    checkpoint(store)
    store.checkpoint()
    touch(store, range(100), seed=1)
    store.checkpoint()  # begins a base that shares files with the last
    pending = store.begin_checkpoint(base=True)
    info = pending.finish()
    store.complete(info)
    last = checkpoint(store)
    assert last.manifest.parts[0].base == info.manifest.parts[0].base
    assert verify(store.checkpoints, last.manifest).problems == []


# How it is stored


@pytest.mark.parametrize(("form", "kind"), [("auto", NativeBase), ("native", NativeBase), ("portable", BaseEntry)])
def test_the_form_of_rocksdbs_bases(stores, form, kind):
    store = stores.open("rocksdb", "none", f"checkpointing.base-format={form}")
    touch(store, range(100))
    assert type(store.checkpoint(base=True).manifest.parts[0].base) is kind


@pytest.mark.parametrize("backend", ["memory", "filesystem", "redis"])
def test_native_bases_of_a_backend_that_has_none(stores, backend):
    with pytest.raises(ConfigError, match=r"has no native bases.*") as failure:
        stores.open(backend, "none", "checkpointing.base-format=native")
    assert failure.value.key == "checkpointing.base-format"
    store = stores.open(backend, "none", "checkpointing.base-format=auto")
    touch(store, range(10))
    assert type(store.checkpoint(base=True).manifest.parts[0].base) is BaseEntry


@pytest.mark.parametrize("backend", ["memory", "rocksdb"])
def test_bases_are_stored_no_faster_than_allowed(places, backend):
    clock = FakeClock()
    stores = Stores(places, NEVER, "checkpointing.base-rate=10kb", clock=clock)
    store = stores.open(backend, "none")
    touch(store, range(1000))
    store.checkpoint()
    begun = clock.monotonic()
    size = store.checkpoint(base=True).manifest.parts[0].base.size
    stored = size - sum(len(file.data or b"") for file in store._chain._base.files())
    assert stored > 100_000
    assert clock.monotonic() - begun == pytest.approx(stored / 10_240, rel=0.01)
    stores.close()


class NoTime(FakeClock):
    """On which waiting has no end."""

    def sleep(self, seconds):
        pass


def test_closing_gives_up_a_base(places):
    stores = Stores(places, "checkpointing.base-min-size=1kb", "checkpointing.base-rate=1kb", clock=NoTime())
    store = stores.open("memory", "none")
    touch(store, range(1000))
    store.checkpoint()
    making = store._chain._renewal._making
    store.close()
    assert isinstance(making.exception(), ClosedError)
    assert values(stores.open("memory"), range(10)) is not None
    stores.close()


# Packing


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_small_deltas_are_packed(stores, backend):
    store = stores.open(backend, "none", ONCE, "checkpointing.pack-deltas=4", "checkpointing.inline-threshold=0")
    with_base(store, range(9))
    touch(store, range(50), seed=1)
    for n in range(4):
        touch(store, [n, 7], seed=n)
        info = checkpoint(store)
    base = kinds(info)[0]
    assert kinds(info) == [base, *[LogDelta] * 5]
    packed = store.checkpoint()
    assert kinds(packed) == [base, PackedDelta, LogDelta]
    first = packed.manifest.parts[0].deltas[0]
    assert first.last_epoch == first.first_epoch + 4
    assert sum(segment.entries for segment in first.segments) == 50  # the last value of each
    assert packed.uploaded_bytes == first.size + packed.manifest.parts[0].deltas[1].size
    assert (store.metrics.packs, store.metrics.packed_deltas) == (1, 5)
    expected = values(store, range(50))
    store.close()
    stores.forget_local()
    assert values(stores.open(backend), range(50)) == expected


def test_a_large_delta_is_not_packed(stores, monkeypatch):
    monkeypatch.setattr("statestore.checkpoint.renewal.PACKED_MAX_BYTES", 5000)
    store = with_base(stores.open("memory", "none", ONCE, "checkpointing.pack-deltas=2"), [2])
    for size in (10, 10_000, 10, 10, 10):
        touch(store, [1], size)
        checkpoint(store)
    assert kinds(store.checkpoint())[1:] == [LogDelta, LogDelta, LogDelta, PackedDelta, LogDelta]


@pytest.mark.parametrize("backend", BACKENDS)
def test_deltas_that_have_outgrown_the_base_are_not_packed_but_a_base_is_made(stores, backend):
    store = stores.open(backend, "none", NEVER, "checkpointing.pack-deltas=4")
    for n in range(5):
        touch(store, range(50), seed=n)
        assert kinds(checkpoint(store)) == [type(None), *[LogDelta] * (n + 1)]
    assert kinds(store.checkpoint())[0] in (BaseEntry, NativeBase)
    assert (store.metrics.bases, store.metrics.packs) == (1, 0)


def test_what_is_logged_again_and_again_takes_the_memory_of_its_last_values_only(stores, monkeypatch):
    monkeypatch.setattr("statestore.checkpoint.layers.LOG_MEMORY_BYTES", 3000)
    store = stores.open("memory", "none", NEVER, "checkpointing.pack-deltas=100")
    state = store.value_state("value", int)
    for count in range(12):
        state.update_many(["a", "b", "c"], [count] * 3)
        info = store.checkpoint()

    def spill(entries, stem):
        raise AssertionError("three entries were put into a temporary file")

    monkeypatch.setattr("statestore.checkpoint.layers.sorted_segments", spill)
    with closing(CheckpointView(store.checkpoints, info.manifest)) as view:
        assert len(dict(view.scan(b"", None))) == 3


@pytest.mark.parametrize("backend", ["memory", "rocksdb"])
@pytest.mark.parametrize("seed", range(8))
def test_packed_histories_match_a_dict(stores, monkeypatch, backend, seed):
    """Changes, removals, packs and bases in any order, in so little memory that pieces go to disk; each checkpoint stays what it was."""
    monkeypatch.setattr("statestore.checkpoint.layers.LOG_MEMORY_BYTES", 3000)
    randomness = random.Random(seed)
    settings = ["base-ratio=5", "pack-deltas=2", "base-max-deltas=6", "num-retained=100", "inline-threshold=300b"]
    store = stores.open(backend, "none", *[f"checkpointing.{setting}" for setting in settings])
    state, model, made, seen = store.value_state("value", int), {}, [], set()
    for _ in range(25):
        for name in randomness.sample(range(60), randomness.randrange(1, 40)):
            store.set_current_key(f"key-{name}")
            if randomness.random() < 0.4:
                state.clear()
                model.pop(f"key-{name}", None)
            else:
                model[f"key-{name}"] = randomness.randrange(1 << 40)
                state.update(model[f"key-{name}"])
        info = store.checkpoint()
        if randomness.random() < 0.7:
            store._chain.wait()
        made.append((info, dict(model)))
        seen |= set(kinds(info))
    assert {LogDelta, PackedDelta} < seen
    assert seen & {BaseEntry, NativeBase}
    keys = [f"key-{name}" for name in range(60)]
    for info, expected in randomness.sample(made, 4):
        assert verify(store.checkpoints, info.manifest).problems == []
        with closing(CheckpointView(store.checkpoints, info.manifest)) as view:
            entries = dict(view.scan(b"", None))
            assert len(entries) == len(expected)
            assert view.get_many(list(entries)) == list(entries.values())
    store.close()
    for info, expected in randomness.sample(made, 3):
        stores.forget_local()
        restored = stores.open(backend, info.path)
        found = restored.value_state("value", int).get_many(keys)
        assert {key: value for key, value in zip(keys, found, strict=True) if value is not None} == expected
        restored.close()


def test_a_damaged_delta_gives_way_to_a_base_loudly(stores, caplog):
    settings = [ONCE, "checkpointing.pack-deltas=3", "checkpointing.inline-threshold=0"]
    store = with_base(stores.open("memory", "none", *settings), range(3))
    for n in range(2):
        touch(store, [n])
        info = checkpoint(store)
    damaged = stores.checkpoints / "job" / info.manifest.parts[0].deltas[0].path
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with caplog.at_level(logging.ERROR):
        checkpoint(store)
    assert damaged.name in caplog.text
    checkpoint(store)
    healed = store.checkpoint()
    assert verify(store.checkpoints, healed.manifest).problems == []
    expected = values(store, range(3))
    store.close()
    stores.forget_local()
    assert values(stores.open("memory"), range(3)) == expected


# Small files in the manifest


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_files_are_in_the_manifest(stores, backend):
    store = stores.open(backend, "none", NEVER, "checkpointing.inline-threshold=2kb", "checkpointing.num-retained=1")
    folder = stores.checkpoints / "job" / "shared"
    touch(store, range(5))
    small = store.checkpoint()
    assert not folder.exists()
    assert small.total_bytes == small.uploaded_bytes > 5 * 100
    touch(store, range(100, 200))
    large = store.checkpoint()
    (file,) = folder.iterdir()
    assert [delta.data is None for delta in large.manifest.parts[0].deltas] == [False, True]
    assert large.manifest.parts[0].deltas[1].path == f"shared/{file.name}"
    assert verify(store.checkpoints, large.manifest).problems == []
    based = store.checkpoint(base=True)
    assert store.collected()
    named = {entry.path.removeprefix("shared/") for entry in based.manifest.files() if entry.data is None}
    assert {path.name for path in folder.iterdir()} == named
    expected = values(store, range(200))
    store.close()
    stores.forget_local()
    assert values(stores.open(backend), range(200)) == expected


def test_a_wrong_hash_of_a_file_in_the_manifest(stores):
    store = stores.open("memory", "none")
    touch(store, [1])
    info = store.checkpoint()
    (delta,) = info.manifest.parts[0].deltas
    part = replace(info.manifest.parts[0], deltas=[replace(delta, data=delta.data[:-1] + b"?")])
    (problem,) = verify(store.checkpoints, replace(info.manifest, parts=[part])).problems
    assert "does not match its checksum" in problem.problem
    with pytest.raises(CorruptionError, match="instead of"):
        store.checkpoints.read_file(replace(delta, data=b""))


def test_the_manifest_stays_small(stores):
    store = stores.open("memory", "none", NEVER, NO_PACKS, "checkpointing.inline-threshold=1mb")
    for n in range(12):
        touch(store, [n], 60_000)
        info = store.checkpoint()
    inlined = [delta.data is not None for delta in info.manifest.parts[0].deltas]
    assert inlined == [True] * 4 + [False] * 8
    manifest = stores.checkpoints / "job" / "chk-12" / "_metadata"
    assert manifest.stat().st_size < 400_000


# What stops processing


@pytest.mark.parametrize("backend", ["memory", "rocksdb"])
def test_beginning_and_completing_a_checkpoint_neither_reads_nor_writes_its_files(stores, monkeypatch, backend):
    store = stores.open(backend, "none", "checkpointing.base-min-size=1kb", "checkpointing.pack-deltas=1")
    for n in range(4):
        touch(store, range(n * 100, n * 100 + 100))
        checkpoint(store)
    touch(store, [1])
    assert store.collected()
    with monkeypatch.context() as patch:
        for method in ("read", "write", "create", "size", "list", "delete", "link"):
            patch.setattr(LocalStorage, method, lambda *arguments: pytest.fail("it reached for the storage"))
        pending = store.begin_checkpoint()
    info = pending.finish()
    monkeypatch.setattr(store._chain._renewal._maker, "submit", lambda *arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointView, "scan", lambda *arguments: pytest.fail("it read the checkpoint"))
        store.complete(info)


def test_states_of_all_kinds_in_packs_and_bases(stores):
    keys = [f"key-{n}" for n in range(20)]
    store = stores.open("rocksdb", "none", "checkpointing.base-min-size=2kb", "checkpointing.pack-deltas=1")
    for turn in range(8):
        states = handles(store)
        for n, key in enumerate(keys[turn:]):
            store.set_current_key(key)
            states["value"].update(n + turn)
            states["list"].add_all(["x"] * n)
            states["map"].put(f"{turn}", n)
            states["sum"].add(turn)
        checkpoint(store)
    expected = content(store, keys)
    store.close()
    stores.forget_local()
    for backend in BACKENDS:
        restored = stores.open(backend)
        assert content(restored, keys) == expected
        restored.close()
