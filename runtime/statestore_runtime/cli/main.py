"""`statestore`: the command line, and what its exit codes mean.

0 done · 1 internal error · 2 wrong usage or configuration · 3 something outside is unavailable · 4 corrupt files · 5 state does not fit
the program · 6 a newer attempt owns the job · 7 nothing to restore, or no such key · 8 a record can't be read · 9 the job is not running ·
10 the job's own code failed · 11 the worker process died, and is not restarted any more · 12 the job was cancelled · 130 interrupted ·
143 terminated
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated

import typer

from statestore.errors import StateStoreError
from statestore_runtime.cli import checkpoint, jobs, retention, state
from statestore_runtime.cli.check import check
from statestore_runtime.cli.diff import diff
from statestore_runtime.cli.export import export
from statestore_runtime.cli.migrate import migrate
from statestore_runtime.cli.run import run
from statestore_runtime.cli.savepoint import savepoint

app = typer.Typer(
    name="statestore",
    help="Keyed state with pluggable backends for stream processing.",
    epilog=" ".join((__doc__ or "").partition("\n\n")[2].split()),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command("list")(jobs.list_)
app.command()(jobs.status)
app.command()(jobs.stop)
app.command()(jobs.cancel)
app.command()(jobs.rescale)
for command in (diff, export, check, retention.pin, retention.unpin, retention.prune):
    checkpoint.app.command()(command)
checkpoint.app.command()(jobs.trigger)
app.command()(savepoint)
app.command()(migrate)
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(state.app, name="state")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"statestore {version('statestore')}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Keyed state with pluggable backends for stream processing."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors are one line on standard error, with a traceback behind --debug only."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="statestore: %(levelname)s: %(message)s", level=logging.WARNING)
    try:
        code = app(arguments, standalone_mode=False)
    except StateStoreError as error:
        return _report(str(error), error.exit_code, error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return _report("interrupted", 130, None, arguments)
    except BrokenPipeError:  # whoever reads our output has had enough
        sys.stderr.close()
        return 0
    except Exception as error:
        format_message = getattr(error, "format_message", None)  # typer's usage errors have no public base class
        if format_message is not None:
            return _report(f"{format_message()} Try --help.", 2, None, arguments)
        return _report(f"internal error: {type(error).__name__}: {error}", 1, error, arguments)
    return code if isinstance(code, int) else 0


def _report(text: str, code: int, error: BaseException | None, arguments: list[str]) -> int:
    if "--debug" in arguments and error is not None:
        failure = getattr(error, "failure", None)  # the worker's own traceback says more than this process'
        sys.stderr.write(failure.traceback if failure is not None else "".join(traceback.format_exception(error)))
    sys.stderr.write(f"statestore: {' '.join(text.split())}\n")
    return code
