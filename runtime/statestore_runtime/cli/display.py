"""What the commands show while they work: `run` a live line, and a report at its end; a copy a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from statestore_runtime.deployment.candidate import LeadershipLost, Leading, StandingBy
from statestore_runtime.deployment.runner import Outcome
from statestore_runtime.jobmanager.failures import restarts_logger
from statestore_runtime.messages import (
    CheckpointCompleted,
    CheckpointFailed,
    Message,
    Progress,
    Restarting,
    Restoring,
    Started,
)

LINE_SECONDS = 5.0
"""Between two progress lines where nothing can be shown live."""

OTHER_BACKENDS = {
    "rocksdb": "filesystem",
    "filesystem": "memory",
    "file": "memory",
    "memory": "rocksdb",
    "redis": "rocksdb",
    "rediss": "rocksdb",
}


class Display:
    """Messages on standard error, as a live line on a terminal; the report on standard output."""

    def __init__(self, *, show: bool = True):
        self._is_shown = show
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        if show and self._errors.is_terminal:
            self._live = Live(console=self._errors, transient=True, refresh_per_second=8)
        self._started: Started | None = None
        self._last: Progress | None = None
        self._rate = 0.0
        self._restoring = ""
        self._next_line = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> Display:
        if self._is_shown:  # a restart is told once
            restarts_logger.disabled = True
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restarts_logger.disabled = False
        if self._live is not None:
            self._live.stop()

    def show(self, message: Message) -> None:
        """Show a message of the job."""
        if not self._is_shown:
            return
        match message:
            case Started():
                self._started, self._restoring = message, ""
                self._last = Progress(events=message.events, seconds=0.0, checkpoints=0, state_bytes=0)
                self._rate = 0.0
                self._say(_beginning(message))
            case Restoring():
                self._show_restoring(message)
            case Progress():
                self._show_progress(message)
            case CheckpointCompleted() if self._live is None:
                new, total = size(message.uploaded_bytes), size(message.total_bytes)
                self._say(f"checkpoint {message.checkpoint}: {new} new, {total} in all, {message.seconds:.2f} s")
            case CheckpointFailed(reason=reason):
                self._say(f"a checkpoint failed: {reason}")
            case Restarting(reason=reason, restart=restart, delay_seconds=delay):
                self._started = None
                self._say(f"{reason}; restart {restart} in {delay:.1f} s")
            case StandingBy(job=job, leader=leader):
                self._say(f"{job}: standing by, {leader} leads")
            case Leading(job=job, token=token):
                self._say(f"{job}: leading, with token {token}")
            case LeadershipLost(job=job):
                self._started = None
                self._say(f"{job}: leads no more; its workers were killed")

    def _show_restoring(self, restoring: Restoring) -> None:
        share = restoring.bytes_done / max(restoring.bytes_total, 1)
        left = "" if restoring.eta_seconds is None else f", {restoring.eta_seconds:.0f} s left"
        what = f"restored {share:.0%} of {size(restoring.bytes_total)}{left}"
        if self._started is None:
            self._show_line(f"{restoring.job}  {what}, {restoring.entries:,} entries, {restoring.seconds:.0f} s")
        else:  # the job runs meanwhile: its own line says it
            self._restoring = f"  {what}"

    def _show_progress(self, progress: Progress) -> None:
        if self._last is not None and progress.seconds > self._last.seconds:
            now = (progress.events - self._last.events) / (progress.seconds - self._last.seconds)
            self._rate = now if not self._rate else 0.6 * self._rate + 0.4 * now
        self._last = progress
        name = self._started.job if self._started is not None else "job"
        line = (
            f"{name}  {progress.events:,} events  {self._rate:,.0f} events/s  {progress.checkpoints} checkpoints  "
            f"state {size(progress.state_bytes)}  log {size(progress.wal_disk_bytes)}  {progress.seconds:.0f} s{self._restoring}"
        )
        self._restoring = ""
        self._show_line(line)

    def _show_line(self, line: str) -> None:
        """Show how things stand: live, or now and then."""
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self._say(line)

    def _say(self, line: str) -> None:
        self._errors.print(line, markup=False)

    def report(self, outcome: Outcome, command: str) -> None:
        """Show what the run has done, and what to try next."""
        finished, started = outcome.finished, self._started
        rate = finished.events_this_run / finished.seconds
        rows = _rows(outcome, started)
        if outcome.stopped:
            place = outcome.savepoint or "latest"
            rows.append(("go on with", f"{command} --restore {place}"))
        elif started is not None:
            other = OTHER_BACKENDS.get(started.backend, "rocksdb")
            rows.append(("try next", f"{command} --restore none -D state.backend={other}"))
        end = "stopped" if outcome.stopped else "finished"
        keys = "" if finished.keys is None else f"{_plural(finished.keys, 'key')}, "
        sys.stdout.write(
            f"{finished.job} {end}: {_plural(finished.events, 'event')}, {keys}"
            f"{outcome.seconds:.1f} s ({rate:,.0f} events/s while it ran)\n"
        )
        sys.stdout.writelines(f"  {label:13}  {text}\n" for label, text in rows)


def _beginning(started: Started) -> str:
    where = f"{started.job}: backend {started.backend} at {started.state}, checkpoints in {started.checkpoints}"
    if started.restored_checkpoint is None:
        return where
    return (
        f"{where}; goes on from checkpoint {started.restored_checkpoint}, restored in {started.recover_seconds:.2f} s"
    )


def _rows(outcome: Outcome, started: Started | None) -> list[tuple[str, str]]:
    finished = outcome.finished
    rows = []
    if finished.events_this_run != finished.events:
        rows.append(("events", f"{finished.events_this_run:,} since the restored checkpoint"))
    if finished.bad_records:
        rows.append(("bad records", f"{finished.bad_records:,}, passed over as source.on-error says"))
    if finished.skipped_events:
        rows.append(("skipped", f"{finished.skipped_events:,} on which a function failed, as job.on-error says"))
    if finished.late_events:
        rows.append(("too late", f"{_plural(finished.late_events, 'event')}, dropped"))
    if outcome.restarts:
        rows.append(("restarts", f"{outcome.restarts}; {outcome.recovery_seconds:.2f} s until the job ran again"))
    if started is not None:
        newest = f", newest {started.checkpoints}/chk-{finished.last_checkpoint}"
        rows.append(("checkpoints", f"{finished.checkpoints}{newest if finished.last_checkpoint else ''}"))
        uploaded = f"{size(finished.uploaded_bytes)} written by this run"
        rows.append(
            ("state", f"{size(finished.state_bytes)}, {uploaded}; backend {started.backend} at {started.state}")
        )
    if finished.wal_disk_bytes:
        rows.append(("log", f"{size(finished.wal_disk_bytes)} kept, since {finished.wal_age_seconds:.0f} s"))
    if finished.outputs:
        rows.append(("output", ", ".join(finished.outputs)))
    shares = "  ".join(f"{activity} {share:.1%}" for activity, share in finished.shares.items())
    rows.append(("share of time", shares))
    return rows


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@contextmanager
def progress(title: str, total_bytes: int, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; call what it yields with the bytes of each step."""
    from rich import progress as rich_progress

    console = Console(stderr=True, highlight=False)
    columns = (
        rich_progress.TextColumn(title),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(binary_units=True),
        rich_progress.TimeRemainingColumn(),
    )
    is_hidden = not (show and console.is_terminal)
    with rich_progress.Progress(*columns, console=console, transient=True, disable=is_hidden) as bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda step: bar.advance(task, step)


def size(count: float) -> str:
    """A number of bytes, as people read it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


class CopyBar:
    """Progress bar of a copy, on standard error, where that is a terminal."""

    def __init__(self, *, show: bool = True):
        console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[entries]:,} entries"),
            TimeRemainingColumn(),
        )
        self._progress = ProgressBar(
            *columns, console=console, transient=True, disable=not (show and console.is_terminal)
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> CopyBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, phase: str, share: float, entries: int) -> None:
        """Move the bar of this phase."""
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=1.0, entries=0)
        self._progress.update(self._tasks[phase], completed=share, entries=entries)
