"""Claim mode: what a store was restored from becomes its own, and is removed when it is needed no more.

Invariants:
- the claim stands in every checkpoint made since, so a store that is opened again after a crash removes what it owes;
- what was claimed goes only when as many checkpoints of the store's own are complete as it retains, none of which refers to it;
- what lies at the place by then and is not what was claimed stays.
"""

from __future__ import annotations

import logging

from statestore import crashpoints
from statestore.checkpoint.locating import SavepointStorage, locate_checkpoint
from statestore.checkpoint.manifest import Claim, Manifest, manifest_sha256
from statestore.checkpoint.retention import remove_up_to
from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import CheckpointNotFoundError, CorruptionError, UnavailableError, UsageError
from statestore.io import redacted
from statestore.types import CheckpointId

logger = logging.getLogger("statestore.checkpoint")


def claim(path: str, since: CheckpointId, own: CheckpointStorage) -> Claim:
    """Take over what a store was restored from. A job that it is a checkpoint of can complete nothing more: its attempt is fenced.

    Raises
    ------
    UsageError
        The path holds a secret, which a claim would keep.
    CheckpointNotFoundError, CorruptionError, UnavailableError
        It can't be read.
    """
    if redacted(path) != path:
        raise UsageError(
            f"{redacted(path)} can't be claimed: its URL holds a secret, which would be kept in every checkpoint; "
            "give the secret by the environment"
        )
    checkpoints, number = locate_checkpoint(path, own)
    manifest = checkpoints.load(number)
    if not isinstance(checkpoints, SavepointStorage):
        checkpoints.claim_attempt()
    return Claim(path=checkpoints.path_of(number), sha256=manifest_sha256(manifest), since=since)


def settle_claim(manifest: Manifest, num_retained: int, own: CheckpointStorage) -> Claim | None:
    """Remove what is claimed, now that the checkpoint of `manifest` is complete, if it would not be retained any more; else the claim."""
    claimed = manifest.claimed
    if claimed is None or manifest.checkpoint_id - claimed.since + 1 < num_retained:
        return claimed
    try:
        remove_claimed(claimed, own)
    except (
        UnavailableError,
        CheckpointNotFoundError,
        CorruptionError,
    ) as error:  # it is tried again after the next checkpoint
        logger.warning("%s, which was claimed, was not removed: %s", claimed.path, error)
        return claimed
    return None


def remove_claimed(claimed: Claim, own: CheckpointStorage) -> None:
    """Remove a claimed savepoint, or a claimed checkpoint and the older ones of its job, which it shares files with.

    Those that are pinned there stay, and files that newer checkpoints name. Raises as `collect` does.
    """
    crashpoints.reach("claim.removing")
    try:
        checkpoints, number = locate_checkpoint(claimed.path, own)
        manifest = checkpoints.load(number)
    except (CheckpointNotFoundError, CorruptionError, UsageError) as error:
        logger.info("nothing is left of %s to remove: %s", claimed.path, error)
        return
    if manifest_sha256(manifest) != claimed.sha256:
        logger.warning("%s is not what was claimed any more, and stays", claimed.path)
        return
    remove_up_to(checkpoints, number)
    crashpoints.reach("claim.removed")
