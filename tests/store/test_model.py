"""Any history of changes, commits, checkpoints, crashes and restores, against plain dicts."""

from __future__ import annotations

import copy
import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.conftest import BACKENDS, SOAK_EXAMPLES, Places
from tests.store.stores import EMPTY, Stores, content, handles

KEYS = ["a", "b", "c", "key-d"]
FIELDS = ["x", "y", "z"]
_numbers = itertools.count()


class Machine(RuleBasedStateMachine):
    """An embedded store: what is committed survives; what is not is gone."""

    backend = ""
    redis_url = ""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.stores = Stores(
            Places(self.folder, self.redis_url),
            # Everything happens with a few bytes already: eviction, applying, new bases, packing; small files and less small ones.
            "state.cache-size=300b",
            "state.pending-size=150b",
            "checkpointing.base-min-size=400b",
            "checkpointing.pack-deltas=2",
            "checkpointing.inline-threshold=200b",
            "checkpointing.num-retained=3",
            job=f"job-{next(_numbers)}",
            auto_complete=True,
        )
        self.now = {key: copy.deepcopy(EMPTY) for key in KEYS}
        self.committed, self.meta = copy.deepcopy(self.now), {}
        self.gone_back = False
        self.checkpoints: list[tuple[str, dict, dict]] = []
        self.open_store(None)

    def open_store(self, restore):
        self.store = self.stores.open(self.backend, restore)
        self.states = handles(self.store)

    def check(self):
        assert content(self.store, KEYS) == self.now

    @rule(key=st.sampled_from(KEYS), number=st.integers(-1000, 1000))
    def update(self, key, number):
        self.store.set_current_key(key)
        self.states["value"].update(number)
        self.now[key]["value"] = number

    @rule(key=st.sampled_from(KEYS), texts=st.lists(st.text(max_size=3), max_size=100))
    def append(self, key, texts):
        self.store.set_current_key(key)
        self.states["list"].add_all(texts)
        self.now[key]["list"] = self.now[key]["list"] + texts

    @rule(key=st.sampled_from(KEYS), texts=st.lists(st.text(max_size=3), max_size=70))
    def replace_list(self, key, texts):
        self.store.set_current_key(key)
        self.states["list"].update(texts)
        self.now[key]["list"] = texts

    @rule(key=st.sampled_from(KEYS), field=st.sampled_from(FIELDS), number=st.integers())
    def put(self, key, field, number):
        number %= 1 << 60
        self.store.set_current_key(key)
        self.states["map"].put(field, number)
        self.now[key]["map"][field] = number

    @rule(key=st.sampled_from(KEYS), field=st.sampled_from(FIELDS))
    def remove(self, key, field):
        self.store.set_current_key(key)
        self.states["map"].remove(field)
        self.now[key]["map"].pop(field, None)

    @rule(key=st.sampled_from(KEYS), number=st.integers(-5, 5))
    def add(self, key, number):
        self.store.set_current_key(key)
        self.states["sum"].add(number)
        self.now[key]["sum"] = number + (self.now[key]["sum"] or 0)

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(sorted(EMPTY)))
    def clear(self, key, kind):
        self.store.set_current_key(key)
        self.states[kind].clear()
        self.now[key][kind] = copy.deepcopy(EMPTY[kind])

    @rule()
    def read(self):
        self.check()

    @rule(position=st.integers(0, 100))
    def commit(self, position):
        self.store.commit({"position": position})
        self.committed, self.meta = copy.deepcopy(self.now), {"position": position}

    @rule(position=st.integers(0, 100), base=st.booleans())
    def checkpoint(self, position, base):
        info = self.store.checkpoint({"position": position}, base=base)
        self.committed, self.meta = copy.deepcopy(self.now), {"position": position}
        self.checkpoints = [*self.checkpoints, (info.path, self.committed, self.meta)][-3:]
        self.gone_back = False

    @rule()
    def let_background_work_end(self):
        self.store._chain.wait()

    @rule()
    def crash_and_reopen(self):
        self.stores.crash(self.store)
        self.reopen()

    @rule()
    def close_and_reopen(self):
        self.store.close()
        self.reopen()

    def reopen(self):
        self.open_store(None)
        self.now = copy.deepcopy(self.committed)
        self.check()
        assert (self.store.restored.meta if self.store.restored else {}) == self.meta

    # The newest checkpoint may be of a history that was given up, until there is another.
    @precondition(lambda self: self.checkpoints and not self.gone_back)
    @rule()
    def lose_the_disk(self):
        self.stores.crash(self.store)
        self.stores.forget_local()
        self.restored("latest", self.checkpoints[-1])
        self.commit(7)

    @precondition(lambda self: self.checkpoints)
    @rule(which=st.integers(0, 2))
    def restore_a_path(self, which):
        self.store.close()
        chosen = self.checkpoints[which % len(self.checkpoints)]
        self.gone_back = True
        self.restored(chosen[0], chosen)
        self.commit(8)  # from here on, this history is the one that counts

    def restored(self, restore, checkpoint):
        _, state, meta = checkpoint
        self.open_store(restore)
        self.now, self.committed, self.meta = copy.deepcopy(state), state, meta
        self.check()
        assert self.store.restored.meta == meta

    def teardown(self):
        if hasattr(self, "stores"):
            self.stores.close()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_history(backend, redis_url):
    machine = type("BackendMachine", (Machine,), {"backend": backend, "redis_url": redis_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=SOAK_EXAMPLES or 12,
            phases=[Phase.generate, Phase.shrink],
            stateful_step_count=40,
            deadline=None,
            derandomize=not SOAK_EXAMPLES,
            suppress_health_check=list(HealthCheck),
        ),
    )
