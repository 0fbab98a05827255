"""Which attempt of a job may change a folder.

`.owner-<job>/` holds a file named after the newest attempt, with the run's name in it. Attempts only add files of a greater name, so no
order in which two of them come can make the older one the owner.
"""

from __future__ import annotations

from pathlib import Path

from statestore.errors import FencedError
from statestore.io import LocalStorage


class FolderFence:
    """Lets the newest attempt of a job through.

    Parameters
    ----------
    folder
        It exists.
    """

    def __init__(self, folder: Path, job: str, attempt: int):
        self._folder, self._attempt = folder / f".owner-{job}", attempt

    def claim(self, *, run: str, fresh: bool) -> None:
        """Become the owner.

        A run that starts afresh may have a smaller attempt than the owner of another run: the attempts are counted where the checkpoints
        are, and those were removed.

        Raises
        ------
        FencedError
            A newer attempt is.
        """
        storage = LocalStorage(self._folder)
        attempts = self._attempts()
        newer = [attempt for attempt in attempts if attempt > self._attempt]
        if newer and not (fresh and (not run or storage.read(_name(max(newer))).decode() != run)):
            raise FencedError(str(self._folder.parent), self._attempt, max(newer))
        if self._attempt not in attempts:
            storage.write(_name(self._attempt), run.encode())
        for attempt in attempts:
            if attempt != self._attempt:
                storage.delete(_name(attempt))
        self.check()  # a newer one may have come meanwhile

    def check(self) -> None:
        """Raise FencedError unless this attempt is the owner."""
        owner = max(self._attempts(), default=None)
        if owner != self._attempt:
            raise FencedError(str(self._folder.parent), self._attempt, owner)

    def _attempts(self) -> list[int]:
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]


def _name(attempt: int) -> str:
    return f"{attempt:06d}"
