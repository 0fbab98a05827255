import pytest

from tests.crash import flights
from tests.crash.test_flights import SOME_FLIGHTS


@pytest.fixture(scope="session")
def some_flights(tmp_path_factory):
    """A file with the first flights."""
    path = tmp_path_factory.mktemp("flights") / "flights.csv"
    path.write_text("".join(flights.lines()[: SOME_FLIGHTS + 1]), newline="")
    return path
