"""What may stand between the events of a script. Each happens once, however often the events around it are read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from statestore_runtime.watermarks import Duration, duration_ms


class Marker:
    """A place in a script where something happens."""


class _Named(Marker):
    """A marker without parameters, of which there is one."""

    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return self._name


CRASH = _Named("CRASH")
"""All workers are gone, with what they have not put into a checkpoint; the JobManager starts others, from the last one."""

RESTART = _Named("RESTART")
"""The same, and the JobManager goes with them: the job is built anew and started with `restore="latest"`."""

CHECKPOINT = _Named("CHECKPOINT")
"""A checkpoint, and what follows waits for its end, good or bad. After a crash that comes before its end it is made again."""

EOF = _Named("EOF")
"""The source ends here: the job finishes, and is then started with `restore="latest"`, as if what follows had come meanwhile."""


@dataclass(frozen=True)
class ADVANCE(Marker):
    """Lets time pass once everything before has been processed; timers that are due have fired before what follows is read.

    Parameters
    ----------
    duration
        "10s", seconds, or a timedelta.

    Raises
    ------
    UsageError
        It is none of these.
    """

    duration: Duration
    seconds: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", duration_ms(self.duration, "ADVANCE") / 1000)


@dataclass(frozen=True)
class RESCALE(Marker):
    """The job stops with a checkpoint and goes on with another number of workers."""

    parallelism: int


@dataclass(frozen=True)
class CALL(Marker):
    """Calls a function once everything before has been processed, again and again as long as it returns False."""

    function: Callable[[], object]
