"""What a job has done, of whichever system. Imported by every measured process, so it imports next to nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class JobRun:
    """A job that has ended."""

    events: int
    """How many came in."""
    seconds: float
    """From when the system begins with the job to its end; imports and the start of a virtual machine come before."""
    result: Callable[[], str]
    """Digest of the final result; called when time and memory have been taken."""
    details: dict[str, Any] = field(default_factory=dict)

    def checked(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {"events": self.events, "seconds": self.seconds, "result": self.result(), **self.details}


def digest(items: Iterable[tuple[object, ...]]) -> str:
    """Tells final results apart, in whichever order they come."""
    lines = sorted(" ".join(map(str, item)) for item in items)
    hashed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{len(lines)} results, {hashed[:16]}"


def digest_of_sums(sums: Iterable[tuple[str, tuple[int, int]]]) -> str:
    """Of a count and a sum per key."""
    return digest((key, count, total) for key, (count, total) in sums)
