"""The lease that makes its holder the leader, and where it is kept."""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec

from statestore.errors import CorruptionError
from statestore_runtime.ha.register import Register

T = TypeVar("T")

FORMAT = 1


class Lease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who leads. Two leases with the same holder and sequence are the same one: no holder writes a sequence twice."""

    token: int
    """Fencing token: greater with each leader; renewals keep it."""
    holder: str
    """Id of the candidate that wrote it, never used by another one."""
    sequence: int
    """Which of its holder's leases this is."""
    seconds: float
    """How long others leave it alone, from when they see it first, by their own clocks."""
    address: str = ""
    """Where the leader is reached."""
    released: bool = False
    """Whether the holder has resigned: then anybody may take over at once."""
    format: int = FORMAT


class LeaseStore(Protocol):
    """Where the lease of a job is kept."""

    def read(self) -> Lease | None:
        """The lease, None when there never was one. Raises UnavailableError."""
        ...

    def replace(self, expected: Lease | None, lease: Lease) -> bool:
        """Set the lease if `expected` is there; whether it was set.

        Raises
        ------
        UnavailableError
            It may have been set or not, or may be set later.
        """
        ...


class RegisterLeaseStore:
    """A lease in a `Register`."""

    def __init__(self, register: Register):
        self._register = register

    def read(self) -> Lease | None:
        """Read and decode. Raises CorruptionError when it is no lease."""
        return decoded(self._register.read(), Lease, self._register.where)

    def replace(self, expected: Lease | None, lease: Lease) -> bool:
        """Encode and replace."""
        return self._register.replace(None if expected is None else encoded(expected), encoded(lease))


def encoded(value: msgspec.Struct) -> bytes:
    """What stands for a value in a register: the same bytes for equal values."""
    return msgspec.json.encode(value)


def decoded(data: bytes | None, type_: type[T], where: str) -> T | None:
    """A value of a register. Raises CorruptionError when it is none of this type."""
    if data is None:
        return None
    try:
        value = msgspec.json.decode(data, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptionError(where, f"it holds no {type_.__name__.lower()}: {error}") from error
    if (found := getattr(value, "format", FORMAT)) != FORMAT:
        raise CorruptionError(where, f"format {found} is newer than this program", hint="use the version that wrote it")
    return value
