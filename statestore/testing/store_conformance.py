"""The conformance suite of a whole store over a backend: every kind of state, through commits, checkpoints, crashes and restores.

It is run on top of `BackendConformance`, and takes as little:

    class TestStoreOnMyBackend(StoreConformance):
        backend = "mine"                           # as in state.backend: installed, or made known with register_backend

        @pytest.fixture
        def settings(self, server):                # only where it needs any
            return [f"state.mine.url={server.url}"]
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statestore.checkpoint.parts import complete_parts
from statestore.errors import FencedError
from statestore.keys import split_key_groups
from statestore.reading.reader import StateReader
from statestore.store import StateStore
from statestore.testing.stores import KEYS, Handles, Stores, content_of, copy_of


class StoreConformance:
    """Subclass it, and name your backend."""

    backend: str

    @pytest.fixture
    def settings(self) -> list[str]:
        """Settings that the backend needs, `key=value` each."""
        return []

    @pytest.fixture
    def stores(self, tmp_path: Path, settings: list[str]) -> Iterator[Stores]:
        """Stores of one job."""
        stores = Stores(tmp_path, self.backend, settings)
        yield stores
        stores.close()

    @pytest.mark.parametrize("seed", range(2))
    def test_commits_survive_crashes(self, stores: Stores, seed: int) -> None:
        """Of an embedded store every commit counts; what was not committed is gone."""
        rng = random.Random(seed)
        model: dict[str, Any] = {}
        committed, position = copy_of(model), 0
        states = Handles(stores.open())
        for step in range(250):
            states.change(model, rng)
            if rng.random() < 0.2:
                position = step
                states.store.commit({"position": position})
                committed = copy_of(model)
            elif rng.random() < 0.05:
                position = step
                states.store.checkpoint({"position": position})
                committed = copy_of(model)
            elif rng.random() < 0.03:
                states.store.release()
                model = copy_of(committed)
                states = Handles(stores.open())
                assert states.store.restored is None or states.store.restored.meta == {"position": position}
                assert states.content() == content_of(model)
        assert states.content() == content_of(model)

    def test_a_job_goes_back_to_its_checkpoint(self, stores: Stores) -> None:
        """Commits behind it do not count, and leave no trace."""
        rng, model = random.Random(1), dict[str, Any]()
        states = Handles(stores.open("none", embedded=False))
        for position in range(5):
            for _ in range(60):
                states.change(model, rng)
            states.store.checkpoint({"position": position})
            expected = content_of(model)
            for _ in range(60):
                states.change(model, rng)
            states.store.commit({"position": "behind"})
            states.store.release()
            states = Handles(stores.open("latest", embedded=False))
            assert states.store.restored is not None
            assert states.store.restored.meta == {"position": position}
            assert states.content() == expected
            model = {}
            for key in KEYS:
                states.store.set_current_key(key)
                for state in (states.value, states.list, states.map, states.total, states.mean):
                    state.clear()

    @pytest.mark.parametrize("way", ["from the memory backend", "to the memory backend", "to itself"])
    def test_checkpoints_move_between_backends(self, stores: Stores, way: str) -> None:
        """They hold everything, whatever made them, and the local disk is not needed."""
        source = "memory" if way.startswith("from") else None
        target = "memory" if way == "to the memory backend" else None
        rng, model = random.Random(2), dict[str, Any]()
        states = Handles(stores.open("none", backend=source))
        for position in range(4):
            for _ in range(100):
                states.change(model, rng)
            info = states.store.checkpoint({"position": position})
        states.store.close()
        stores.forget_local()
        for restore in ("latest", info.path):
            states = Handles(stores.open(restore, backend=target))
            assert states.store.restored is not None
            assert states.store.restored.meta == {"position": 3}
            assert states.content() == content_of(model)
            assert states.store.count_keys() == len(content_of(model))
            states.store.close()

    def test_an_older_checkpoint_can_be_gone_back_to(self, stores: Stores) -> None:
        """Nothing of what came after it is left."""
        rng, model = random.Random(3), dict[str, Any]()
        states, made = Handles(stores.open("none")), []
        for _ in range(3):
            for _ in range(100):
                states.change(model, rng)
            made.append((states.store.checkpoint().path, content_of(model)))
        states.store.close()
        for path, expected in reversed(made[:2]):
            states = Handles(stores.open(path))
            assert states.content() == expected
            states.store.close()

    def test_a_lazy_restore_shows_the_same_at_every_moment(self, stores: Stores) -> None:
        """What is changed meanwhile stays, and a crash in between begins it anew."""
        rng, model = random.Random(6), dict[str, Any]()
        states = Handles(stores.open("none", "checkpointing.base-format=portable"))
        for _ in range(5):
            for _ in range(60):
                states.change(model, rng)
            states.store.checkpoint()
        states.store.close()
        stores.forget_local()
        for _ in range(2):
            states = Handles(stores.open("latest", "state-recovery.lazy=true"))
            assert states.content() == content_of(model)
            for _ in range(60):
                states.change(model, rng)
            states.store.commit()
            states.store.release()
        states = Handles(stores.open("latest", "state-recovery.lazy=true"))
        states.store.wait_hydrated()
        assert states.content() == content_of(model)
        assert states.store.count_keys() == len(content_of(model))

    @pytest.mark.parametrize("target", ["itself", "memory"])
    def test_a_savepoint_stands_for_itself(self, stores: Stores, target: str) -> None:
        """Wherever its folder is, and though the job and all of its checkpoints are gone."""
        rng, model = random.Random(7), dict[str, Any]()
        states = Handles(stores.open("none"))
        for _ in range(200):
            states.change(model, rng)
        states.store.savepoint(str(stores.folder / "savepoint"), {"position": 7})
        expected = content_of(model)
        for _ in range(50):
            states.change(model, rng)
        states.store.close()
        stores.forget_local()
        shutil.rmtree(stores.folder / "checkpoints")
        moved = shutil.move(stores.folder / "savepoint", stores.folder / "moved")
        states = Handles(stores.open(str(moved), backend="memory" if target == "memory" else None))
        assert states.store.restored is not None
        assert states.store.restored.meta == {"position": 7}
        assert states.content() == expected

    @pytest.mark.parametrize("after", [1, 3, 8])
    def test_state_is_spread_over_other_stores(self, stores: Stores, after: int) -> None:
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

    def test_a_checkpoint_is_read_from_outside(self, stores: Stores) -> None:
        """Key by key and as a whole, while the store goes on."""
        rng, model = random.Random(8), dict[str, Any]()
        states = Handles(stores.open("none"))
        for _ in range(3):
            for _ in range(100):
                states.change(model, rng)
            info = states.store.checkpoint()
        expected = content_of(model)
        for _ in range(100):
            states.change(model, rng)
        states.store.commit()
        reader = StateReader(states.store.checkpoints, info.manifest)
        for name, nothing in (("value", None), ("list", []), ("map", {}), ("total", None)):
            known = {key: state[name] for key, state in expected.items() if state[name] not in (None, [], {})}
            assert reader.state(name).to_dict() == known
            assert [reader.state(name).get(key) or nothing for key in KEYS] == [known.get(key, nothing) for key in KEYS]

    def test_types_may_change(self, stores: Stores) -> None:
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

    def test_state_times_out(self, stores: Stores) -> None:
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
        for _ in range(5000):  # commits have it swept away piece by piece, as fast as the applying thread comes to it
            if store.metrics.expired_entries >= len(KEYS):
                break
            stores.clock.advance(11)
            store.commit()
        assert store.metrics.expired_entries >= len(KEYS)
        with store.key(KEYS[0]):
            value.update("z")
        store.checkpoint()
        assert store.count_keys() == 1

    def test_timers_come_once(self, stores: Stores) -> None:
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

    def test_a_store_that_was_taken_over_changes_nothing(self, stores: Stores) -> None:
        """The same job on another machine is the owner then."""
        rng, model = random.Random(5), dict[str, Any]()
        old = Handles(stores.open("none"))
        for _ in range(100):
            old.change(model, rng)
        old.store.checkpoint()
        expected = content_of(model)
        new = Handles(stores.open("latest", place="another"))
        with pytest.raises(FencedError):
            for _ in range(100):
                old.change(model, rng)
            old.store.checkpoint()
        assert new.content() == expected
