"""What a run of the benchmarks shares: how much work, on which systems, where."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.process import Measured, measure
from statestore.testing import redis_server


@dataclass(frozen=True)
class Sizes:
    """How much work is done."""

    events: int = 1_000_000
    event_keys: int = 100_000
    keys: int = 100_000
    """Of state operations, checkpoints and recovery."""
    log_bytes: int = 256 << 20
    flights: int | None = None
    """The first so many; None: all."""
    rounds: int = 1
    """How often a floor and the systems compared with it run in turn; the best of each counts."""
    thorough: bool = True
    """Also what is only a variation of something else."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Numbers of keys at which to look how something grows."""
        return (max(100, self.keys // 10), self.keys) if self.thorough else (self.keys,)


QUICK = Sizes(
    events=30_000,
    event_keys=3_000,
    keys=3_000,
    log_bytes=16 << 20,
    flights=8_000,
    thorough=False,
)
FULL = Sizes()


@dataclass(frozen=True)
class Bench:
    """One run."""

    folder: Path
    sizes: Sizes
    backends: tuple[str, ...]
    peers: tuple[str, ...]
    tell: Callable[[str], object] = field(default=lambda text: None)
    """Called with what is being done."""

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """An empty folder, gone at the end."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            yield Path(place)

    @contextlib.contextmanager
    def server(self, backend: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """URL and process ids of an empty Redis server, for the backend that needs one."""
        if backend != "redis":
            yield "", ()
            return
        with self.place() as place:
            process, port = redis_server.start(place)
            try:
                yield f"redis://127.0.0.1:{port}/0", (process.pid,)
            finally:
                process.kill()
                process.wait()

    def measure(self, text: str, function: str, **arguments: Any) -> Measured:
        """`measure`, told about."""
        self.tell(text)
        return measure(function, **arguments)
