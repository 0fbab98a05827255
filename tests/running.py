"""A job in processes of its own whose source waits for files, so that a test decides how far it gets; and the commands that ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.command import command, environment, settings, statestore

FOREVER = 60.0
"""Seconds after which something counts as not happening."""

JOB = '''
import json
from pathlib import Path

from statestore_runtime import FileSink, Job, KeyedProcessFunction
from statestore_runtime.sources import FixedSplitsSource, SplitReader

HERE = Path(__file__).parent


class Reader(SplitReader):
    """Events 0, 1, 2, ... of a part, as far as the file `limit` allows."""

    def __init__(self, part, position):
        self.part, self.index = part, position or 0

    def position(self):
        return self.index

    def next_batch(self):
        limit = int((HERE / "limit").read_text())
        if self.index >= EVENTS:
            return None
        end = min(self.index + 5, limit, EVENTS)
        batch = [[self.part, number] for number in range(self.index, end)]
        self.index = end
        return batch


class Gated(FixedSplitsSource):
    def read_part(self, part, position, context):
        return Reader(part, position)


class Count(KeyedProcessFunction):
    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)

    def process(self, event, ctx):
        self.counts.update(self.counts.value() + 1)
        yield [ctx.key, self.counts.value()]


EVENTS = 400
PARTS = 4
job = Job("gated", {"checkpointing.interval": "50ms", "restart.delay": "0"})
(
    job.source(Gated(PARTS))
    .key_by(lambda event: event[1] % 23, int)
    .process(Count())
    .sink(FileSink(HERE / "out", if_exists="replace"))
)
'''
EVENTS, PARTS, KEYS = 400, 4, 23


def expected(events=EVENTS):
    """What the job must write, each line once, in any order: computed with a Counter."""
    totals = Counter(number % KEYS for _ in range(PARTS) for number in range(events))
    return sorted([key, count] for key, total in totals.items() for count in range(1, total + 1))


class Runs:
    """The job in a folder, with one backend."""

    def __init__(self, folder, *overrides):
        self.folder, self.started = folder, []
        self.file = folder / "gated.py"
        self.file.write_text(JOB)
        self.overrides = [f"state.dir={folder / 'state'}", "heartbeat.timeout=20s", *overrides]
        self.limit(0)

    def limit(self, events):
        """Let each part's reader go on to this event."""
        temporary = self.folder / "limit.new"
        temporary.write_text(str(events))
        temporary.rename(self.folder / "limit")

    def start(self, *options, **variables):
        """The command in a process of its own."""
        with (self.folder / f"err-{len(self.started)}").open("w") as err:
            process = subprocess.Popen(
                command("run", self.file, "--json", *settings(self.overrides), *options),
                cwd=self.folder,
                env=environment(**variables),
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def ended(self, process):
        """Exit code and result of a process, when it has ended."""
        out, _ = process.communicate(timeout=FOREVER)
        return process.returncode, json.loads(out) if out.strip() else None

    def error(self, process):
        return (self.folder / f"err-{self.started.index(process)}").read_text()

    def command(self, *arguments, job="gated"):
        """The end of a command about the job."""
        name, *others = arguments
        arguments = [*name.split(), *([job] if job is not None else []), *others]
        return statestore(*arguments, *settings(self.overrides), cwd=self.folder)

    def status(self):
        """How the job stands, None as long as nobody says so."""
        ended = self.command("status", "--json")
        return ended.json if ended.code == 0 else None

    def wait(self, is_so):
        """The first status for which that holds."""
        return wait_for(lambda: (status := self.status()) is not None and is_so(status) and status)

    def wait_for_events(self, events):
        """Until so many events of each part have been read."""
        return self.wait(
            lambda status: status["progress"] is not None and status["progress"]["events"] >= PARTS * events
        )

    def written(self):
        """Lines of the visible output."""
        parts = (self.folder / "out").glob("part-*")
        return sorted(json.loads(line) for part in parts for line in part.read_text().splitlines())

    def end(self):
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
            process.stdout.close()


def wait_for(function):
    """What a function returns as soon as that is true."""
    until = time.monotonic() + FOREVER
    while time.monotonic() < until:
        found = function()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{function} never came true")


def lives(pid):
    """Whether there is such a process, and it is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends between opening and reading
        return False


assert sys.platform == "linux", "these tests look at /proc"
