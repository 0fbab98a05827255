"""What costs a look-up in the backend, and what is known without one; and values of many keys at a time."""

from __future__ import annotations

import pytest

from statestore import UsageError
from statestore.committed import Committed
from tests.conftest import BACKENDS

KEYS = [f"key-{n:04}" for n in range(2000)]
KINDS = {
    "value": (
        lambda store: store.value_state("s", int),
        lambda state: state.update(state.value() or 1),
        lambda state: state.value(),
    ),
    "list": (lambda store: store.list_state("s", int), lambda state: state.add(1), lambda state: sum(state.get())),
    "map": (
        lambda store: store.map_state("s", str, int),
        lambda state: state.put("x", state.get("x", 1)),
        lambda state: state.get("x"),
    ),
}


@pytest.fixture
def looked_up(monkeypatch):
    """Entry keys that were asked for."""
    found, read = [], Committed.read_many

    def reading(self, entry_keys):
        found.extend(entry_keys)
        return read(self, entry_keys)

    monkeypatch.setattr(Committed, "read_many", reading)
    return found


def touch(store, state, change, keys):
    for key in keys:
        store.set_current_key(key)
        change(state)


def read(store, state, get, keys):
    found = []
    for key in keys:
        store.set_current_key(key)
        found.append(get(state))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_new_keys_are_not_looked_up_while_nothing_has_left_the_cache(embedded, looked_up, backend, kind):
    make, change, get = KINDS[kind]
    store = embedded.open(backend, "none")
    state = make(store)
    touch(store, state, change, KEYS[:500])
    store.commit()
    touch(store, state, change, KEYS[250:1000])
    store.commit()
    assert read(store, state, get, KEYS[:1000]) == [2 if kind == "list" and 250 <= n < 500 else 1 for n in range(1000)]
    assert looked_up == []
    store.close()
    store = embedded.open(backend, "latest")
    state = make(store)
    touch(store, state, change, ["key-0000"])
    assert looked_up != []
    assert read(store, state, get, ["key-0000", "key-0300"]) == ([2, 2] if kind == "list" else [1, 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_has_left_the_cache_is_looked_up(embedded, looked_up, backend, kind):
    make, change, get = KINDS[kind]
    store = embedded.open(backend, "none", "state.cache-size=20kb")
    state = make(store)
    for start in range(0, len(KEYS), 20):
        touch(store, state, change, KEYS[start : start + 20])
        store.commit()
    assert read(store, state, get, KEYS) == [1] * len(KEYS)
    assert len(looked_up) > len(KEYS) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_marked", [False, True], ids=["commit", "mark"])
def test_what_was_there_before_a_rollback_is_looked_up(embedded, kind, is_marked):
    make, change, get = KINDS[kind]
    store = embedded.open("memory", "none")
    state = make(store)
    touch(store, state, change, KEYS[:3])
    store.rollback()
    assert set(read(store, state, get, KEYS[:3])) <= {None, 0}
    touch(store, state, change, KEYS[:3])
    if is_marked:
        store.mark()
    else:
        store.commit()
    touch(store, state, change, KEYS[2:5])
    store.rollback()
    assert read(store, state, get, KEYS[:3]) == [1, 1, 1]
    assert set(read(store, state, get, KEYS[3:5])) <= {None, 0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ttl", [None, "1h"], ids=["for ever", "with a time-out"])
def test_values_of_many_keys(embedded, backend, ttl):
    store = embedded.open(backend, "none", "state.cache-size=20kb")
    state = store.value_state("s", int, ttl=ttl)
    state.update_many(KEYS, range(len(KEYS)))
    store.commit()
    state.clear_many([*KEYS[::2], "nobody's"])
    assert state.get_many(KEYS[:4]) == [None, 1, None, 3]
    store.commit()
    store.close()
    state = embedded.open(backend, "latest", "state.cache-size=20kb").value_state("s", int, ttl=ttl)
    assert state.get_many(["nobody's", *KEYS]) == [None, *[n if n % 2 else None for n in range(len(KEYS))]]
    for refused in (
        lambda: state.clear_many(["a", 1]),
        lambda: state.get_many([b"a"]),
        lambda: state.update_many([None], [1]),
    ):
        with pytest.raises(UsageError, match="the keys of this state are str"):
            refused()


class Untrodden(dict):
    """Knows its keys, and will not be gone through."""

    def __iter__(self):
        raise AssertionError("all that is cached is gone through")

    keys = values = items = __iter__


def test_loading_some_keys_takes_no_longer_the_more_are_cached(embedded):
    """A batch of a few hundred comes upon a cache of hundreds of thousands."""
    store = embedded.open("memory", "none")
    state = store.value_state("s", int)
    state.update_many(KEYS, range(len(KEYS)))
    store.commit()
    state.forget()
    state.get_many(KEYS[:1000])
    state._old, state._old_bytes = dict.fromkeys(KEYS[600:700], 7), 100.0
    state._young = Untrodden((key, state._young[key]) for key in KEYS[:600])
    state._changed = Untrodden({KEYS[0]: 5})
    assert state.get_many([KEYS[n] for n in (0, 1, 650, 1500)]) == [5, 1, 7, 1500]
    assert state._old.keys() == {*KEYS[600:650], *KEYS[651:700]}
