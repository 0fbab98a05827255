import pytest

from tests.store.stores import Stores


@pytest.fixture
def stores(places):
    """Stores as a job opens them: a commit counts only with its checkpoint."""
    stores = Stores(places)
    yield stores
    stores.close()


@pytest.fixture
def embedded(places):
    """Stores as a program embeds them: a commit counts."""
    stores = Stores(places, auto_complete=True)
    yield stores
    stores.close()
