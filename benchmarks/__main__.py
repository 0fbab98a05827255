"""`python -m benchmarks`: the floor, statestore on every backend, and the peers that are installed, in one run.

Each measurement has a process of its own. The floors neither log nor checkpoint; statestore does both.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks import tables
from benchmarks.bench import FULL, QUICK, Bench
from benchmarks.ours.settings import BACKENDS
from benchmarks.peers import INSTALLED_BY_EXTRA, PEERS
from benchmarks.process import MeasurementError
from benchmarks.report import write_report
from benchmarks.results import Results
from benchmarks.workloads import SUMMARIES, WORKLOADS

WIDTH = 140


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    again = "only this one; may be given again"
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help=again)
    parser.add_argument("--backend", action="append", choices=BACKENDS, help=again)
    parser.add_argument(
        "--peer", action="append", choices=[*PEERS, "none"], help=again + "; spark and flink run only so"
    )
    parser.add_argument("--events", type=_number, help="of jobs")
    parser.add_argument("--keys", type=_number, help="of state operations, checkpoints and recovery, such as 1e7")
    parser.add_argument("--rounds", type=_number, help="how often floor and systems run in turn; the best counts")
    parser.add_argument("--json", default="out/benchmarks.json", metavar="FILE", help="where results go")
    parser.add_argument("--report", default="out/benchmarks.html", metavar="FILE", help="page of plots; empty: none")
    parser.add_argument("--show", metavar="FILE", help="measure nothing: show the results in this file")
    parser.add_argument("--markdown", action="store_true", help="print the tables as markdown")
    return parser.parse_args(arguments)


def _number(text: str) -> int:
    return int(float(text))


def bench_for(options: argparse.Namespace, folder: Path) -> Bench:
    """What the command line asks for."""
    sizes = QUICK if options.quick else FULL
    if options.events:
        sizes = replace(sizes, events=options.events, event_keys=max(10, options.events // 10))
    if options.keys:
        sizes = replace(sizes, keys=options.keys)
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    peers = tuple(name for name in options.peer or INSTALLED_BY_EXTRA if name != "none")
    return Bench(folder, sizes, tuple(options.backend or BACKENDS), peers)


def measured(options: argparse.Namespace, console: Console) -> tuple[Results, bool]:
    """Results of all workloads, saved after each of them; and whether all went well."""
    results, ok = Results(options.quick), True
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, console.status("") as status:
        bench = replace(bench_for(options, Path(folder)), tell=lambda text: status.update(escape(text)))
        for name in options.workload or WORKLOADS:
            begun, used = time.monotonic(), _cpu_seconds()
            try:
                results.rows.extend(WORKLOADS[name](bench))
            except MeasurementError as error:
                console.print(f"{name}: {error}", style="red", markup=False)
                ok = False
            results.seconds[name] = {"wall": time.monotonic() - begun, "cpu": _cpu_seconds() - used}
            results.save(Path(options.json))
    return results, ok


def _cpu_seconds() -> float:
    """Of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    console = Console(stderr=True)
    results, ok = (Results.load(Path(options.show)), True) if options.show else measured(options, console)
    written = [options.show or options.json]
    if options.report:
        try:
            write_report(Path(options.report), results, SUMMARIES)
        except ModuleNotFoundError as error:
            console.print(f"no report: {error}; pip install 'statestore[bench]'", style="red", markup=False)
        else:
            written.append(options.report)
    if options.markdown:
        print(tables.markdown(results))
    else:
        tables.show(results, Console(width=WIDTH))
    seconds = sum(each["wall"] for each in results.seconds.values())
    print(f"{seconds:.0f} s; results in {' and '.join(written)}", file=sys.stderr)
    return 0 if ok else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that nothing is left behind
    sys.exit(main())
