"""What elections and pointers are built on: one value that is replaced only by who knows it."""

from __future__ import annotations

from typing import Protocol


class Register(Protocol):
    """One value, shared by processes, with compare-and-swap.

    Atomic: of several replacements of the same value exactly one succeeds. Durable: what `replace` has acknowledged survives the death of
    the machine, as far as the place can promise that. Callers write no value twice, so that a value stands for one writing of it.
    """

    where: str
    """The place, without secrets: for messages."""

    def read(self) -> bytes | None:
        """The value, None when there is none yet. Raises UnavailableError."""
        ...

    def replace(self, expected: bytes | None, value: bytes) -> bool:
        """Set `value` if what is there is `expected`; whether it was set.

        Raises
        ------
        UnavailableError
            It may have been set or not, or may be set at any later time, as long as `expected` is there.
        """
        ...
