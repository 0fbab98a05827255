"""Counts keys by their entries."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from statestore.keys import read_varint


def distinct_keys(entries: Iterable[tuple[bytes, bytes]], passed_over: set[int]) -> int:
    """How many keys have an entry.

    Parameters
    ----------
    entries
        In the order of their keys. Those of one key group are looked at together, and the bytes of their keys kept meanwhile.
    passed_over
        Ids of states that do not count.
    """
    states = {number.to_bytes(2, "big") for number in passed_over}
    count = 0
    for _, of_group in groupby(entries, lambda entry: entry[0][:2]):
        entry_keys = (entry_key for entry_key, _ in of_group if entry_key[2:4] not in states)
        count += len({key[4 : 5 + key[4]] if key[4] < 0x80 else _long_key(key) for key in entry_keys})
    return count


def _long_key(entry_key: bytes) -> bytes:
    """Key of an entry, with its length, where the length takes more than a byte."""
    length, offset = read_varint(entry_key, 4)
    return entry_key[4 : offset + length]
