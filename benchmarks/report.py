"""The report: one HTML page with a plot of each workload, its table, and what it was made on. Nothing else is needed to look at it."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from benchmarks.results import Results, Row
from benchmarks.tables import LIST_CASES_MAX, by_workload, cells, judged_cells, targets_title
from benchmarks.targets import judge

COLOURS = {"floor": "#9aa0a6", "statestore": "#1a73e8", "peer": "#e8710a"}
BAR_INCHES = 0.22

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>statestore benchmarks</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: 13px; }}
th, td {{ padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
</style></head><body><h1>statestore benchmarks</h1><p>{about}</p>
{body}
</body></html>
"""


def write_report(path: Path, results: Results, summaries: dict[str, str]) -> None:
    """Write the page.

    Parameters
    ----------
    summaries
        What each workload does, by its name.

    Raises
    ------
    ModuleNotFoundError
        matplotlib is not installed.
    """
    about = ", ".join(f"{name}: {value}" for name, value in results.machine.items())
    body = [f"<h2>{targets_title(results)}</h2>", _table(*judged_cells(judge(results.rows)))]
    for workload, some in by_workload(results.rows).items():
        body += [f"<h2>{html.escape(workload)}</h2>", f"<p>{html.escape(summaries.get(workload, ''))}</p>"]
        body += [plot(some), _table(*cells(some))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PAGE.format(about=html.escape(about), body="\n".join(body)))


def _table(titles: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def plot(rows: list[Row]) -> str:
    """What was measured in one workload as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    measured = [row for row in rows if row.seconds]
    if not measured:
        return ""
    cases = list(dict.fromkeys(row.case for row in measured))
    figure = Figure(layout="constrained")
    (_dots if len(cases) > LIST_CASES_MAX else _bars)(figure, cases, measured)
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _bars(figure: Any, cases: list[str], rows: list[Row]) -> None:
    """A panel for each case, a bar for each system."""
    columns = min(2, len(cases))
    lines = -(-len(cases) // columns)
    most = max(sum(row.case == case for row in rows) for case in cases)
    figure.set_size_inches(11, lines * (0.7 + BAR_INCHES * most))
    for number, case in enumerate(cases):
        panel = figure.add_subplot(lines, columns, number + 1)
        some = [row for row in rows if row.case == case]
        lasting = all(row.unit == "times" for row in some)
        values = [row.seconds * 1000 if lasting else row.per_second for row in some]
        bars = panel.barh([row.system for row in some], values, color=[COLOURS[row.role] for row in some])
        panel.bar_label(bars, [f"{value:,.0f}" for value in values], fontsize=7, padding=2)
        panel.invert_yaxis()
        panel.margins(x=0.15)
        panel.set_xlabel("ms" if lasting else f"{some[0].unit} per second", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.set_title(case, fontsize=9, loc="left")


def _dots(figure: Any, cases: list[str], rows: list[Row]) -> None:
    """A line for each case, a dot for each system."""
    figure.set_size_inches(11, 1 + BAR_INCHES * len(cases))
    panel = figure.add_subplot()
    for system in dict.fromkeys(row.system for row in rows):
        some = [row for row in rows if row.system == system]
        marker = "x" if some[0].role == "floor" else "o"
        heights = [cases.index(row.case) for row in some]
        panel.scatter([row.per_second for row in some], heights, label=system, marker=marker, s=22)
    panel.set_yticks(range(len(cases)), cases)
    panel.invert_yaxis()
    panel.grid(axis="y", linewidth=0.3)
    panel.legend(fontsize=8)
    panel.set_xscale("log")
    panel.set_xlabel(f"{rows[0].unit} per second", fontsize=8)
    panel.tick_params(labelsize=8)
