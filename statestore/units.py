"""Durations and sizes as people write them: "500ms", "10s", "64mb"."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

Duration = Annotated[float, msgspec.Meta(extra={"unit": "duration"})]
"""Seconds; written "500ms", "10s", "5min", "1h", "1d", or 0."""

Size = Annotated[int, msgspec.Meta(extra={"unit": "size"})]
"""Bytes; written "512kb", "64mb", "1gb" (steps of 1024), or a plain number of bytes."""

_SECONDS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1 << 10,
    "k": 1 << 10,
    "mb": 1 << 20,
    "m": 1 << 20,
    "gb": 1 << 30,
    "g": 1 << 30,
    "tb": 1 << 40,
}

_quantity = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_duration(value: object, *, plain_unit: str | None = None) -> float:
    """Seconds of `value`.

    Parameters
    ----------
    plain_unit
        Unit of a number without one; by default only 0 needs none.

    Raises
    ------
    ValueError
        It is no duration.
    """
    match = _quantity.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError(f"{value!r} is no duration; write it like '500ms', '10s' or '5min'")
    number, unit = float(match[1]), match[2].lower()
    if not unit:
        if number == 0:
            return 0.0
        if plain_unit is None:
            raise ValueError(f"{value!r} has no unit; write it like '{match[1]}s' or '{match[1]}ms'")
        unit = plain_unit
    if unit not in _SECONDS:
        raise ValueError(f"{value!r} has the unknown unit '{match[2]}'; known: {', '.join(_SECONDS)}")
    return number * _SECONDS[unit]


def parse_size(value: object) -> int:
    """Bytes of `value`. Raises ValueError when it is no size."""
    match = _quantity.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None or match[2].lower() not in _BYTES:
        raise ValueError(f"{value!r} is no size; write it like '512kb', '64mb' or '1gb'")
    return int(float(match[1]) * _BYTES[match[2].lower()])
