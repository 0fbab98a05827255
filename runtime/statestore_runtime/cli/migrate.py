"""`statestore migrate`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from statestore_runtime.cli.options import ConfigFile, Debug, Json, Overrides, config_file_or_default, print_json


def migrate(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="A state's URL, a checkpoint's path or a savepoint's folder.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="A state's URL, or a folder or URL that becomes a savepoint.")
    ],
    job: Annotated[str, typer.Option(help="Name of the source's store.")] = "store",
    dir: Annotated[str | None, typer.Option(metavar="DIR", help="Local folder of the source, with its log.")] = None,
    checkpoint_dir: Annotated[str | None, typer.Option(metavar="URL", help="Of the source.")] = None,
    to_job: Annotated[str | None, typer.Option(help="Name of the target's store; default: the source's.")] = None,
    to_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Local folder of the target.")] = None,
    to_checkpoint_dir: Annotated[str | None, typer.Option(metavar="URL", help="Of the target.")] = None,
    max_parallelism: Annotated[
        int | None, typer.Option(metavar="N", help="Other number of key groups: every entry gets a new key.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Give up what the target holds.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy a state to another backend or place while nobody uses it, and compare the copy. Interrupted, the same command goes on.

    Of the configuration only `[encryption]` counts, for both places. Example: statestore migrate rocksdb:///var/lib/app/state redis://127.0.0.1:6379/0
    """
    import statestore
    from statestore.config import load_config
    from statestore_runtime.cli.display import CopyBar, size

    file = config_file_or_default(config)
    encryption = load_config(file=file, overrides=overrides or (), environ=os.environ).encryption
    with CopyBar(show=not json) as bar:
        report = statestore.migrate(
            statestore.Place(source, job, dir, checkpoint_dir, encryption),
            statestore.Place(target, to_job or job, to_dir, to_checkpoint_dir, encryption),
            max_parallelism=max_parallelism,
            overwrite=overwrite,
            show=bar.show,
        )
    if json:
        print_json(report)
        return
    went_on = f", {report.resumed_at:,} of them by an earlier run" if report.resumed_at else ""
    sys.stdout.write(
        f"{report.target}: {report.entries:,} entries, {size(report.raw_bytes)}, of epoch {report.epoch}{went_on}; "
        f"{report.seconds:.1f} s\n"
        f"read back, they are as they were in {report.source}: hash {report.hash}\n"
    )
