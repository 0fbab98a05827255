"""What a worker tells of the error that ended it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import FencedError, StateStoreError
from statestore.types import Attempt
from statestore_runtime.functions import UserCodeError
from statestore_runtime.jobmanager.failures import failed_of
from statestore_runtime.protocol import Failed


def task_failure(error: BaseException, checkpoints: Callable[[], CheckpointStorage]) -> Failed:
    """The report of an error; `checkpoints` gives those of the job, and is called only if they have to be looked at."""
    failed = failed_of(error)
    if isinstance(error, UserCodeError):
        return msgspec.structs.replace(failed, is_users=True)
    if isinstance(error, FencedError) and error.owner is not None:
        try:
            is_known = checkpoints().has_attempt(Attempt(error.owner))
        except StateStoreError:
            return failed
        if not is_known:  # its owner was counted elsewhere: the checkpoints were removed, or lie in another place
            return msgspec.structs.replace(failed, claim_above=error.owner)
    return failed
