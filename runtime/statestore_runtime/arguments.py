"""What is checked of the functions and objects that a program gives to streams, while it is written down and nothing runs yet."""

from __future__ import annotations

import copy
from typing import TypeVar

from statestore.errors import UsageError
from statestore.state import AggregateFunction

T = TypeVar("T")


def function_copy(uid: str, function: T) -> T:
    """A worker's own copy of a function with state. Raises UsageError when it can't be copied."""
    try:
        return copy.deepcopy(function)
    except Exception as error:
        raise UsageError(
            f"{type(function).__name__} of operator '{uid}' can't be copied for a worker ({error}): make what can't in its open()"
        ) from error


def kind_of(value: object) -> str:
    """What to call an argument of the wrong kind."""
    return f"the class {value.__name__}: make an object of it" if isinstance(value, type) else type(value).__name__


def check_function(verb: str, function: object, expected: type) -> None:
    """Raise UsageError unless `function` is an object of the class `expected`."""
    if not isinstance(function, expected):
        raise UsageError(f"{verb}() takes an object of a {expected.__name__}, not {kind_of(function)}")


def check_aggregate(function: object) -> None:
    """Raise UsageError unless `function` is an object with the methods of an `AggregateFunction`."""
    if isinstance(function, type) or not isinstance(function, AggregateFunction):
        raise UsageError(
            f"aggregate() takes an object with create_accumulator, add, get_result and merge, not {kind_of(function)}"
        )


def check_callable(verb: str, function: object) -> None:
    """Raise UsageError unless it can be called."""
    if not callable(function):
        raise UsageError(f"{verb}() takes a function, not {type(function).__name__}")
