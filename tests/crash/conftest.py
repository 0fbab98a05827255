import pytest

from tests.crash import flights
from tests.crash.test_flights import MORE_FLIGHTS, SOME_FLIGHTS


def first_flights(folder, count):
    path = folder / "flights.csv"
    path.write_text("".join(flights.lines()[: count + 1]), newline="")
    return path


@pytest.fixture(scope="session")
def some_flights(tmp_path_factory):
    """A file with the first flights."""
    return first_flights(tmp_path_factory.mktemp("some-flights"), SOME_FLIGHTS)


@pytest.fixture(scope="session")
def more_flights(tmp_path_factory):
    """A file with more of them."""
    return first_flights(tmp_path_factory.mktemp("more-flights"), MORE_FLIGHTS)
