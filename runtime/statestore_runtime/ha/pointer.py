"""Which checkpoint of a job is the latest, as its leaders tell it."""

from __future__ import annotations

import secrets

import msgspec

from statestore.errors import FencedError
from statestore_runtime.ha.lease import FORMAT, decoded, encoded
from statestore_runtime.ha.register import Register


class Latest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint, and who pointed to it."""

    token: int
    """Fencing token of the leader."""
    checkpoint: int | None = None
    """Number of the checkpoint, None while there is none."""
    path: str | None = None
    """Where it is, as `restore` takes it."""
    writing: str = ""
    """Differs in each writing."""
    format: int = FORMAT


class LatestPointer:
    """The job's latest checkpoint, kept beside the lease.

    Atomic: readers see one whole pointer. Fenced: once a leader has taken it over or written it, no leader with a smaller token changes it.
    """

    def __init__(self, register: Register):
        self._register = register

    def read(self) -> Latest | None:
        """The pointer, None when no leader has written one yet.

        Raises
        ------
        UnavailableError
            The store does not answer.
        CorruptionError
            What is there is no pointer.
        """
        return decoded(self._register.read(), Latest, self._register.where)

    def take_over(self, token: int) -> Latest | None:
        """Make the pointer this leader's, so that no earlier one changes it any more, and tell what it points to. Raises as `write` does.

        What a new leader does first: the checkpoint it then restores from stays the latest until it completes one itself.
        """
        while True:
            latest = self._checked(token)
            if latest is not None and latest.token == token:
                return latest
            before = latest or Latest(token=token)
            if self._replace(latest, token, before.checkpoint, before.path):
                return latest

    def write(self, token: int, checkpoint: int, path: str) -> None:
        """Point to a checkpoint that is complete.

        Raises
        ------
        FencedError
            A leader with a greater token has the pointer.
        UnavailableError
            It may have been written or not.
        CorruptionError
            What is there is no pointer.
        """
        while not self._replace(self._checked(token), token, checkpoint, path):
            pass  # somebody else was faster: another leader, or an earlier writing of this one

    def _checked(self, token: int) -> Latest | None:
        latest = self.read()
        if latest is not None and latest.token > token:
            raise FencedError(self._register.where, token, latest.token)
        return latest

    def _replace(self, expected: Latest | None, token: int, checkpoint: int | None, path: str | None) -> bool:
        latest = Latest(token=token, checkpoint=checkpoint, path=path, writing=secrets.token_hex(8))
        return self._register.replace(None if expected is None else encoded(expected), encoded(latest))
