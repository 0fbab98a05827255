"""How often Python's cycle collector runs while a job does."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = 50_000, 20, 100
USUAL_MAX = 2000
"""Python's own first threshold is 700 or 2000, by version."""


@contextmanager
def collected_seldom() -> Iterator[None]:
    """Have the collector look for cycles less often in a `with` block: what a job makes is next to never part of one.

    Every batch makes thousands of objects that are gone with their last reference, or stay as state. Looking through them all, some of
    them several times, took 5 to 10 % of a job. Where the program has chosen thresholds, or has no collector, it stays so.
    """
    before = gc.get_threshold()
    if not 0 < before[0] <= USUAL_MAX:
        yield
        return
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
