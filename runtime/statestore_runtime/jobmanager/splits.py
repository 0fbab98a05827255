"""Which worker reads which split of which source.

Invariants:
- a split has one owner in a deployment, and no split that is known is forgotten;
- those that a checkpoint knows are spread by their order, so that each worker finds its own ones in the checkpoint without asking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def restored_share(splits: Iterable[str], subtask: int, parallelism: int) -> list[str]:
    """The splits of a checkpoint that a worker goes on with."""
    return sorted(splits)[subtask::parallelism]


class SplitAssigner:
    """The splits of one source.

    Parameters
    ----------
    restored
        Those that the restored checkpoint knows, finished ones included.
    """

    def __init__(self, restored: Sequence[str], parallelism: int):
        self._known = set(restored)
        self._counts = [len(restored_share(restored, subtask, parallelism)) for subtask in range(parallelism)]

    def assign(self, splits: Sequence[str]) -> dict[int, list[str]]:
        """Give new splits to the workers that have the fewest; by worker, in the order of `splits`. Known ones are passed over."""
        assigned: dict[int, list[str]] = {}
        for split in splits:
            if split in self._known:
                continue
            self._known.add(split)
            worker = min(range(len(self._counts)), key=self._counts.__getitem__)
            self._counts[worker] += 1
            assigned.setdefault(worker, []).append(split)
        return assigned
