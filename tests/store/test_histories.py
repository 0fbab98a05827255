"""State that neither log nor checkpoint explains, and checkpoints from elsewhere: nothing that was acknowledged goes silently."""

from __future__ import annotations

import pytest

from statestore import CorruptionError, FencedError, IncompatibleStateError, UsageError
from tests.store.stores import Stores, handles

SHARED = ("redis", "filesystem")


def number(store, value=None):
    with store.key("key"):
        if value is not None:
            handles(store)["value"].update(value)
        return handles(store)["value"].value()


@pytest.fixture
def elsewhere(places, tmp_path):
    """The same shared backend, opened from another folder."""

    def make(name):
        stores = Stores(places, f"state.filesystem.url={tmp_path / 'shared'}", auto_complete=True)
        stores.checkpoints = tmp_path / name
        made.append(stores)
        return stores, f"state.dir={tmp_path / name}"

    made = []
    yield make
    for stores in made:
        stores.close()


@pytest.mark.parametrize("backend", SHARED)
def test_state_of_another_folder_is_not_wiped_unasked(elsewhere, backend):
    here, dir_here = elsewhere("here")
    store = here.open(backend, None, dir_here)
    number(store, 42)
    store.commit()
    store.close()
    there, dir_there = elsewhere("there")
    with pytest.raises(UsageError, match=r"holds state \(epoch 1\).*start over"):
        there.open(backend, None, dir_there)
    assert number(here.open(backend, None, dir_here)) == 42


@pytest.mark.parametrize("backend", SHARED)
def test_of_two_that_count_alike_the_later_owns_the_state(elsewhere, backend):
    here, dir_here = elsewhere("here")
    old = here.open(backend, None, dir_here, "state.pending-size=1b")
    number(old, 1)
    old.commit()
    old._applier.finish()
    there, dir_there = elsewhere("there")
    new = there.open(backend, "none", dir_there)
    assert (old.attempt, new.attempt) == (1, 1)
    number(old, 2)
    with pytest.raises(FencedError):
        old.commit()
        old._applier.finish()
    number(new, 7)
    new.commit()
    new._applier.finish()
    assert number(new) == 7


@pytest.mark.parametrize("backend", SHARED)
def test_a_folder_that_was_deleted_does_not_lock_its_owner_out(elsewhere, backend):
    here, dir_here = elsewhere("here")
    for _ in range(3):
        store = here.open(backend, None, dir_here)
        number(store, 42)
        store.commit()
        store.close()
    fresh, dir_fresh = elsewhere("fresh")
    with pytest.raises(UsageError, match="start over"):
        fresh.open(backend, None, dir_fresh)
    store = fresh.open(backend, "none", dir_fresh)
    assert number(store) is None
    assert store.attempt > 3


@pytest.mark.parametrize("backend", ["memory", "rocksdb", "filesystem", "redis"])
def test_commits_on_top_of_a_checkpoint_from_elsewhere(embedded, tmp_path, backend):
    store = embedded.open("memory", None)
    number(store, 1)
    path = store.checkpoint().path
    store.close()
    embedded.forget_local()
    embedded.checkpoints = tmp_path / "elsewhere"
    store = embedded.open(backend, path)
    number(store, 2)
    store.commit()
    embedded.crash(store)
    assert number(embedded.open(backend, None)) == 2


@pytest.mark.parametrize("fault", ["parallelism", "missing"])
def test_a_restore_that_is_refused_leaves_all_as_it_was(embedded, tmp_path, fault):
    store = embedded.open("rocksdb", None, "checkpointing.inline-threshold=0")
    number(store, 1)
    info = store.checkpoint()
    number(store, 42)
    store.commit()
    embedded.crash(store)
    if fault == "missing":
        (delta,) = info.manifest.parts[0].deltas
        file = embedded.checkpoints / "job" / delta.path
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(CorruptionError, match=r"missing"):
            embedded.open("rocksdb", info.path)
        file.write_bytes(data)
    else:
        with pytest.raises(IncompatibleStateError):
            embedded.open("rocksdb", info.path, "state.max-parallelism=64")
    assert number(embedded.open("rocksdb", None)) == 42


@pytest.mark.parametrize("backend", ["memory", "rocksdb", "filesystem", "redis"])
def test_another_number_of_key_groups_is_noticed_without_a_checkpoint(embedded, backend):
    store = embedded.open(backend, None)
    number(store, 42)
    store.commit()
    store.close()
    with pytest.raises(IncompatibleStateError, match="max-parallelism = 128"):
        embedded.open(backend, None, "state.max-parallelism=64")
    assert number(embedded.open(backend, None)) == 42


@pytest.mark.parametrize(
    ("kind", "declared", "value"),
    [
        ("value", int, True),
        ("value", list[int], ["a"]),
        ("value", tuple[int, str], (1, 2)),
        ("value", int | None, "x"),
        ("list", int, True),
        ("list", list[int], ["a"]),
        ("map", int, True),
        ("map", dict[str, int], {"a": "b"}),
    ],
)
def test_what_could_not_be_read_again_is_not_written(embedded, kind, declared, value):
    store = embedded.open("memory", None)
    store.set_current_key("key")
    match kind:
        case "value":
            store.value_state("s", declared).update(value)
        case "list":
            store.list_state("s", declared).add(value)
        case "map":
            store.map_state("s", str, declared).put("entry", value)
    with pytest.raises(UsageError, match="state 's'"):
        store.commit()
