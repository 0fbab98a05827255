"""Arguments of sinks, and what their functions return, as bytes."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from statestore.errors import UsageError
from statestore.io import local_path, redacted
from statestore.units import parse_duration


def check_callable(sink: str, argument: str, value: object, *, optional: bool = False) -> None:
    """Raise UsageError for what is no function."""
    if not callable(value) and not (optional and value is None):
        raise UsageError(f"{sink} {argument} must be a function of an event, not {type(value).__name__}")


def seconds_of(sink: str, argument: str, value: str) -> float:
    """A duration. Raises UsageError."""
    try:
        return parse_duration(value)
    except ValueError as error:
        raise UsageError(f"{sink} {argument}: {error}") from None


def shared_folder(sink: str, argument: str, value: str | os.PathLike[str]) -> Path:
    """A folder by path or file:// URL. Raises UsageError for another URL."""
    path = local_path(os.fspath(value))
    if path is None:
        raise UsageError(
            f"{sink} {argument} is '{redacted(os.fspath(value))}': it must be a folder of a file system, which renames in one step, "
            "as object stores don't; write to a folder, and copy its part-* files from there"
        )
    return Path(path)


def key_bytes(where: str, key: object) -> bytes:
    """Text, bytes or a number as bytes. Raises UsageError."""
    if isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, int | float) and not isinstance(key, bool):
        return str(key).encode()
    raise UsageError(f"{where}: a key must be text, bytes or a number, not {type(key).__name__}")


def value_bytes(where: str, value: object, *, is_json: bool = False) -> bytes:
    """Text or bytes as they are, unless `is_json`, and anything else as JSON. Raises UsageError."""
    if isinstance(value, bytes) and not is_json:
        return value
    if isinstance(value, str) and not is_json:
        return value.encode()
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{where}: an event can't be written: {error}") from error
