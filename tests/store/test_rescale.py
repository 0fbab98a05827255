"""A checkpoint made by N stores, each with a range of the key groups, opens as M stores, for all N and M; nothing is lost or doubled."""

from __future__ import annotations

import collections
import random

import pytest

from statestore import UsageError, load_config, open_store, split_key_groups
from statestore.checkpoint.manifest import InheritedBase
from statestore.checkpoint.parts import combined, complete_parts
from statestore.checkpoint.storage import CheckpointStorage
from statestore.checkpoint.view import CheckpointView
from statestore.errors import FencedError, IncompatibleStateError
from statestore.io import open_storage
from statestore.keys import KeyCodec, group_start, key_group_of
from tests.conftest import BACKENDS, seeds

MAX_PARALLELISM = 6
KEYS = [f"key-{n}" for n in range(60)]
EMPTY = (None, [], {}, set())
encode = KeyCodec(str).encode


class Workers:
    """The stores of one job, and what a coordinator does with them."""

    def __init__(self, places, backend, parallelism, restore, *settings, auto_complete=False):
        url = f"{places.folder}/checkpoints"
        self.checkpoints = CheckpointStorage(open_storage(url), "job")
        overrides = [
            *places.overrides(backend),
            f"checkpointing.dir={url}",
            f"state.max-parallelism={MAX_PARALLELISM}",
            *settings,
        ]
        attempt = self.checkpoints.claim_attempt()
        self.ranges = split_key_groups(parallelism, MAX_PARALLELISM)
        self.stores = [
            open_store(
                load_config(overrides=overrides),
                "job",
                restore=restore,
                key_groups=key_groups,
                attempt=attempt,
                auto_complete=auto_complete,
            )
            for key_groups in self.ranges
        ]
        self.states = [
            {
                "value": store.value_state("value", int),
                "list": store.list_state("list", str),
                "map": store.map_state("map", str, int),
                "timers": store.timers("timers"),
            }
            for store in self.stores
        ]

    def at(self, key):
        """The states of the worker that has the key, which is made the current one."""
        group = self.stores[0].key_group(key)
        worker = next(n for n, own in enumerate(self.ranges) if group in own)
        self.stores[worker].set_current_key(key)
        return self.states[worker]

    def begin(self, meta=None):
        return [store.begin_checkpoint(meta) for store in self.stores]

    def checkpoint(self, meta=None):
        info = complete_parts(self.checkpoints, [pending.upload() for pending in self.begin(meta)], meta)
        for store in self.stores:
            store.complete(info)
        return info

    def wait_for_bases(self):
        for store in self.stores:
            store._chain.wait()

    def change(self, rng, model, count=40):
        """Random changes, made to the states and to a dict alike."""
        for _ in range(count):
            key, n = rng.choice(KEYS), rng.randrange(1000)
            states, known = self.at(key), model[key]
            match rng.randrange(7):
                case 0 | 1:
                    states["value"].update(n)
                    known["value"] = n
                case 2:
                    states["value"].clear()
                    known.pop("value", None)
                case 3:
                    states["list"].add(str(n))
                    known.setdefault("list", []).append(str(n))
                case 4:
                    states["map"][str(n % 5)] = n
                    known.setdefault("map", {})[str(n % 5)] = n
                case 5:
                    states["map"].remove(str(n % 5))
                    known.get("map", {}).pop(str(n % 5), None)
                case 6:
                    states["timers"].register(n)
                    known.setdefault("timers", set()).add(n)

    def content(self):
        found = collections.defaultdict(dict)
        for key in KEYS:
            states = self.at(key)
            entry = {"value": states["value"].value(), "list": states["list"].get(), "map": dict(states["map"].items())}
            found[key] = {name: value for name, value in entry.items() if value not in EMPTY}
        for states in self.states:
            for time, key in states["timers"].due(10_000):
                found[key].setdefault("timers", set()).add(time)
        return {key: entry for key, entry in found.items() if entry}

    def crash(self):
        for store in self.stores:
            store.release()


def expected(model):
    known = {key: {name: value for name, value in entry.items() if value not in EMPTY} for key, entry in model.items()}
    return {key: entry for key, entry in known.items() if entry}


@pytest.fixture
def workers(places):
    opened = []

    def open_workers(backend, parallelism, restore="latest", *settings, **options):
        opened.append(Workers(places, backend, parallelism, restore, *settings, **options))
        return opened[-1]

    yield open_workers
    for some in opened:
        some.crash()


def test_ranges_cover_every_key_group_once():
    for max_parallelism in (1, 2, 7, 128):
        for parallelism in range(1, max_parallelism + 1):
            ranges = split_key_groups(parallelism, max_parallelism)
            assert [group for own in ranges for group in own] == list(range(max_parallelism))
            assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    with pytest.raises(UsageError, match="from 1 to the max parallelism 4"):
        split_key_groups(5, 4)


@pytest.mark.parametrize("before", range(1, MAX_PARALLELISM + 1))
@pytest.mark.parametrize("after", range(1, MAX_PARALLELISM + 1))
def test_every_parallelism_becomes_every_other(workers, before, after):
    rng, model = random.Random(before * 10 + after), collections.defaultdict(dict)
    first = workers("memory", before, "none")
    for position in range(3):
        first.change(rng, model)
        first.checkpoint({"position": position})
    first.crash()
    second = workers("memory", after)
    assert [store.restored.meta for store in second.stores] == [{"position": 2}] * after
    assert second.content() == expected(model)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", seeds(2))
def test_histories_of_rescaling(workers, backend, seed):
    """Again and again, with bases renewed now and then, and with changes lost that no checkpoint has."""
    rng, model = random.Random(seed), collections.defaultdict(dict)
    some = workers(backend, 2, "none", "checkpointing.base-min-size=600b")
    for _ in range(6):
        for _ in range(rng.randrange(1, 5)):
            some.change(rng, model)
            some.checkpoint()
            if rng.random() < 0.5:
                some.wait_for_bases()
        lost = collections.defaultdict(dict)
        some.change(rng, lost)
        for store in some.stores:
            store.commit()
        some.crash()
        some = workers(backend, rng.randrange(1, MAX_PARALLELISM + 1), "latest", "checkpointing.base-min-size=600b")
        content = some.content()
        assert content == expected(model)
        for entry in model.values():
            entry.pop("timers", None)  # taken out by looking


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_checkpoint_after_it_uploads_what_changed_only(workers, backend):
    first = workers(backend, 2, "none")
    for key in KEYS:
        first.at(key)["list"].add_all(random.Random(key).randbytes(500).hex() for _ in range(5))
    before = first.checkpoint()
    first.crash()
    second = workers(backend, 3)
    second.at(KEYS[0])["value"].update(1)
    after = second.checkpoint()
    assert 0 < after.uploaded_bytes < before.uploaded_bytes / 20
    assert all(isinstance(part.base, InheritedBase) for part in after.manifest.parts)
    second.crash()
    third = workers(backend, 1)
    assert third.at(KEYS[0])["value"].value() == 1
    assert len(third.at(KEYS[7])["list"].get()) == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_base_of_their_own_replaces_what_was_inherited(workers, backend):
    rng, model = random.Random(3), collections.defaultdict(dict)
    first = workers(backend, 3, "none")
    first.change(rng, model, 200)
    old = {file.path for file in first.checkpoint().manifest.files()}
    first.crash()
    second = workers(backend, 2)
    for _ in range(4):
        second.change(rng, model, 10)
        info = second.checkpoint()
        second.wait_for_bases()
    assert not any(isinstance(part.base, InheritedBase) for part in info.manifest.parts)
    assert old.isdisjoint(file.path for file in info.manifest.files())
    assert second.stores[0].collected()
    assert not any(second.checkpoints.storage.exists(f"job/{path}") for path in old)
    second.crash()
    assert workers(backend, 4).content() == expected(model)


@pytest.mark.parametrize("backend", ["rocksdb", "redis", "filesystem"])
def test_a_worker_that_keeps_its_range_keeps_its_state(workers, backend, monkeypatch):
    first = workers(backend, 3, "none")
    for key in KEYS:
        first.at(key)["value"].update(1)
    first.checkpoint()
    for store in first.stores:
        store.close()
    monkeypatch.setattr(CheckpointView, "__init__", None)  # so that reading the checkpoint would fail
    second = workers(backend, 3)
    assert all(second.at(key)["value"].value() == 1 for key in KEYS)


def test_what_workers_of_an_embedding_program_committed_counts(workers):
    first = workers("rocksdb", 2, "none", auto_complete=True)
    first.at(KEYS[0])["value"].update(1)
    first.checkpoint()
    first.crash()
    second = workers("rocksdb", 3, auto_complete=True)
    for key in KEYS[:5]:
        second.at(key)["value"].update(2)
    for store in second.stores:
        store.commit()
    second.crash()
    third = workers("rocksdb", 3, auto_complete=True)
    assert [third.at(key)["value"].value() for key in KEYS[:6]] == [2] * 5 + [None]


def test_only_the_segments_of_the_own_key_groups_are_read(workers, monkeypatch):
    rng = random.Random(5)
    settings = ["base-min-size=1kb", "base-ratio=0.01", "inline-threshold=0"]
    first = workers("memory", 1, "none", *[f"checkpointing.{setting}" for setting in settings])
    monkeypatch.setattr("statestore.checkpoint.upload.SEGMENT_BYTES", 8 << 10)
    monkeypatch.setattr(
        "statestore.checkpoint.upload.SegmentWriter.__init__.__kwdefaults__", {"block_bytes": 1 << 10, "level": 1}
    )
    monkeypatch.setattr("statestore.segment.PIECE_ENTRIES_MAX", 4)
    for key in KEYS:
        first.at(key)["list"].add_all(rng.randbytes(700).hex() for _ in range(2))
    first.checkpoint()
    first.wait_for_bases()
    info = first.checkpoint()
    segments = info.manifest.parts[0].base.segments
    assert len(segments) > 8
    read = collections.Counter()
    original = first.checkpoints.storage.read.__func__

    def counted(storage, name, start=0, length=None):
        data = original(storage, name, start, length)
        if name.endswith(".seg"):
            read[name] += len(data)
        return data

    monkeypatch.setattr(type(first.checkpoints.storage), "read", counted)
    first.crash()
    own = range(2, 3)
    store = open_store(
        load_config(
            overrides=[
                "state.backend=memory",
                f"state.max-parallelism={MAX_PARALLELISM}",
                f"checkpointing.dir={first.checkpoints.storage.url}",
            ]
        ),
        "job",
        restore="latest",
        key_groups=own,
        root=None,
    )
    start, stop = group_start(own.start), group_start(own.stop)
    needed = {s.path for s in segments if s.first_key < stop and s.last_key >= start}
    assert {name.removeprefix("job/") for name in read} == needed
    assert len(needed) < len(segments)
    assert sum(read.values()) < info.total_bytes / 2
    store.release()


def test_keys_of_others_are_refused(workers):
    some = workers("memory", 2, "none")
    key = next(key for key in KEYS if key_group_of(encode(key), MAX_PARALLELISM) >= 3)
    some.at(KEYS[0])["value"].update(1)
    for store in some.stores:
        store.commit()
    store, states = some.stores[0], some.states[0]
    store.set_current_key(key)
    with pytest.raises(UsageError, match=r"key group [345], this store keeps 0 to 2"):
        states["value"].value()
    with pytest.raises(UsageError, match=r"key group [345], this store keeps 0 to 2"):
        states["timers"].register(1)
    states["value"].update(1)
    with pytest.raises(UsageError, match=r"key group [345], this store keeps 0 to 2"):
        store.commit()


def test_a_checkpoint_without_every_part_is_refused(workers):
    some = workers("memory", 3, "none")
    parts = [pending.upload() for pending in some.begin()]
    for wrong in (parts[:2], parts[1:], [*parts, parts[0]]):
        with pytest.raises(UsageError, match="the parts have the key groups"):
            combined(wrong)
    assert some.checkpoints.latest() is None


def test_states_registered_in_another_order_are_noticed(workers):
    some = workers("memory", 2, "none")
    some.stores[0].value_state("a", int)
    some.stores[0].value_state("b", int)
    some.stores[1].value_state("b", int)
    parts = [pending.upload() for pending in some.begin()]
    with pytest.raises(IncompatibleStateError, match="in the same order"):
        combined(parts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_older_attempt_completes_nothing_after_a_rescale(workers, backend):
    zombies = workers(backend, 2, "none")
    zombies.at(KEYS[0])["value"].update(1)
    zombies.checkpoint()
    parts = [pending.upload() for pending in zombies.begin()]
    newer = workers("memory", 3)
    with pytest.raises(FencedError):
        complete_parts(zombies.checkpoints, parts)
    assert newer.at(KEYS[0])["value"].value() == 1


def test_bad_ranges(places):
    config = load_config(overrides=[*places.overrides("memory"), "state.max-parallelism=4"])
    for wrong in (range(0), range(3, 5), range(0, 4, 2), range(-1, 2)):
        with pytest.raises(UsageError, match="must be a part of range"):
            open_store(config, "job", restore=None, key_groups=wrong)
