"""What stands before every stored value.

    stored = head u8 · [stamp i64 BE] · payload
    head   = schema version << 2 | 0 no stamp, 1 stamp in processing time, 2 stamp in event time

`schema version` counts the schemas a state has been declared with, from 0 (`StateDescriptor` lists them). A stamp is the time of the last
touch in milliseconds; states without a time-out write none.
"""

from __future__ import annotations

from statestore.errors import CorruptionError

SCHEMA_VERSION_MAX = 63
STAMP_BYTES = 8
NO_STAMP, PROCESSING_TIME, EVENT_TIME = 0, 1, 2

_after_stamp = 1 + STAMP_BYTES


def plain_head(version: int) -> bytes:
    """Head of values of a schema version, without a stamp."""
    return bytes([version << 2])


def stamped_head(version: int, domain: int, stamp_ms: int) -> bytes:
    """Head of values of a schema version that were last touched at `stamp_ms` of a time domain."""
    return bytes([version << 2 | domain]) + stamp_ms.to_bytes(STAMP_BYTES, "big", signed=True)


def stamp_of(stored: bytes) -> tuple[int, int]:
    """Time domain and stamp of a stored value, for one with no stamp (`NO_STAMP`, 0)."""
    domain = stored[0] & 3 if stored else NO_STAMP
    return (domain, int.from_bytes(stored[1:_after_stamp], "big", signed=True)) if domain else (NO_STAMP, 0)


def version_of(stored: bytes) -> int:
    """Schema version of a stored value."""
    return stored[0] >> 2 if stored else 0


def open_envelope(stored: bytes, state: str) -> tuple[int, bytes]:
    """Schema version and payload of a stored value. Raises CorruptionError when there can be none."""
    if not stored or stored[0] & 3 == 3 or (stored[0] & 3 and len(stored) <= STAMP_BYTES):
        start = stored[:1].hex() or "nothing"
        raise CorruptionError(f"state '{state}'", f"a stored value of {len(stored)} bytes begins with {start}")
    return stored[0] >> 2, stored[_after_stamp if stored[0] & 3 else 1 :]
