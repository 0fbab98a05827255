"""Defaults of value states, which no program may change for others."""

from __future__ import annotations

import copy
import datetime
import decimal
import uuid
from collections.abc import Callable
from typing import Any

# Handing the same object out twice can't do harm with these.
_IMMUTABLE = (
    type(None), bool, int, float, str, bytes, decimal.Decimal, uuid.UUID,
    datetime.datetime, datetime.date, datetime.time, datetime.timedelta,
)  # fmt: skip


def fresh_value(default: Any) -> Callable[[], Any] | None:
    """How to make a new equal object of a default that can be changed in place; None when the default itself can be handed out."""
    if _is_fixed(default):
        return None
    return lambda: copy.deepcopy(default)


def _is_fixed(value: Any) -> bool:
    """Whether nobody can change a value in place, nor what it holds."""
    if isinstance(value, tuple | frozenset):
        return all(map(_is_fixed, value))
    config = getattr(type(value), "__struct_config__", None)
    if config is not None and config.frozen:
        return all(_is_fixed(getattr(value, name)) for name in value.__struct_fields__)
    return isinstance(value, _IMMUTABLE)
