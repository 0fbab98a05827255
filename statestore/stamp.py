"""The reserved entry that says which attempt wrote the newest epoch in a backend.

It is part of every batch applied, so it is as atomic with the data as the marker is. Epoch numbers repeat when a history is given up (an
older checkpoint restored); attempt numbers never do, so attempt and epoch together tell histories apart.
"""

from __future__ import annotations

import msgspec

from statestore.keys import group_start, length_prefix
from statestore.types import Attempt, Epoch

STAMP_STATE_ID = 0xFFFF

_STATE = STAMP_STATE_ID.to_bytes(2, "big")
_KEY = b"stamp"


def stamp_key(key_groups: range) -> bytes:
    """Entry key of the stamp of a store that keeps these key groups: in the first of them."""
    return group_start(key_groups.start) + _STATE + length_prefix(_KEY) + _KEY


def is_stamp(entry_key: bytes) -> bool:
    """Whether an entry is a stamp, and so no state."""
    return entry_key[2:4] == _STATE


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """Who wrote the newest epoch in a backend."""

    attempt: Attempt
    epoch: Epoch


def encode_stamp(attempt: Attempt, epoch: Epoch) -> bytes:
    """Value of the reserved entry."""
    return msgspec.msgpack.encode(Stamp(attempt, epoch))


def decode_stamp(data: bytes) -> Stamp:
    """Content of the reserved entry; an unreadable one is nobody's."""
    try:
        return msgspec.msgpack.decode(data, type=Stamp)
    except msgspec.MsgspecError:
        return Stamp(Attempt(0), Epoch(0))
