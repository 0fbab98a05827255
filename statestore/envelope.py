"""What stands before every stored value.

    stored = head u8 · [stamp i64 BE] · payload
    head   = schema version << 1 | stamped

`schema version` counts the types a state has been declared with, from 0 (`StateDescriptor` lists them). A stamp is the time of the last
touch in milliseconds, in the state's time domain; states without a time-out write none.
"""

from __future__ import annotations

from statestore.errors import CorruptionError

SCHEMA_VERSION_MAX = 127
STAMP_BYTES = 8


def plain_head(version: int) -> bytes:
    """Head of values of a schema version, without a stamp."""
    return bytes([version << 1])


def stamped_head(version: int, stamp_ms: int) -> bytes:
    """Head of values of a schema version that were last touched at `stamp_ms`."""
    return bytes([version << 1 | 1]) + stamp_ms.to_bytes(STAMP_BYTES, "big", signed=True)


def open_envelope(stored: bytes, state: str) -> tuple[int, int | None, bytes]:
    """Schema version, stamp (None without one) and payload of a stored value. Raises CorruptionError when it is too short."""
    if not stored or (stored[0] & 1 and len(stored) <= STAMP_BYTES):
        raise CorruptionError(f"state '{state}'", f"a stored value of {len(stored)} bytes is too short")
    version = stored[0] >> 1
    if not stored[0] & 1:
        return version, None, stored[1:]
    return version, int.from_bytes(stored[1 : 1 + STAMP_BYTES], "big", signed=True), stored[1 + STAMP_BYTES :]
