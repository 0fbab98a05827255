"""Local folders of workers that a job had with another parallelism.

Invariants:
- nothing is removed before a checkpoint of the present workers is complete: from then on no restore goes on from an older layout's folders;
- nothing is removed that somebody has locked.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from statestore.clock import Clock
from statestore.config import Config
from statestore.errors import UnavailableError
from statestore.io import FolderLock
from statestore.keys import split_key_groups

logger = logging.getLogger("statestore_runtime.deployment")

_range = re.compile(r"[0-9]+-[0-9]+")


def remove_leftovers(config: Config, job: str, parallelism: int, clock: Clock) -> list[Path]:
    """Remove what no worker of this parallelism uses, and tell which folders that was; what can't be removed stays.

    See `statestore.opening` for what lies where.
    """
    root = Path(config.state.dir, job)
    groups = split_key_groups(parallelism, config.state.max_parallelism)
    used = {f"{own.start}-{own.stop - 1}" for own in groups} if parallelism > 1 else set()
    removed = [
        folder
        for folder in sorted(root.glob("*-*"))
        if _range.fullmatch(folder.name) and folder.name not in used and not folder.is_symlink()
        if _removed(folder, [folder], clock)
    ]
    if parallelism > 1:  # one worker alone has its folders right in the job's
        parts = [root / name for name in ("log", "tmp", config.state.backend) if (root / name).is_dir()]
        removed += parts if parts and _removed(root, parts, clock) else []
    return removed


def _removed(locked: Path, folders: list[Path], clock: Clock) -> bool:
    try:
        lock = FolderLock(locked, clock, wait_seconds=0)
    except UnavailableError as error:
        logger.info("%s stays: %s", locked, error)
        return False
    try:
        for folder in folders:
            shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s, which no worker uses any more, stays: %s", locked, error)
        return False
    finally:
        lock.release()
    return True
