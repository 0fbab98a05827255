"""Names for the numbers that must not be mixed up."""

from typing import NewType

Epoch = NewType("Epoch", int)
"""Number of a commit, from 1, increasing by one in a job's history. 0 is "nothing yet"."""

CheckpointId = NewType("CheckpointId", int)
"""Number of a completed checkpoint of a job, from 1, without gaps."""

Attempt = NewType("Attempt", int)
"""Fencing token: each opening of a job's state for writing gets a greater one."""

KeyGroup = NewType("KeyGroup", int)
"""Slice of the key space, 0 <= key group < max parallelism; the unit of redistribution."""
