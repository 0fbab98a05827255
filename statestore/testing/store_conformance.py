"""The conformance suite of a whole store over a backend: every kind of state, through commits, checkpoints, crashes and restores.

It is run on top of `BackendConformance`, and takes as little:

    class TestStoreOnMyBackend(StoreConformance):
        backend = "mine"                           # as in state.backend: installed, or made known with register_backend

        @pytest.fixture
        def settings(self, server):                # only where it needs any
            return [f"state.mine.url={server.url}"]
"""

from __future__ import annotations

import operator
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statestore.checkpoint.parts import complete_parts
from statestore.config import load_config
from statestore.errors import FencedError
from statestore.keys import split_key_groups
from statestore.opening import open_store
from statestore.reading.reader import StateReader
from statestore.store import StateStore
from statestore.testing.clock import FakeClock
from statestore.types import Attempt

KEYS = [f"key-{n}" for n in range(30)]
SMALL = (
    # Everything happens with a few bytes already: eviction, applying, new bases.
    "state.cache-size=2kb",
    "state.pending-size=1kb",
    "state.max-parallelism=8",
    "checkpointing.base-min-size=2kb",
)


class _Mean:
    """Aggregate of count and sum."""

    def create_accumulator(self) -> list[int]:
        return [0, 0]

    def add(self, value: int, accumulator: list[int]) -> list[int]:
        return [accumulator[0] + 1, accumulator[1] + value]

    def get_result(self, accumulator: list[int]) -> float:
        return accumulator[1] / accumulator[0]

    def merge(self, one: list[int], other: list[int]) -> list[int]:
        return [one[0] + other[0], one[1] + other[1]]


class _Handles:
    """One state of each kind, and what should be in them according to plain Python objects."""

    def __init__(self, store: StateStore):
        self.store = store
        self.value = store.value_state("value", str)
        self.list = store.list_state("list", int)
        self.map = store.map_state("map", str, int)
        self.total = store.reducing_state("total", int, operator.add)
        self.mean = store.aggregating_state("mean", _Mean(), list[int])

    def content(self) -> dict[str, Any]:
        """All state of all keys that have any."""
        found = {}
        for key in KEYS:
            self.store.set_current_key(key)
            state = {
                "value": self.value.value(),
                "list": self.list.get(),
                "map": dict(self.map.items()),
                "total": self.total.get(),
                "mean": self.mean.get(),
            }
            if any(part not in (None, [], {}) for part in state.values()):
                found[key] = state
        return found

    def change(self, model: dict[str, Any], rng: random.Random) -> None:
        """Change the state of some key, and the model alike."""
        key, number = rng.choice(KEYS), rng.randrange(1000)
        expected = model.setdefault(
            key, {"value": None, "list": [], "map": {}, "total": None, "mean": None, "added": []}
        )
        self.store.set_current_key(key)
        match rng.randrange(7):
            case 0:
                self.value.update(f"value {number}" * rng.randrange(1, 10))
                expected["value"] = self.value.value()
            case 1:
                self.list.add_all(range(number % 50))
                expected["list"] = [*expected["list"], *range(number % 50)]
            case 2:
                self.map.put(f"entry-{number % 5}", number)
                expected["map"] = {**expected["map"], f"entry-{number % 5}": number}
            case 3:
                self.map.remove(f"entry-{number % 5}")
                expected["map"] = {
                    name: value for name, value in expected["map"].items() if name != f"entry-{number % 5}"
                }
            case 4:
                self.total.add(number)
                expected["total"] = number + (expected["total"] or 0)
            case 5:
                self.mean.add(number)
                expected["added"] = [*expected["added"], number]
                expected["mean"] = sum(expected["added"]) / len(expected["added"])
            case 6:
                for state in (self.value, self.list, self.map, self.total, self.mean):
                    state.clear()
                del model[key]


def _content_of(model: dict[str, Any]) -> dict[str, Any]:
    states = {key: {part: value for part, value in state.items() if part != "added"} for key, state in model.items()}
    return {key: state for key, state in states.items() if any(part not in (None, [], {}) for part in state.values())}


def _copy(model: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(state) for key, state in model.items()}


class _Stores:
    """Opens one job's store again and again."""

    def __init__(self, folder: Path, backend: str, settings: list[str]):
        self.folder, self.backend, self.settings = folder, backend, settings
        self.clock = FakeClock()
        self._opened: list[StateStore] = []

    def open(
        self,
        restore: str | None = None,
        *more: str,
        backend: str | None = None,
        embedded: bool = True,
        place: str = "local",
        key_groups: range | None = None,
        attempt: Attempt | None = None,
    ) -> StateStore:
        """The store, with `more` settings; `place` names the machine it is on, `embedded` says whether a commit counts by itself."""
        overrides = [
            f"state.backend={backend or self.backend}",
            f"state.dir={self.folder / place}",
            f"checkpointing.dir={self.folder / 'checkpoints'}",
            *SMALL,
            *self.settings,
            *more,
        ]
        store = open_store(
            load_config(overrides=overrides),
            "job",
            restore=restore,
            auto_complete=embedded,
            clock=self.clock,
            key_groups=key_groups,
            attempt=attempt,
        )
        self._opened.append(store)
        return store

    def forget_local(self) -> None:
        """Lose the local disk."""
        shutil.rmtree(self.folder / "local", ignore_errors=True)

    def close(self) -> None:
        """Let all of them go."""
        for store in self._opened:
            store.release()


class StoreConformance:
    """Subclass it, and name your backend."""

    backend: str

    @pytest.fixture
    def settings(self) -> list[str]:
        """Settings that the backend needs, `key=value` each."""
        return []

    @pytest.fixture
    def stores(self, tmp_path: Path, settings: list[str]) -> Iterator[_Stores]:
        """Stores of one job."""
        stores = _Stores(tmp_path, self.backend, settings)
        yield stores
        stores.close()

    @pytest.mark.parametrize("seed", range(2))
    def test_commits_survive_crashes(self, stores: _Stores, seed: int) -> None:
        """Of an embedded store every commit counts; what was not committed is gone."""
        rng = random.Random(seed)
        model: dict[str, Any] = {}
        committed, position = _copy(model), 0
        states = _Handles(stores.open())
        for step in range(250):
            states.change(model, rng)
            if rng.random() < 0.2:
                position = step
                states.store.commit({"position": position})
                committed = _copy(model)
            elif rng.random() < 0.05:
                position = step
                states.store.checkpoint({"position": position})
                committed = _copy(model)
            elif rng.random() < 0.03:
                states.store.release()
                model = _copy(committed)
                states = _Handles(stores.open())
                assert states.store.restored is None or states.store.restored.meta == {"position": position}
                assert states.content() == _content_of(model)
        assert states.content() == _content_of(model)

    def test_a_job_goes_back_to_its_checkpoint(self, stores: _Stores) -> None:
        """Commits behind it do not count, and leave no trace."""
        rng, model = random.Random(1), dict[str, Any]()
        states = _Handles(stores.open("none", embedded=False))
        for position in range(5):
            for _ in range(60):
                states.change(model, rng)
            states.store.checkpoint({"position": position})
            expected = _content_of(model)
            for _ in range(60):
                states.change(model, rng)
            states.store.commit({"position": "behind"})
            states.store.release()
            states = _Handles(stores.open("latest", embedded=False))
            assert states.store.restored is not None
            assert states.store.restored.meta == {"position": position}
            assert states.content() == expected
            model = {}
            for key in KEYS:
                states.store.set_current_key(key)
                for state in (states.value, states.list, states.map, states.total, states.mean):
                    state.clear()

    @pytest.mark.parametrize("way", ["from the memory backend", "to the memory backend", "to itself"])
    def test_checkpoints_move_between_backends(self, stores: _Stores, way: str) -> None:
        """They hold everything, whatever made them, and the local disk is not needed."""
        source = "memory" if way.startswith("from") else None
        target = "memory" if way == "to the memory backend" else None
        rng, model = random.Random(2), dict[str, Any]()
        states = _Handles(stores.open("none", backend=source))
        for position in range(4):
            for _ in range(100):
                states.change(model, rng)
            info = states.store.checkpoint({"position": position})
        states.store.close()
        stores.forget_local()
        for restore in ("latest", info.path):
            states = _Handles(stores.open(restore, backend=target))
            assert states.store.restored is not None
            assert states.store.restored.meta == {"position": 3}
            assert states.content() == _content_of(model)
            assert states.store.count_keys() == len(_content_of(model))
            states.store.close()

    def test_an_older_checkpoint_can_be_gone_back_to(self, stores: _Stores) -> None:
        """Nothing of what came after it is left."""
        rng, model = random.Random(3), dict[str, Any]()
        states, made = _Handles(stores.open("none")), []
        for _ in range(3):
            for _ in range(100):
                states.change(model, rng)
            made.append((states.store.checkpoint().path, _content_of(model)))
        states.store.close()
        for path, expected in reversed(made[:2]):
            states = _Handles(stores.open(path))
            assert states.content() == expected
            states.store.close()

    def test_a_lazy_restore_shows_the_same_at_every_moment(self, stores: _Stores) -> None:
        """What is changed meanwhile stays, and a crash in between begins it anew."""
        rng, model = random.Random(6), dict[str, Any]()
        states = _Handles(stores.open("none", "checkpointing.base-format=portable"))
        for _ in range(5):
            for _ in range(60):
                states.change(model, rng)
            states.store.checkpoint()
        states.store.close()
        stores.forget_local()
        for _ in range(2):
            states = _Handles(stores.open("latest", "state-recovery.lazy=true"))
            assert states.content() == _content_of(model)
            for _ in range(60):
                states.change(model, rng)
            states.store.commit()
            states.store.release()
        states = _Handles(stores.open("latest", "state-recovery.lazy=true"))
        states.store.wait_hydrated()
        assert states.content() == _content_of(model)
        assert states.store.count_keys() == len(_content_of(model))

    @pytest.mark.parametrize("target", ["itself", "memory"])
    def test_a_savepoint_stands_for_itself(self, stores: _Stores, target: str) -> None:
        """Wherever its folder is, and though the job and all of its checkpoints are gone."""
        rng, model = random.Random(7), dict[str, Any]()
        states = _Handles(stores.open("none"))
        for _ in range(200):
            states.change(model, rng)
        states.store.savepoint(str(stores.folder / "savepoint"), {"position": 7})
        expected = _content_of(model)
        for _ in range(50):
            states.change(model, rng)
        states.store.close()
        stores.forget_local()
        shutil.rmtree(stores.folder / "checkpoints")
        moved = shutil.move(stores.folder / "savepoint", stores.folder / "moved")
        states = _Handles(stores.open(str(moved), backend="memory" if target == "memory" else None))
        assert states.store.restored is not None
        assert states.store.restored.meta == {"position": 7}
        assert states.content() == expected

    @pytest.mark.parametrize("after", [1, 3, 8])
    def test_state_is_spread_over_other_stores(self, stores: _Stores, after: int) -> None:
        """Two stores share the key groups, and then fewer or more of them."""
        expected = {key: f"{key} {turn}" for turn, key in enumerate(KEYS)}
        for turn, parallelism in enumerate((2, after)):
            opened: list[StateStore] = []
            for own in split_key_groups(parallelism, 8):
                attempt = opened[0].attempt if opened else None
                restore = "latest" if turn else "none"
                opened.append(stores.open(restore, embedded=False, key_groups=own, attempt=attempt))
            states = [store.value_state("value", str) for store in opened]
            for key in KEYS:
                worker = next(n for n, store in enumerate(opened) if store.key_group(key) in store.key_groups)
                opened[worker].set_current_key(key)
                assert states[worker].value() == (expected[key] if turn else None)
                states[worker].update(expected[key])
            info = complete_parts(opened[0].checkpoints, [store.begin_checkpoint().upload() for store in opened])
            for store in opened:
                store.complete(info)
                assert store.count_keys() == sum(store.key_group(key) in store.key_groups for key in KEYS)
                store.close()

    def test_a_checkpoint_is_read_from_outside(self, stores: _Stores) -> None:
        """Key by key and as a whole, while the store goes on."""
        rng, model = random.Random(8), dict[str, Any]()
        states = _Handles(stores.open("none"))
        for _ in range(3):
            for _ in range(100):
                states.change(model, rng)
            info = states.store.checkpoint()
        expected = _content_of(model)
        for _ in range(100):
            states.change(model, rng)
        states.store.commit()
        reader = StateReader(states.store.checkpoints, info.manifest)
        for name, nothing in (("value", None), ("list", []), ("map", {}), ("total", None)):
            known = {key: state[name] for key, state in expected.items() if state[name] not in (None, [], {})}
            assert reader.state(name).to_dict() == known
            assert [reader.state(name).get(key) or nothing for key in KEYS] == [known.get(key, nothing) for key in KEYS]

    def test_types_may_change(self, stores: _Stores) -> None:
        """What was stored is read as what it is declared as now, also where only some of it was written again."""
        store = stores.open("none")
        counts = store.value_state("counts", int)
        for n, key in enumerate(KEYS):
            store.set_current_key(key)
            counts.update(n)
        store.checkpoint()
        store.close()
        for _ in range(2):
            store = stores.open("latest")
            wider = store.value_state("counts", float)
            assert wider.get_many(KEYS) == [float(n) for n in range(len(KEYS))]
            store.set_current_key(KEYS[3])
            wider.update(3.0)
            store.checkpoint()
            store.close()
            stores.forget_local()

    def test_state_times_out(self, stores: _Stores) -> None:
        """It is not returned any more, and leaves the backend."""
        store = stores.open("none")
        value, entries = store.value_state("value", str, ttl="1min"), store.map_state("map", str, int, ttl="1min")
        for key in KEYS:
            store.set_current_key(key)
            value.update("x")
            entries.put("old", 1)
        store.commit()
        stores.clock.advance(30)
        store.set_current_key(KEYS[0])
        value.update("y")
        entries.put("new", 2)
        store.commit()
        store.release()
        store = stores.open()
        value, entries = store.value_state("value", str, ttl="1min"), store.map_state("map", str, int, ttl="1min")
        stores.clock.advance(31)
        assert value.get_many(KEYS) == ["y", *[None] * (len(KEYS) - 1)]
        with store.key(KEYS[0]):
            assert dict(entries.items()) == {"new": 2}
        for _ in range(40):  # each commit sweeps some of it away
            stores.clock.advance(11)
            store.commit()
        assert store.metrics.expired_entries >= len(KEYS)
        with store.key(KEYS[0]):
            value.update("z")
        store.checkpoint()
        assert store.count_keys() == 1

    def test_timers_come_once(self, stores: _Stores) -> None:
        """Each in its order, also after a crash and a restore on an empty disk."""
        rng, now = random.Random(4), stores.clock.time()
        store = stores.open("none")
        timers = store.timers("timers")
        expected = sorted({(now + rng.randrange(100), rng.choice(KEYS)) for _ in range(300)})
        for at, key in expected:
            store.set_current_key(key)
            timers.register(at)
        store.checkpoint()
        came: list[tuple[float, Any]] = []
        for step in range(10):
            stores.clock.advance(10)
            came += timers.due()
            if step == 4:
                store.commit()
                store.release()
                store = stores.open()
                timers = store.timers("timers")
            elif step == 7:
                store.checkpoint()
                store.close()
                stores.forget_local()
                store = stores.open("latest")
                timers = store.timers("timers")
        assert [at for at, _ in came] == [at for at, _ in expected]
        assert sorted(came) == expected
        assert timers.next_time() is None

    def test_a_store_that_was_taken_over_changes_nothing(self, stores: _Stores) -> None:
        """The same job on another machine is the owner then."""
        rng, model = random.Random(5), dict[str, Any]()
        old = _Handles(stores.open("none"))
        for _ in range(100):
            old.change(model, rng)
        old.store.checkpoint()
        expected = _content_of(model)
        new = _Handles(stores.open("latest", place="another"))
        with pytest.raises(FencedError):
            for _ in range(100):
                old.change(model, rng)
            old.store.checkpoint()
        assert new.content() == expected
