"""What a reader finds in a checkpoint is what the handles said when it was made."""

from __future__ import annotations

import random

import msgspec
import pytest

import statestore
from statestore import (
    CheckpointNotFoundError,
    CorruptionError,
    IncompatibleStateError,
    StateMigrationError,
    TimeToLive,
    UsageError,
)
from statestore.checkpoint.storage import CheckpointStorage
from statestore.io import LocalStorage
from statestore.reading.reader import StateReader
from tests.conftest import BACKENDS
from tests.reading.conftest import complete_base
from tests.store.stores import Stores
from tests.store.test_rescale import Workers


class Mean:
    def create_accumulator(self):
        return [0, 0]

    def add(self, value, accumulator):
        return [accumulator[0] + value, accumulator[1] + 1]

    def get_result(self, accumulator):
        return accumulator[0] / accumulator[1]

    def merge(self, one, other):
        return [one[0] + other[0], one[1] + other[1]]


class Profile(msgspec.Struct):
    name: str
    age: int = 0


class Place(msgspec.Struct, frozen=True):
    country: str
    number: int


def kinds(store):
    return {
        "value": store.value_state("value", int),
        "list": store.list_state("list", str),
        "map": store.map_state("map", int, float),
        "sum": store.reducing_state("sum", int, lambda a, b: a + b),
        "mean": store.aggregating_state("mean", Mean(), list[int]),
        "timers": store.timers("timers", time="event-time"),
    }


def fill(store, rounds=3):
    """State of all kinds in a base and in deltas, and what a reader must find."""
    handles = kinds(store)
    expected = {name: {} for name in handles}
    info = None
    for round in range(rounds):
        for n in range(round * 10, 60):
            key = f"key-{n:02}" + "x" * (n % 3)
            store.set_current_key(key)
            if n % 7 == 6 and round:
                for handle in (handles["value"], handles["list"], handles["map"]):
                    handle.clear()
                for name in ("value", "list", "map"):
                    expected[name].pop(key, None)
            else:
                handles["value"].update(n - 2**70 * round)
                handles["list"].add_all([f"{round}-{i}" for i in range(n * 2)])
                handles["map"].put_all({n + i: i / 2 for i in range(n % 4)})
                expected["value"][key] = n - 2**70 * round
                expected["list"][key] = handles["list"].get()
                expected["map"][key] = dict(handles["map"].items())
            handles["sum"].add(n)
            handles["mean"].add(n)
            handles["timers"].register(n / 8 + round)
            expected["sum"][key] = handles["sum"].get()
            expected["timers"].setdefault(key, []).append(n / 8 + round)
        info = store.checkpoint({"round": round})
        complete_base(store)
    expected["mean"] = {key: [total, len(expected["timers"][key])] for key, total in expected["sum"].items()}
    for name in ("list", "map"):
        expected[name] = {key: value for key, value in expected[name].items() if value}
    return info, expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kind_on_every_backend(stores, backend):
    info, expected = fill(stores.open(backend, "none"))
    assert info.manifest.parts[0].base is not None
    assert info.manifest.parts[0].deltas
    reader = statestore.read(info.path)
    assert (reader.job, reader.checkpoint_id, reader.epoch, reader.meta) == ("job", 3, 3, {"round": 2})
    assert reader.total_bytes == info.total_bytes
    assert {state.name: (state.kind, state.key_type, state.value_type) for state in reader.states} == {
        "value": ("value", "str", "int"),
        "list": ("list", "str", "str"),
        "map": ("map", "str", "float"),
        "sum": ("reducing", "str", "int"),
        "mean": ("aggregating", "str", "list[int]"),
        "timers": ("timers", "str", "None"),
    }
    assert reader.states[2].map_key_type == "int"
    assert reader.states[5].time == "event-time"
    for state in reader:
        name = state.info.name
        assert state.to_dict() == expected[name], name
        assert {key: state.get(key) for key in expected[name]} == expected[name]
        assert state.get("nobody") is None
        assert state.get("key-06", default=7) == expected[name].get("key-06", 7)
        pairs = sum(map(len, expected[name].values())) if name == "timers" else len(expected[name])
        assert state.count() == pairs
        assert set(state.keys()) == expected[name].keys()


def test_prefixes_and_key_groups(stores):
    info, expected = fill(stores.open("memory", "none"))
    reader = statestore.read(info.path)
    for state in reader:
        every = expected[state.info.name]
        for prefix in ("", "key-1", "key-12", "key-12x", "key-12xx", "no", "key-06\0"):
            assert state.to_dict(prefix=prefix) == {
                key: value for key, value in every.items() if key.startswith(prefix)
            }
        whole = {}
        for group in range(reader.max_parallelism):
            part = state.to_dict(key_groups=group)
            assert len(part) < len(every)
            whole |= part
        assert whole == every
        assert state.to_dict(key_groups=range(3)) | state.to_dict(key_groups=[3, 4, 5, 6, 7]) == every
        assert state.count(prefix="key-1", key_groups=range(4)) + state.count(
            prefix="key-1", key_groups=range(4, 8)
        ) == state.count(prefix="key-1")
    with pytest.raises(UsageError, match="no key group 8"):
        reader.state("value").to_dict(key_groups=8)
    with pytest.raises(UsageError, match="no prefix"):
        reader.state("value").to_dict(prefix=5)


def test_keys_of_every_length(stores):
    store = stores.open("memory", "none", key_type=bytes)
    state = store.value_state("state", int)
    keys = [bytes([65 + n % 3]) * n for n in range(0, 400, 7)]
    state.update_many(keys, list(range(len(keys))))
    reader = statestore.read(store.checkpoint().path).state("state")
    for prefix in (b"", b"A", b"B" * 100, b"C" * 300):
        found = reader.to_dict(prefix=prefix)
        assert found == {key: n for n, key in enumerate(keys) if key.startswith(prefix)}


@pytest.mark.parametrize(
    ("key_type", "keys"),
    [
        (int, [0, -1, 2**70]),
        (bool, [True, False]),
        (tuple[str, int], [("a", 1), ("a", 2), ("", 0)]),
        (tuple[tuple[str, bool], bytes], [(("a", True), b"x")]),
    ],
)
def test_keys_come_by_their_stored_type(stores, key_type, keys):
    store = stores.open("memory", "none", key_type=key_type)
    state = store.map_state("state", key_type, int)
    for n, key in enumerate(keys):
        store.set_current_key(key)
        state.put(key, n)
    reader = statestore.read(store.checkpoint().path).state("state")
    assert reader.to_dict() == {key: {key: n} for n, key in enumerate(keys)}
    assert [reader.get(key) for key in keys] == [{key: n} for n, key in enumerate(keys)]
    if key_type == tuple[str, int]:
        assert reader.to_dict(prefix=("a",)).keys() == {("a", 1), ("a", 2)}
        with pytest.raises(UsageError, match="no prefix"):
            reader.count(prefix=("a", 1, 2))
    with pytest.raises(UsageError, match="keys of this state are"):
        reader.get("other")


def test_struct_keys_with_and_without_their_type(stores):
    store = stores.open("memory", "none", key_type=Place)
    state = store.value_state("state", int)
    state.update_many([Place("ch", 1), Place("ch", 2), Place("fr", 1)], [1, 2, 3])
    reader = statestore.read(store.checkpoint().path)
    typed = reader.state("state", key_type=Place)
    assert typed.to_dict() == {Place("ch", 1): 1, Place("ch", 2): 2, Place("fr", 1): 3}
    assert typed.get(Place("ch", 2)) == 2
    plain = reader.state("state")
    assert {(key.country, key.number): value for key, value in plain.items(prefix=("ch",))} == {
        ("ch", 1): 1,
        ("ch", 2): 2,
    }
    assert plain.get(("fr", 1)) == 3
    with pytest.raises(IncompatibleStateError, match="keyed by Place"):
        reader.state("state", key_type=str)


def test_values_come_as_builtins_or_as_a_declared_type(stores):
    store = stores.open("memory", "none")
    one, many, by_name = (
        store.value_state("one", Profile),
        store.list_state("many", Profile),
        store.map_state("by-name", str, Profile),
    )
    store.set_current_key("key")
    one.update(Profile("ann", 5))
    many.add(Profile("bob"))
    by_name["carl"] = Profile("carl")
    reader = statestore.read(store.checkpoint().path)
    assert reader.state("one").get("key") == {"name": "ann", "age": 5}
    assert reader.state("many").get("key") == [{"name": "bob", "age": 0}]
    assert reader.state("by-name").get("key") == {"carl": {"name": "carl", "age": 0}}
    assert reader.state("one", type=Profile).get("key") == Profile("ann", 5)
    assert reader.state("many", type=Profile).get("key") == [Profile("bob")]
    assert reader.state("by-name", type=Profile).get("key") == {"carl": Profile("carl")}
    for name in ("one", "many", "by-name"):
        with pytest.raises(StateMigrationError, match=f"state '{name}' was stored as Profile and is declared as int"):
            reader.state(name, type=int).get("key")
    with pytest.raises(UsageError, match="did you mean 'one'"):
        reader.state("on")


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_had_expired_by_the_checkpoints_clocks_is_hidden(stores, clock, backend):
    store = stores.open(backend, "none")
    ttl = TimeToLive("10s")
    handles = {
        "value": store.value_state("value", int, ttl=ttl),
        "list": store.list_state("list", int, ttl=ttl),
        "map": store.map_state("map", str, int, ttl=ttl),
        "event": store.value_state("event", int, ttl=TimeToLive("10s", time="event-time")),
        "ever": store.value_state("ever", int),
    }
    for key in ("old", "both"):
        store.set_current_key(key)
        for handle in (handles["value"], handles["event"], handles["ever"]):
            handle.update(1)
        handles["list"].add(1)
        handles["map"]["old"] = 1
    store.advance_event_time(100.0)
    clock.advance(9)
    for key in ("new", "both"):
        store.set_current_key(key)
        handles["value"].update(2)
        handles["event"].update(2)
        handles["list"].add(2)
        handles["map"]["new"] = 2
    before = statestore.read(store.checkpoint().path)
    complete_base(store)  # while nothing has expired
    clock.advance(2)
    store.advance_event_time(111.0)
    after = statestore.read(store.checkpoint().path)
    clock.advance(3600)
    assert before.state("list").to_dict() == {"old": [1], "both": [1, 2], "new": [2]}
    assert before.state("event").count() == 3
    assert after.state("value").to_dict() == {"both": 2, "new": 2}
    assert after.state("list").to_dict() == {"both": [2], "new": [2]}
    assert after.state("map").to_dict() == {"both": {"new": 2}, "new": {"new": 2}}
    assert after.state("event").to_dict() == {}
    assert after.state("ever").to_dict() == {"old": 1, "both": 1}
    assert [after.state(name).count() for name in handles] == [2, 2, 2, 0, 2]
    assert after.state("value").get("old") is None
    assert after.state("value", expired=True).to_dict() == {"old": 1, "both": 2, "new": 2}
    assert after.state("list", expired=True).get("both") == [1, 2]
    assert after.state("map", expired=True).get("both") == {"old": 1, "new": 2}
    assert [(state.ttl, state.time) for state in after.states] == [
        (10.0, "processing-time"), (10.0, "processing-time"), (10.0, "processing-time"), (10.0, "event-time"), (None, None),
    ]  # fmt: skip


def test_a_time_out_that_was_switched_off(stores, clock):
    store = stores.open("memory", "none")
    state = store.list_state("state", int, ttl="10s")
    store.set_current_key("key")
    state.add_all(range(100))
    clock.advance(11)
    state.add(7)
    store.checkpoint()
    store.close()
    store = stores.open("memory")
    store.list_state("state", int, ttl=0)
    reader = statestore.read(store.checkpoint().path)
    assert reader.states[0].ttl is None
    assert reader.state("state").get("key")[-1] == 7


class CountingStorage(LocalStorage):
    def __init__(self, root):
        super().__init__(root)
        self.bytes = 0

    def read(self, name, start=0, length=None):
        data = super().read(name, start, length)
        self.bytes += len(data)
        return data


@pytest.fixture
def large(places):
    """A checkpoint of several megabytes: most of it a base, then a few changes."""
    stores = Stores(places, "checkpointing.base-min-size=100b", auto_complete=True)
    store = stores.open("memory", "none")
    rng = random.Random(1)
    state, other = store.value_state("state", bytes), store.value_state("other", int)
    keys = [f"key-{n:06}" for n in range(30_000)]
    state.update_many(keys, [rng.randbytes(100) for _ in keys])
    other.update_many(keys[:100], list(range(100)))
    store.checkpoint()
    complete_base(store)
    other.update_many(keys[:10], list(range(10)))
    info = store.checkpoint()
    assert info.manifest.parts[0].base is not None
    assert info.total_bytes > 3_000_000
    yield info
    stores.close()


@pytest.mark.parametrize(
    ("share", "read"),
    [
        (0.06, lambda reader: reader.state("state").get("key-012345")),
        (0.06, lambda reader: reader.state("state").get("nobody")),
        (0.10, lambda reader: reader.state("state").count(key_groups=7)),
        (0.20, lambda reader: reader.state("state").count(key_groups=range(10))),
        (1.10, lambda reader: reader.state("state").count()),
        (1.10, lambda reader: reader.state("state").count(prefix="key-0")),
        (1.10, lambda reader: reader.state("other").count()),
    ],
    ids=["get", "get nothing", "group", "groups", "count", "prefix", "other"],
)
def test_reading_costs_what_is_asked_for(large, tmp_path, share, read):
    storage = CountingStorage(tmp_path / "checkpoints")
    checkpoints = CheckpointStorage(storage, "job")
    reader = StateReader(checkpoints, checkpoints.load(large.checkpoint_id))
    storage.bytes = 0
    read(reader)
    assert storage.bytes < share * large.total_bytes


def test_a_running_store_is_read_and_does_not_notice(tmp_path):
    url = f"rocksdb://{tmp_path}/state"
    with statestore.open(url) as store:
        counts = store.value_state("counts", int)
        store.set_current_key("key")
        counts.update(1)
        path = store.checkpoint().path
        counts.update(2)
        store.commit()
        names = sorted(str(file) for file in tmp_path.rglob("*"))
        assert statestore.read(url).path == path
        assert statestore.read(url).state("counts").get("key") == 1
        assert statestore.read(path.rpartition("/")[0]).state("counts").get("key") == 1
        assert statestore.read(f"file://{path}").state("counts").get("key") == 1
        assert sorted(str(file) for file in tmp_path.rglob("*")) == names
        counts.update(3)
        store.checkpoint()
        assert statestore.read(url).state("counts").get("key") == 3


def test_stores_are_found_by_what_they_were_opened_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url, options in [
        (f"file://{tmp_path}/state", {}),
        ("memory://", {"dir": "local"}),
        (f"rocksdb://{tmp_path}/state-2", {"checkpoint_dir": str(tmp_path / "elsewhere"), "job": "named"}),
    ]:
        with statestore.open(url, **options) as store:
            store.value_state("state", int)
            path = store.checkpoint().path
        assert statestore.read(url, **options).path == path


def test_where_nothing_is(tmp_path):
    with pytest.raises(UsageError, match=r"expected <dir>/<job>/chk-<n>"):
        statestore.read("nothing")
    with pytest.raises(UsageError, match="own process"):
        statestore.read("memory://")
    for where in (tmp_path / "no" / "chk-1", tmp_path / "no", f"rocksdb://{tmp_path}/state"):
        with pytest.raises(CheckpointNotFoundError):
            statestore.read(str(where))
    (tmp_path / "job").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint"):
        statestore.read(str(tmp_path / "job"))
    assert [file.name for file in tmp_path.rglob("*")] == ["job"]


def read_store(stores):
    """A store and a reader of its first checkpoint, of which nothing has been read."""
    store = stores.open("memory", "none", "checkpointing.num-retained=1", "checkpointing.inline-threshold=0")
    state = store.value_state("state", int)
    state.update_many(["a", "b"], [1, 2])
    reader = statestore.read(store.checkpoint().path)
    return store, state, reader


def test_a_checkpoint_that_is_collected_meanwhile(stores):
    store, state, reader = read_store(stores)
    complete_base(store)
    for n in range(3):
        state.update_many(["a"], [n])
        store.checkpoint()
        complete_base(store)
    for read in (lambda: reader.state("state").get("a"), reader.state("state").to_dict):
        with pytest.raises(
            CheckpointNotFoundError, match=r"chk-1: it was collected, or removed, meanwhile; the newest is .*chk-4"
        ):
            read()


def test_a_checkpoint_that_is_being_collected(stores):
    _, _, reader = read_store(stores)
    (delta,) = reader.manifest.parts[0].deltas
    file = stores.checkpoints / "job" / delta.path
    file.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        reader.state("state").get("a")
    storage = CheckpointStorage(LocalStorage(stores.checkpoints), "job")
    storage.complete(msgspec.structs.replace(reader.manifest, checkpoint_id=2))
    with pytest.raises(CheckpointNotFoundError, match="is gone, so it is being collected"):
        reader.state("state").get("a")


def test_damage_is_not_taken_for_collection(stores):
    _, _, reader = read_store(stores)
    (delta,) = reader.manifest.parts[0].deltas
    file = stores.checkpoints / "job" / delta.path
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptionError, match="hash"):
        reader.state("state").to_dict()


def test_an_unknown_key_type_is_named():
    from statestore.reading.values import key_codec_of

    for name in ("float", "tuple[str", "tuple[]", "Name(a str)", "str int", "", "Name()", "a-b", "str!"):
        with pytest.raises(CorruptionError, match="key type"):
            key_codec_of(name, None, "state")


def test_a_checkpoint_of_several_stores(places):
    """Also one whose base is what other stores had of its key groups."""
    keys = {f"key-{n}": n for n in range(60)}
    for parallelism, restore in ((3, "none"), (2, "latest")):
        workers = Workers(places, "memory", parallelism, restore, "checkpointing.base-min-size=100b")
        for key, n in list(keys.items())[:: 4 - parallelism]:
            states = workers.at(key)
            states["value"].update(n * parallelism)
            states["list"].add(str(parallelism))
            states["timers"].register(float(n))
        info = workers.checkpoint()
        workers.crash()
    reader = statestore.read(info.path)
    assert len(reader.manifest.parts) == 2
    expected = {key: n * (2 if n % 2 == 0 else 3) for key, n in keys.items()}
    assert reader.state("value").to_dict() == expected
    assert {key: reader.state("value").get(key) for key in keys} == expected
    assert reader.state("list").to_dict() == {key: ["3"] + ["2"] * (n % 2 == 0) for key, n in keys.items()}
    assert reader.state("timers").to_dict() == {key: [float(n)] for key, n in keys.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_savepoints(stores, tmp_path, backend):
    store = stores.open(backend, "none")
    info, expected = fill(store)
    for where in (f"{tmp_path}/savepoint", f"file://{tmp_path}/savepoint/", f"{tmp_path}/savepoint/_metadata"):
        if not (tmp_path / "savepoint").exists():
            store.savepoint(where)
        reader = statestore.read(where)
        assert {state.info.name: state.to_dict() for state in reader} == expected
    assert list(statestore.diff(info.path, reader)) == []
    fresh = statestore.read(f"{tmp_path}/savepoint")
    (tmp_path / "savepoint").rename(tmp_path / "moved")
    assert statestore.read(f"{tmp_path}/moved").state("value").to_dict() == expected["value"]
    with pytest.raises(CheckpointNotFoundError, match=r"removed, meanwhile$"):
        fresh.state("sum").to_dict()
