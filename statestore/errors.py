"""The errors of statestore, one kind for each thing a caller would do about it.

Every kind is also the builtin a Python programmer would catch, and carries its values as attributes.
`exit_code` is what the command line ends with when the error reaches it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class StateStoreError(Exception):
    """Base of all errors raised on purpose by statestore."""

    exit_code: ClassVar[int] = 1


class ConfigError(StateStoreError, ValueError):
    """A setting is unknown or has a bad value: mend the configuration."""

    exit_code = 2

    def __init__(self, problem: str, *, key: str | None = None, place: str | None = None, hint: str | None = None):
        self.problem, self.key, self.place, self.hint = problem, key, place, hint
        where = "".join([f" '{key}'" if key else "", f" ({place})" if place else ""])
        super().__init__(f"bad configuration{where}: {problem}{f'; {hint}' if hint else ''}")


class EncryptionKeyError(ConfigError):
    """An object needs a key that is not configured, or is not encrypted though it should be: mend `[encryption]`."""

    def __init__(self, file: str, problem: str, key_id: str | None, hint: str):
        self.file, self.key_id = file, key_id
        super().__init__(f"{file} {problem}", key="encryption", hint=hint)


class UsageError(StateStoreError, ValueError):
    """The API was called in a way it can't serve: mend the program."""

    exit_code = 2


class UnavailableError(StateStoreError, ConnectionError):
    """Something outside does not answer (server down, disk full, lock held): retry later."""

    exit_code = 3

    def __init__(self, what: str, where: str, reason: object, *, hint: str | None = None):
        self.what, self.where, self.reason, self.hint = what, where, reason, hint
        super().__init__(f"{what} unavailable at {where}: {reason}{f'; {hint}' if hint else ''}")


class CorruptionError(StateStoreError, OSError):
    """Stored bytes are not what was written: restore from an older checkpoint or another copy."""

    exit_code = 4

    def __init__(self, file: str, problem: str, *, offset: int | None = None, hint: str | None = None):
        self.file, self.problem, self.offset, self.hint = file, problem, offset, hint
        at = "" if offset is None else f" at byte {offset}"
        super().__init__(f"corrupt file {file}{at}: {problem}{f'; {hint}' if hint else ''}")


class IncompatibleStateError(StateStoreError, TypeError):
    """Stored state does not fit what the program declares: migrate, rename or restore elsewhere."""

    exit_code = 5


class StateMigrationError(IncompatibleStateError):
    """A state was stored with a type that can't be read as the one it is declared with now."""

    def __init__(self, state: str, old: str, new: str, problem: str, *, field: str = "", hint: str | None = None):
        self.state, self.old, self.new, self.problem, self.field, self.hint = state, old, new, problem, field, hint
        super().__init__(
            f"state '{state}' was stored as {old} and is declared as {new}: {problem}{f'; {hint}' if hint else ''}"
        )


class FencedError(StateStoreError, PermissionError):
    """A newer attempt owns the job's state: this one must stop."""

    exit_code = 6

    def __init__(self, where: str, mine: int, owner: int | None = None):
        self.where, self.mine, self.owner = where, mine, owner
        by = "a newer attempt" if owner is None else f"attempt {owner}"
        super().__init__(f"attempt {mine} is fenced at {where}: {by} owns the job now; stop this one")


class CheckpointNotFoundError(StateStoreError, FileNotFoundError):
    """There is nothing to restore where it was looked for."""

    exit_code = 7

    def __init__(self, where: str, problem: str, *, hint: str | None = None):
        self.where, self.problem, self.hint = where, problem, hint
        super().__init__(f"nothing to restore at {where}: {problem}{f'; {hint}' if hint else ''}")


class AlreadyExistsError(StateStoreError, FileExistsError):
    """Something is where it should be written, and is not replaced unasked: choose another place."""

    exit_code = 2

    def __init__(self, where: str, problem: str, *, hint: str | None = None):
        self.where, self.problem, self.hint = where, problem, hint
        super().__init__(f"{where} is taken: {problem}{f'; {hint}' if hint else ''}")


class ClosedError(StateStoreError, RuntimeError):
    """The store, log or backend was closed, or poisoned by a failed write, before this call."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Hint naming the nearest known name, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else None
