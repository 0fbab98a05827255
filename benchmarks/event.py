"""The event of most workloads."""

import msgspec


class Event(msgspec.Struct):
    """One JSON line."""

    key: str
    value: int
    ts: int
    """Milliseconds."""
