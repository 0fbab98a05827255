"""Who waits for what of a job.

Invariants:
- each request is answered once, whatever becomes of the job;
- a job stops or rescales for one request at a time; it outlives deployments, until it is carried out or the job has ended.
"""

from __future__ import annotations

from statestore.errors import UsageError
from statestore_runtime.jobmanager.events import Reply, RequestRefusedError, Rescale, Stop, TakeCheckpoint
from statestore_runtime.jobmanager.failures import SavepointFailedError


class Requests:
    """Those that were taken and are not carried out yet.

    Parameters
    ----------
    parallelism_max
        More workers there can't be.

    Attributes
    ----------
    stopping : Stop or None
        What the job stops for.
    rescaling : Rescale or None
        What it stops and begins again for.
    savepoint : str or None
        Where the job's last checkpoint was copied to, if that was asked for with the stop.
    """

    def __init__(self, job: str, parallelism_max: int):
        self._job, self._parallelism_max = job, parallelism_max
        self.stopping: Stop | None = None
        self.rescaling: Rescale | None = None
        self.savepoint: str | None = None
        self._checkpoints: list[TakeCheckpoint] = []

    @property
    def want_checkpoint(self) -> bool:
        """Whether somebody waits for one that is not begun yet."""
        return bool(self._checkpoints)

    def take(self, request: TakeCheckpoint | Stop | Rescale, doing: str | None) -> bool:
        """Take a request, or refuse it.

        Parameters
        ----------
        doing
            What the job does that it takes none for the present; None when it runs.

        Returns
        -------
        bool
            Whether it was taken.
        """
        if self.stopping is not None or self.rescaling is not None:
            doing = "stopping" if self.stopping is not None else "rescaling"
        if doing is not None:
            request.reply(RequestRefusedError(f"job '{self._job}' is {doing}: ask again when it runs"))
            return False
        match request:
            case TakeCheckpoint():
                self._checkpoints.append(request)
            case Stop():
                self.stopping = request
            case Rescale(parallelism=parallelism):
                if not 1 <= parallelism <= self._parallelism_max:
                    problem = f"parallelism is {parallelism}, it must be from 1 to {self._parallelism_max}"
                    request.reply(UsageError(problem))
                    return False
                self.rescaling = request
        return True

    def take_checkpoints(self) -> list[TakeCheckpoint]:
        """Those that the checkpoint which begins now is for."""
        taken, self._checkpoints = self._checkpoints, []
        return taken

    def take_savepoint(self, checkpoint: int) -> tuple[str, Reply] | None:
        """Where the job's last checkpoint is to be copied to, if it is, and who is told what has come of that.

        Whoever has asked for it is answered by the copy, whatever becomes of the job: a restart stops where the savepoint was made.
        """
        stopping = self.stopping
        if stopping is None or stopping.savepoint_dir is None:
            return None
        self.stopping = Stop(lambda outcome: None, drain=stopping.drain)

        def copied(outcome: str | BaseException) -> None:
            if isinstance(outcome, BaseException):
                stopping.reply(SavepointFailedError(self._job, checkpoint, outcome))
            else:
                self.savepoint = outcome
                stopping.reply(outcome)

        return stopping.savepoint_dir, copied

    def stopped(self, checkpoint: int | None) -> None:
        """The job has stopped with this checkpoint."""
        stopping, self.stopping = self.stopping, None
        if stopping is not None:
            stopping.reply(checkpoint)

    def rescaled(self, parallelism: int) -> None:
        """The job goes on with so many workers."""
        rescaling, self.rescaling = self.rescaling, None
        if rescaling is not None:
            rescaling.reply(parallelism)

    def refuse_all(self, reason: str) -> None:
        """The job has ended otherwise."""
        waiting: list[TakeCheckpoint | Stop | Rescale] = [*self.take_checkpoints()]
        waiting += [request for request in (self.stopping, self.rescaling) if request is not None]
        self.stopping = self.rescaling = None
        for request in waiting:
            request.reply(RequestRefusedError(reason))
