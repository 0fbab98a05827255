"""The reserved entries: the stamp, which says what attempt wrote the newest epoch in a backend, and a migration's note.

The stamp is part of every batch applied, so it is as atomic with the data as the marker is. Epoch numbers repeat when a history is given
up (an older checkpoint restored); attempt numbers never do, so attempt and epoch together tell histories apart.
"""

from __future__ import annotations

import msgspec

from statestore.keys import group_start, length_prefix
from statestore.types import Attempt, Epoch

STAMP_STATE_ID = 0xFFFF

STAMP_STATE = STAMP_STATE_ID.to_bytes(2, "big")
"""The same as it stands in an entry key, behind the key group."""


def stamp_key(key_groups: range) -> bytes:
    """Entry key of the stamp of a store that keeps these key groups: in the first of them."""
    return _reserved(key_groups, b"stamp")


def unfinished_key(key_groups: range) -> bytes:
    """Entry key of the note that is there as long as a migration fills the backend: how far it has come."""
    return _reserved(key_groups, b"unfinished")


def _reserved(key_groups: range, name: bytes) -> bytes:
    return group_start(key_groups.start) + STAMP_STATE + length_prefix(name) + name


def is_stamp(entry_key: bytes) -> bool:
    """Whether an entry is a stamp or a note, and so no state."""
    return entry_key[2:4] == STAMP_STATE


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
