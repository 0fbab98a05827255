"""Options that several commands have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

ConfigFile = Annotated[
    str | None, typer.Option("-c", "--config", metavar="FILE", help="Configuration; default statestore.toml if there.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("-D", metavar="KEY=VALUE", help="A setting that goes before file and environment.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

DEFAULT_CONFIG_FILE = "statestore.toml"


def config_file_or_default(file: str | None) -> str | None:
    """The file to read: the one named, or the default one in the current folder if it is there."""
    if file is None and Path(DEFAULT_CONFIG_FILE).is_file():
        return DEFAULT_CONFIG_FILE
    return file


def print_json(value: Any) -> None:
    """Print a value of builtin types, or a Struct, on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
