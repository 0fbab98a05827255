"""Operations on a plain dict, of values, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.timing import COLLECTION_SIZE, Keys, Timed, for_each, value


def state_operations(kinds: list[str], count: int) -> dict[str, Timed]:
    """Timings of these kinds of state by operation."""
    everything = Keys(count)
    results: dict[str, Timed] = {}
    for kind in kinds:
        keys = everything.all if kind == "value" else everything.collections()
        operations = {"value": _value_operations, "list": _list_operations, "map": _map_operations}[kind]()
        results |= {f"{name} hot": for_each(keys, operation) for name, operation in operations.items()}
    return results


def _value_operations() -> dict[str, Callable[[str], object]]:
    held: dict[str, bytes] = {}
    new, other = value(1), value(2)

    def add(key: str) -> None:
        held[key] = new

    def update(key: str) -> None:
        held[key] = other

    return {"valueAdd": add, "valueUpdate": update, "valueGet": held.__getitem__}


def _list_operations() -> dict[str, Callable[[str], object]]:
    held: dict[str, list[bytes]] = {}
    ten = [value(number) for number in range(COLLECTION_SIZE)]
    reverse, one = ten[::-1], value(3)

    def add(key: str) -> None:
        held[key] = list(ten)

    def update(key: str) -> None:
        held[key] = list(reverse)

    return {
        "listAdd": add,
        "listUpdate": update,
        "listAppend": lambda key: held[key].append(one),
        "listAddAll": lambda key: held[key].extend(ten),
        "listGet": held.__getitem__,
        "listGetAndIterate": lambda key: list(held[key]),
    }


def _map_operations() -> dict[str, Callable[[str], object]]:
    held: dict[str, dict[str, bytes]] = {}
    ten = {f"entry-{number}": value(number) for number in range(COLLECTION_SIZE)}
    one = value(4)

    def put_all(key: str) -> None:
        held.setdefault(key, {}).update(ten)

    def add(key: str) -> None:
        held[key]["entry-new"] = one

    def update(key: str) -> None:
        held[key]["entry-3"] = one

    return {
        "mapPutAll": put_all,
        "mapAdd": add,
        "mapUpdate": update,
        "mapGet": lambda key: held[key]["entry-4"],
        "mapContains": lambda key: "entry-5" in held[key],
        "mapIsEmpty": lambda key: not held[key],
        "mapKeys": lambda key: list(held[key].keys()),
        "mapValues": lambda key: list(held[key].values()),
        "mapEntries": lambda key: list(held[key].items()),
        "mapIterator": lambda key: list(held[key]),
        "mapRemove": lambda key: held[key].pop("entry-new"),
    }
