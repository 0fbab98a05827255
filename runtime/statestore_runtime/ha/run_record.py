"""Which run of a job its leaders are at, and how it has ended: so that the next one goes on with it, and standbys know when to go."""

from __future__ import annotations

import secrets

import msgspec
from msgspec.structs import replace

from statestore.errors import FencedError
from statestore_runtime.ha.lease import FORMAT, decoded, encoded
from statestore_runtime.ha.register import Register


class RunEnd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run has ended."""

    state: str
    """finished, stopped, cancelled or failed."""
    by: str
    """Who led it then."""
    exit_code: int = 0
    problem: str | None = None
    """The error of one that has failed."""
    checkpoint: int | None = None
    """The last one."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run of a job."""

    token: int
    """Of the leader that wrote it, or took it over."""
    run: str
    """Its name: checkpoints that carry it are restored by each leader of the run."""
    parallelism: int | None = None
    """Number of workers it was given while it ran."""
    end: RunEnd | None = None
    writing: str = ""
    """Differs in each writing."""
    format: int = FORMAT


class RunRecorder:
    """The record, kept beside the lease.

    Atomic, and fenced: once a leader has taken it over, none with a smaller token changes it.
    """

    def __init__(self, register: Register):
        self._register = register

    def read(self) -> RunRecord | None:
        """The record, None before the first run. Raises UnavailableError, CorruptionError."""
        return decoded(self._register.read(), RunRecord, self._register.where)

    def write(self, record: RunRecord) -> RunRecord:
        """Set the record, as the leader whose token it has.

        Raises
        ------
        FencedError
            A leader with a greater token has it.
        UnavailableError
            It may have been written or not.
        """
        record = replace(record, writing=secrets.token_hex(8))
        while True:
            before = self.read()
            if before is not None and before.token > record.token:
                raise FencedError(self._register.where, record.token, before.token)
            if self._register.replace(None if before is None else encoded(before), encoded(record)):
                return record
