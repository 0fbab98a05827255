import pytest

from statestore.testing.clock import FakeClock
from tests.store.stores import Stores

GROUPS = "state.max-parallelism=8"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def stores(places, clock):
    """Embedded stores with few key groups, whose checkpoints have bases and deltas."""
    stores = Stores(places, GROUPS, "checkpointing.base-min-size=100b", auto_complete=True, clock=clock)
    yield stores
    stores.close()


def complete_base(store):
    """Wait for the base that is being made, so that the next checkpoint has it, and for the look at what has expired by now."""
    store._chain.wait()
    store._applier.settle()
