"""The cost of a checkpoint follows what has changed, not how much there is."""

import random

import pytest

from tests.conftest import BACKENDS

KEYS = 20_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_touching_one_percent_uploads_one_percent(stores, backend):
    randomness = random.Random(1)
    store = stores.open(backend, "none", "checkpointing.base-min-size=1gb")
    state = store.value_state("state", bytes)

    def touch(keys):
        state.update_many([f"key-{n:06}" for n in keys], [randomness.randbytes(100) for _ in keys])

    touch(range(KEYS))
    everything = store.checkpoint().uploaded_bytes
    assert everything > 100 * KEYS
    touch(randomness.sample(range(KEYS), KEYS // 100))
    little = store.checkpoint()
    assert little.uploaded_bytes < 0.015 * everything
    assert little.total_bytes == everything + little.uploaded_bytes
    nothing = store.checkpoint()
    assert nothing.uploaded_bytes < 1000


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_change_in_a_collection_costs_the_change(stores, backend):
    store = stores.open(backend, "none", "checkpointing.base-min-size=1gb")
    events, profile = store.list_state("events", bytes), store.map_state("profile", str, bytes)
    randomness = random.Random(2)
    store.set_current_key("user")
    events.add_all([randomness.randbytes(100) for _ in range(5000)])
    profile.put_all({f"field-{n}": randomness.randbytes(100) for n in range(5000)})
    everything = store.checkpoint().uploaded_bytes
    assert everything > 1_000_000
    events.add(randomness.randbytes(100))
    profile["field-77"] = randomness.randbytes(100)
    # At most the list's last chunk of 64 elements, and one entry of the map.
    assert store.checkpoint().uploaded_bytes < 8000
