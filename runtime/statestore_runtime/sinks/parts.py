"""A folder of parts: what they are called, which attempt may touch which, and what a checkpoint knows of them.

part-<attempt>-<subtask>-<number>.<extension>           visible
.<visible name>.<job>.<attempt>.inprogress              written or prepared by that attempt
.<visible name>.<job>.<attempt>.held-<newer attempt>    prepared by it, and taken out of its reach by a newer one
.undone-<job>-<attempt>-<visible name>                  made visible in a future that this attempt gave up
.owner-<job>/                                           see `FolderFence`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from statestore.errors import CorruptionError, FencedError
from statestore.io import LocalStorage, sync_folder
from statestore_runtime.sinks.fencing import FolderFence

VISIBLE_NAME = re.compile(
    r"part-(?P<attempt>\d{4,})-(?P<subtask>\d{3,})-(?P<number>\d{6,})\.(?:(?:jsonl|csv)(?:\.(?:gz|zst))?|parquet)"
)
HIDDEN_NAME = re.compile(rf"\.{VISIBLE_NAME.pattern}\.(?P<job>.+)\.(?P<owner>\d+)\.(?:inprogress|held-(?P<holder>\d+))")


class PartFolder:
    """The folder, as an attempt of a job sees it. Methods raise OSError when it can't be read or written.

    Attributes
    ----------
    fence : FolderFence
    """

    def __init__(self, path: Path, job: str, attempt: int):
        self._path, self._job, self._attempt = path, job, attempt
        LocalStorage(path)  # makes the folder durably
        self.fence = FolderFence(path, job, attempt)

    def visible(self) -> dict[str, re.Match[str]]:
        """The visible parts by name."""
        matches = (VISIBLE_NAME.fullmatch(path.name) for path in self._path.iterdir())
        return {match[0]: match for match in matches if match}

    def _own_hidden(self) -> list[tuple[Path, re.Match[str]]]:
        matches = ((path, HIDDEN_NAME.fullmatch(path.name)) for path in self._path.iterdir())
        return [(path, match) for path, match in matches if match and match["job"] == self._job]

    def hold_what_is_older(self) -> bool:
        """Rename what older attempts have prepared: it is not theirs any more, but this attempt may need it. Says whether there was any."""
        older = [(path, match) for path, match in self._own_hidden() if int(match["owner"]) < self._attempt]
        for path, match in older:
            if int(match["holder"] or 0) < self._attempt:
                suffix = "inprogress" if match["holder"] is None else f"held-{match['holder']}"
                try:
                    path.rename(self._path / f"{path.name.removesuffix(suffix)}held-{self._attempt}")
                except FileNotFoundError:  # it has just become visible; whoever undoes finds it there
                    pass
        return bool(older)

    def remove_held(self) -> None:
        """Remove what this attempt holds."""
        for path, match in self._own_hidden():
            if match["holder"] == str(self._attempt):
                path.unlink()

    def undo(self, names: list[str]) -> None:
        """Hide visible parts."""
        for name in names:
            (self._path / name).rename(self._path / f".undone-{self._job}-{self._attempt}-{name}")
        if names:
            sync_folder(self._path)

    def prepared(self, hidden_name: str, size: int) -> Path | None:
        """Where a prepared part is now. Raises FencedError when a newer attempt holds it, CorruptionError when it is of another size."""
        hidden = checked(HIDDEN_NAME, self._path, hidden_name)
        while (found := self._found(hidden)) is not None:
            try:
                check_size(found, size)
            except FileNotFoundError:  # subtask 0 has just put it under another name
                continue
            return found
        return None

    def _found(self, hidden: Path) -> Path | None:
        if hidden.exists():
            return hidden
        for path in self._path.glob(f"{hidden.name.removesuffix('inprogress')}held-*"):
            match = HIDDEN_NAME.fullmatch(path.name)
            if match and int(match["holder"]) > self._attempt:
                raise FencedError(str(self._path), self._attempt, int(match["holder"]))
            return path
        return None

    def show(self, hidden_name: str, visible_name: str, size: int) -> bool:
        """Give a prepared part its visible name; False when it is neither prepared nor visible."""
        visible = checked(VISIBLE_NAME, self._path, visible_name)
        while (found := self.prepared(hidden_name, size)) is not None:
            if visible.exists():
                raise CorruptionError(str(visible), "it is in the way of a new part: does another job write here?")
            try:
                found.rename(visible)
            except FileNotFoundError:
                continue
            return True
        if not visible.exists():
            return False
        check_size(visible, size)
        return True

    def remove_visible(self, name: str) -> None:
        """Remove a part; it may be gone."""
        checked(VISIBLE_NAME, self._path, name).unlink(missing_ok=True)


def checked(pattern: re.Pattern[str], folder: Path, name: str) -> Path:
    """Path of a file that a checkpoint names. Raises CorruptionError for one that no sink writes."""
    if not pattern.fullmatch(name):
        raise CorruptionError(f"{folder}/{name}", "the checkpoint names a file that no FileSink writes")
    return folder / name


def check_size(path: Path, size: int) -> None:
    """Raise CorruptionError when the file's size is another, FileNotFoundError when there is none."""
    found = path.stat().st_size
    if found != size:
        raise CorruptionError(str(path), f"it has {found} bytes, the checkpoint says {size}")


def is_known(part: re.Match[str], snapshots: Mapping[int, Any]) -> bool:
    """Whether the checkpoint with these snapshots of a FileSink counts on a visible part."""
    attempt, number = int(part["attempt"]), int(part["number"])
    own = snapshots.get(int(part["subtask"]))
    if own is not None and own["attempt"] == attempt:
        return bool(number < own["next"])
    return bool(number < max(snapshot["base"] for snapshot in snapshots.values()))
