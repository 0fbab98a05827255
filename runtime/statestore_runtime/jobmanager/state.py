"""Where a job stands."""

from __future__ import annotations

from enum import Enum


class JobState(Enum):
    """See `manager` for what follows what."""

    CREATED = "created"
    RESTORING = "restoring"
    RUNNING = "running"
    FAILING = "failing"
    RESTARTING = "restarting"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)
DEPLOYED = (JobState.RESTORING, JobState.RUNNING, JobState.FAILING)
