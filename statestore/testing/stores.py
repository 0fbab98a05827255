"""Stores of a test, their states of every kind, and what should be in them."""

from __future__ import annotations

import operator
import random
import shutil
from pathlib import Path
from typing import Any

from statestore.config import load_config
from statestore.opening import open_store
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


class Handles:
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


def content_of(model: dict[str, Any]) -> dict[str, Any]:
    """What `Handles.content` must give."""
    states = {key: {part: value for part, value in state.items() if part != "added"} for key, state in model.items()}
    return {key: state for key, state in states.items() if any(part not in (None, [], {}) for part in state.values())}


def copy_of(model: dict[str, Any]) -> dict[str, Any]:
    """The model as it is now."""
    return {key: dict(state) for key, state in model.items()}


class Stores:
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
