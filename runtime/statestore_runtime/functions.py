"""What users write: keyed functions, the contexts they are given, and what happens when they fail."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from statestore.errors import StateStoreError
from statestore.keyed import KeyedState, StateFactory

K = TypeVar("K")
E = TypeVar("E")
R = TypeVar("R")

_PACKAGE_FOLDER = str(Path(__file__).parent)


class UserCodeError(StateStoreError, RuntimeError):
    """A function of the job failed on an event; what it raised is the `__cause__`. Mend the function."""

    exit_code = 10

    def __init__(self, operator: str, problem: str, place: str | None):
        self.operator, self.problem, self.place = operator, problem, place
        super().__init__(f"operator '{operator}' failed on an event: {problem}{f' ({place})' if place else ''}")

    @classmethod
    def of(cls, operator: str, error: Exception) -> UserCodeError:
        """The error that an operator's function raised, with the place in the user's file where it did."""
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not frame.filename.startswith(_PACKAGE_FOLDER)]
        place = None
        if theirs:  # the deepest place in their file says more than one in a library called from there
            last = [frame for frame in theirs if frame.filename == theirs[0].filename][-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
        return cls(operator, f"{type(error).__name__}: {error}", place)


class RuntimeContext(StateFactory):
    """What a function is opened with: the way to its state (`value_state`, `list_state`, `map_state`, ...).

    Attributes
    ----------
    job : str
        Name of the job.
    operator : str
        The operator's uid.
    attempt : int
        How often the job's state has been opened, this time included.
    """

    def __init__(self, job: str, operator: str, attempt: int, scope: KeyedState):
        self.job, self.operator, self.attempt = job, operator, attempt
        self._scope = scope

    def _keyed(self) -> KeyedState:
        return self._scope


class KeyContext(Generic[K]):
    """What a function is given with each event; the same object every time.

    Attributes
    ----------
    key
        The event's key, which all state handles work on.
    """

    __slots__ = ("key",)

    key: K


class KeyedProcessFunction(ABC, Generic[K, E, R]):
    """A function with state per key: the general stateful operator.

    The optional method `on_checkpoint_complete(checkpoint_id)` is called when a checkpoint can be restored from.
    """

    def open(self, ctx: RuntimeContext) -> None:
        """Called once before the first event of a run: register states here."""

    @abstractmethod
    def process(self, event: E, ctx: KeyContext[K]) -> Iterable[R] | None:
        """Called with each event; what is returned, or yielded, goes to the operator's consumers."""

    def close(self) -> None:
        """Called once at the end of a run, also of a failed one."""
