"""Rows of results, and how they compare with one another."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

FORMAT = 2
Role = Literal["floor", "statestore", "peer"]


@dataclass
class Row:
    """What one system has done in one case of a workload."""

    workload: str
    case: str
    system: str
    role: Role
    backend: str = ""
    operations: int = 0
    unit: str = "events"
    """What `operations` are."""
    seconds: float = 0.0
    """Net of start-up."""
    start_up_seconds: float | None = None
    """How much longer the whole process took, where that is of interest."""
    cpu_seconds: float | None = None
    peak_mib: float | None = None
    floor: str = ""
    """The one that this system is above all compared with."""
    ratios: dict[str, float] = field(default_factory=dict)
    """This row's rate by that of others, by their names."""
    ratios_with_start_up: dict[str, float] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    """Further columns of the table."""
    details: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    """Why nothing was measured."""

    @property
    def per_second(self) -> float:
        """Rate net of start-up."""
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def per_second_with_start_up(self) -> float | None:
        """Rate with the start of the process counted in."""
        if self.start_up_seconds is None or self.missing:
            return None
        return self.operations / (self.seconds + self.start_up_seconds)

    def as_json(self) -> dict[str, Any]:
        """The fields and the rates."""
        rates = {"per_second": self.per_second, "per_second_with_start_up": self.per_second_with_start_up}
        return asdict(self) | rates


def compare(row: Row, others: Iterable[Row]) -> None:
    """Fill in a row's ratios; the first of the others is its floor."""
    for other in others:
        if other.missing or not other.per_second or row.missing:
            continue
        row.floor = row.floor or other.system
        row.ratios[other.system] = row.per_second / other.per_second
        mine, theirs = row.per_second_with_start_up, other.per_second_with_start_up
        if mine and theirs:
            row.ratios_with_start_up[other.system] = mine / theirs


def in_order_of_cases(rows: Iterable[Row]) -> list[Row]:
    """What is of one case together, in the order in which the cases came first."""
    rows = list(rows)
    cases = list(dict.fromkeys(row.case for row in rows))
    return sorted(rows, key=lambda row: cases.index(row.case))


def machine() -> dict[str, Any]:
    """What the results were made on."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


@dataclass
class Results:
    """Of one run."""

    quick: bool
    machine: dict[str, Any] = field(default_factory=machine)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each workload has taken: `wall`, and `cpu` of its processes."""
    rows: list[Row] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write all as JSON."""
        run = {"format": FORMAT, "machine": self.machine, "quick": self.quick, "seconds": self.seconds}
        document = {**run, "results": [row.as_json() for row in self.rows]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """What `save` has written."""
        document = json.loads(path.read_text())
        if document.get("format") != FORMAT:
            raise ValueError(f"{path} has format {document.get('format')}, not {FORMAT}")
        names = [each.name for each in fields(Row)]
        rows = [Row(**{name: row[name] for name in names}) for row in document["results"]]
        return cls(document["quick"], document["machine"], document["seconds"], rows)
