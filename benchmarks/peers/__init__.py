"""Other stream processors for Python, each with the same keyed count, its recovery on.

Their modules are imported in processes of their own, by an interpreter that has what they need.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

from benchmarks.process import ROOT


@dataclass(frozen=True)
class Peer:
    """Where a system is and how to get it."""

    name: str
    package: str
    """What is imported of it."""
    requirements: tuple[str, ...] = ()
    """What is installed into an environment of its own; of none, the extra `bench` installs it."""

    @property
    def function(self) -> str:
        return f"benchmarks.peers.{self.name}:keyed_count"

    @property
    def environment(self) -> str:
        """Folder of the virtual environment of its own."""
        return f".venv-{self.name}"

    def python(self) -> str | None:
        """An interpreter that has it; None when it is not installed."""
        own = ROOT / self.environment / "bin" / "python"
        if own.exists():
            return str(own)
        return sys.executable if importlib.util.find_spec(self.package) else None

    @property
    def how_to_install(self) -> str:
        if not self.requirements:
            return "pip install 'statestore[bench]', which `make bench` does"
        quoted = " ".join(f"'{requirement}'" for requirement in self.requirements)
        return f"python3 -m venv {self.environment} && {self.environment}/bin/pip install {quoted}"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("bytewax", "bytewax"),
        Peer("pathway", "pathway"),
        Peer("spark", "pyspark", ("pyspark>=4,<5", "pyarrow", "pandas<3")),
        Peer("flink", "pyflink", ("apache-flink>=2,<3",)),
    )
}
INSTALLED_BY_EXTRA = tuple(peer.name for peer in PEERS.values() if not peer.requirements)
"""The ones that run unless others are asked for."""
