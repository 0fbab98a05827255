"""A dry run of a job's restore."""

from __future__ import annotations

from msgspec.structs import replace

from statestore.clock import SystemClock
from statestore.compatibility import StateReport, check_checkpoint
from statestore.errors import IncompatibleStateError
from statestore.io import OpenStorage, open_storage
from statestore.store import StateStore
from statestore_runtime.job import Job
from statestore_runtime.operators import KeyedOperator, TaskContext


def check_job(
    job: Job, checkpoint: str, *, allow_pickle: bool = False, open_storage: OpenStorage = open_storage
) -> list[StateReport]:
    """Compare a checkpoint with the states of a job. Its functions are opened, on an empty store, and closed.

    Parameters
    ----------
    checkpoint
        Path `<dir>/<job>/chk-<n>`.
    allow_pickle
        Whether `state.allow-pickle` is set.
    open_storage
        Opens the checkpoint's place, with the keys that go with it.

    Raises
    ------
    UserCodeError
        A function's `open` failed.
    CheckpointNotFoundError, CorruptionError, UnavailableError
        The checkpoint can't be read.
    """
    operators = [operator for operator in job.build() if isinstance(operator, KeyedOperator)]

    def declare(store: StateStore) -> None:
        for operator in operators:
            operator.open(TaskContext(store, SystemClock(), job.name, attempt=0))
            operator.close()

    reports = check_checkpoint(checkpoint, declare, allow_pickle=allow_pickle, open_storage=open_storage)
    known = {operator.uid for operator in operators}
    return [_without_operator(report) if _operator(report) not in known else report for report in reports]


def _operator(report: StateReport) -> str:
    return report.name.partition("/")[0]


def _without_operator(report: StateReport) -> StateReport:
    note = f"the job has no operator '{_operator(report)}': give it that uid again"
    return replace(report, status="incompatible", notes=[*report.notes, note])


def raise_misfits(reports: list[StateReport], checkpoint: str, job: Job) -> None:
    """Raise IncompatibleStateError when a state of a report is incompatible."""
    misfits = [report for report in reports if report.status == "incompatible"]
    if misfits:
        reasons = "; ".join(f"state '{report.name}': {', '.join(report.notes)}" for report in misfits)
        raise IncompatibleStateError(
            f"{len(misfits)} of {len(reports)} states of {checkpoint} do not fit job '{job.name}': {reasons}"
        )
