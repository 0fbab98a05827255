"""Defaults of value states: what a program changes in place must not be the next key's default."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from statestore.defaults import fresh_value


class Frozen(msgspec.Struct, frozen=True):
    inner: Any


@pytest.mark.parametrize("default", [0, None, (), (0, 0.5, ("a",)), frozenset({b"a"}), Frozen((1, Frozen("x")))])
def test_a_default_that_can_not_be_changed_is_handed_out_itself(default):
    assert fresh_value(default) is None


@pytest.mark.parametrize("default", [[], {}, ([],), (0, ({},)), Frozen([]), Frozen((0, []))])
def test_a_default_that_holds_something_changeable_is_copied(default):
    fresh = fresh_value(default)
    assert fresh() == default
    assert fresh() is not default
    assert fresh() is not fresh()
