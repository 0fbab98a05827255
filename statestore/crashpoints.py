"""Named places where a test may kill the process, to prove that recovery works from each of them.

Production code calls `reach(name)` between two steps of commit, checkpoint, recovery or sink. It does nothing unless the environment
variable `STATESTORE_CRASH_POINT` names the place as `name#hit` (the process ends by SIGKILL when the place is reached for the
`hit`-th time) and `STATESTORE_CRASH_TOKEN` a file, which is removed first: without the file nothing dies, so a restarted process lives.
"""

from __future__ import annotations

import os
import signal

NAMES = (
    "commit.before-log",
    "commit.logged",
    "checkpoint.sealed",
    "checkpoint.uploading",
    "checkpoint.uploaded",
    "checkpoint.manifest-written",
    "checkpoint.completed",
    "checkpoint.collected",
    "base.uploading",
    "base.made",
    "pack.made",
    "savepoint.copying",
    "savepoint.completed",
    "claim.removing",
    "claim.removed",
    "migrate.begun",
    "migrate.copying",
    "migrate.verified",
    "migrate.logged",
    "migrate.completed",
    "backend.before-apply",
    "backend.applied",
    "recovery.begun",
    "recovery.loaded",
    "hydration.begun",
    "hydration.piece",
    "hydration.copied",
    "hydration.done",
    "sink.before-prepare",
    "sink.prepared",
    "sink.before-commit",
    "sink.committing",
    "sink.committed",
    "job.batch",
)

_armed_name, _, _armed_hit = os.environ.get("STATESTORE_CRASH_POINT", "").partition("#")
_token = os.environ.get("STATESTORE_CRASH_TOKEN", "")
_hits_left = int(_armed_hit or 1)


def reach(name: str) -> None:
    """Die here if the environment says so."""
    if name == _armed_name:
        _die_when_due()


def _die_when_due() -> None:
    global _hits_left
    _hits_left -= 1
    if _hits_left == 0:
        try:
            os.unlink(_token)  # noqa: PTH108
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
