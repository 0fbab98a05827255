"""Results as tables: for the terminal, and as markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.results import Results, Row
from benchmarks.targets import Judged, judge

LASTING = ("times", "keys", "changed keys")
"""What is done in one piece, whose duration counts."""
UNCOUNTED = ("times", "bytes")
LIST_CASES_MAX = 20
"""A workload with more cases than these is shown with a column for each system."""


def rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def comparison(row: Row) -> str:
    """Ratios to others than the floor; in parentheses with start-up counted in."""
    parts = []
    for name, ratio in row.ratios.items():
        if name == row.floor:
            continue
        with_start_up = row.ratios_with_start_up.get(name)
        parts.append(f"{name} {ratio:.2f}" + (f" ({with_start_up:.2f})" if with_start_up else ""))
    return ", ".join(parts)


def of_floor(row: Row) -> str:
    return f"{row.ratios[row.floor]:.3f}" if row.floor else ""


def duration(row: Row) -> str:
    return f"{row.seconds * 1000:,.1f}" if row.seconds and row.unit in LASTING else ""


COLUMNS: dict[str, Callable[[Row], str]] = {
    "case": lambda row: row.case,
    "system": lambda row: row.system,
    "per second": lambda row: "" if row.unit in UNCOUNTED or row.missing else rate(row.per_second),
    "with start-up": lambda row: rate(row.per_second_with_start_up),
    "ms": duration,
    "of floor": of_floor,
    "of others (with start-up)": comparison,
    "peak MiB": lambda row: rate(row.peak_mib),
    "": lambda row: row.missing,
}
LEFT = ("case", "system", "of others (with start-up)", "where", "")


def by_workload(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.workload, []).append(row)
    return found


def cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles and lines of one workload, without columns that would be empty."""
    if len({row.case for row in rows}) > LIST_CASES_MAX:
        return pivoted(rows)
    columns = {title: show for title, show in COLUMNS.items() if any(show(row) for row in rows)}
    further = list(dict.fromkeys(title for row in rows for title in row.shown))
    titles = [*columns, *further]
    if "" in columns:  # the last one: why something is missing
        titles = [title for title in titles if title] + [""]
    lines = [
        [columns[title](row) if title in columns else row.shown.get(title, "") for title in titles] for row in rows
    ]
    return titles, lines


def pivoted(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """A line for each case, a column for each system: thousands per second, and the ratio to the system's floor."""
    systems = list(dict.fromkeys(row.system for row in rows if not row.missing))
    found = {(row.case, row.system): row for row in rows}
    lines = []
    for case in dict.fromkeys(row.case for row in rows if not row.missing):
        line = [case]
        for system in systems:
            row = found.get((case, system))
            line.append(f"{row.per_second / 1000:,.0f} {of_floor(row)[:-1]}".strip() if row else "")
        lines.append(line)
    peaks = [max(row.peak_mib or 0 for row in rows if row.system == system) for system in systems]
    lines.append(["peak MiB", *map(rate, peaks)])
    lines += [[f"{row.system}: {row.missing}", *[""] * len(systems)] for row in rows if row.missing]
    return ["thousands per second, of floor", *(system.removeprefix("statestore ") for system in systems)], lines


def judged_cells(judged: list[Judged]) -> tuple[list[str], list[list[str]]]:
    """Titles and lines of the targets."""
    lines = []
    for each in judged:
        target = each.target
        bound = f"≥ {target.at_least:g}" if target.at_least is not None else f"≤ {target.at_most:g}"
        worst = f"{each.value:.0f}" if target.unit else f"{each.value:.2f}"
        lines.append([target.text, f"{bound} {target.unit}".strip(), worst, "yes" if each.met else "no", each.where])
    return ["target", "wanted", "worst", "met", "where"], lines


def targets_title(results: Results) -> str:
    return "targets, for which a quick run is too small" if results.quick else "targets"


def tables(results: Results) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Name, titles and lines of every table."""
    for workload, some in by_workload(results.rows).items():
        yield workload, *cells(some)
    judged = judge(results.rows)
    if judged:
        yield targets_title(results), *judged_cells(judged)


def show(results: Results, console: Console) -> None:
    for name, titles, lines in tables(results):
        table = Table(title=name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, title in enumerate(titles):
            left = title in LEFT or not number
            table.add_column(title, justify="left" if left else "right", overflow="fold")
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)


def markdown(results: Results) -> str:
    parts = []
    for name, titles, lines in tables(results):
        rule = ["---" if title in LEFT or not number else "---:" for number, title in enumerate(titles)]
        body = [f"| {' | '.join(line)} |" for line in [titles, rule, *lines]]
        parts.append("\n".join([f"### {name}", "", *body]))
    return "\n\n".join(parts) + "\n"
