"""About how much memory an object takes, with what it refers to."""

from __future__ import annotations

import gc
import sys
from itertools import islice
from typing import Any

SAMPLES = 8
"""Elements of a container that are looked at; the others are taken to be like them."""

DEPTH_MAX = 6

_LEAVES = (str, bytes, int, float, bool, type(None), type)


def footprint(value: Any, depth: int = DEPTH_MAX) -> float:
    """Bytes of `value`; a cheap estimate, exact for what has few parts."""
    size = sys.getsizeof(value)
    if isinstance(value, _LEAVES) or depth == 0:
        return 0 if isinstance(value, type) else size
    if isinstance(value, dict):
        parts, count = [*islice(value, SAMPLES), *islice(value.values(), SAMPLES)], 2 * len(value)
    elif isinstance(value, list | tuple | set | frozenset):
        parts, count = list(islice(value, SAMPLES)), len(value)
    else:
        parts = gc.get_referents(value)
        count = len(parts)
    if not parts:
        return size
    return size + count * sum(footprint(part, depth - 1) for part in parts) / len(parts)
