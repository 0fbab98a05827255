"""Opens stores of one test, each backend with a place of its own."""

from __future__ import annotations

import shutil
import weakref

from statestore import load_config, open_store


class Stores:
    """Stores of one job, whose checkpoints all lie in one folder."""

    def __init__(self, places, *settings, job="job", auto_complete=False, clock=None):
        self._places, self._settings, self._job, self._auto_complete = places, settings, job, auto_complete
        self._clock = clock
        self.checkpoints = places.folder / "checkpoints"
        self._open = []

    def open(self, backend, restore="latest", *settings, run="", key_type=str):
        overrides = [*self._places.overrides(backend), f"checkpointing.dir={self.checkpoints}"]
        config = load_config(overrides=[*overrides, *self._settings, *settings])
        store = open_store(
            config,
            self._job,
            restore=restore,
            run=run,
            key_type=key_type,
            auto_complete=self._auto_complete,
            clock=self._clock,
        )
        self._open.append(store)
        return store

    def forget_local(self):
        """Delete what lies on the local disk, checkpoints aside."""
        shutil.rmtree(self._places.folder / "local", ignore_errors=True)

    def crash(self, store):
        """Let go of a store as a dead process does: nothing more is written."""
        store.release()

    def close(self):
        for store in self._open:
            store.release()


_handles = weakref.WeakKeyDictionary()


def handles(store):
    """One state of each kind, registered at the first call."""
    if store not in _handles:
        _handles[store] = _registered(store)
    return _handles[store]


def _registered(store):
    return {
        "value": store.value_state("value", int),
        "list": store.list_state("list", str),
        "map": store.map_state("map", str, int),
        "sum": store.reducing_state("sum", int, lambda a, b: a + b),
    }


def content(store, keys):
    """All state of some keys."""
    states, found = handles(store), {}
    for key in keys:
        store.set_current_key(key)
        found[key] = {
            "value": states["value"].value(),
            "list": states["list"].get(),
            "map": dict(states["map"].items()),
            "sum": states["sum"].get(),
        }
    return found


EMPTY = {"value": None, "list": [], "map": {}, "sum": None}
