"""Runs as stories, `[1, 2, CHECKPOINT, 3, CRASH, 4]`, on a clock that only they move."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import ClassVar

import pytest

from statestore.config import load_config
from statestore.errors import UnavailableError
from statestore_runtime import (
    CollectSink,
    FileSink,
    Job,
    KeyedProcessFunction,
    UserCodeError,
    run_job,
)
from statestore_runtime.messages import CheckpointCompleted, CheckpointFailed
from statestore_runtime.sources import FixedSplitsSource, SplitReader

INTERVAL = 100_000.0
TIMEOUT = 50_000.0
"""Seconds of the clock: so many that no wait for another thread, each of which moves the clock, comes near them."""
OVERDUE = TIMEOUT + 1
"""A sum of times is rounded."""


class Clock:
    """Goes on only when a story does, or when the run waits for something to come."""

    def __init__(self):
        self.now = 0.0

    def time(self):
        return 1_700_000_000 + self.now

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        time.sleep(0.0002)  # lets the other threads run; nothing depends on it
        self.now += seconds


class Crash:
    """A place where the source raises an exception, once."""

    def __init__(self):
        self.is_armed = True


class Call:
    """A place where something happens, each time it is read; the story stays here as long as the function returns False."""

    def __init__(self, function):
        self.function = function


CHECKPOINT = "CHECKPOINT"
"""A place where a checkpoint comes to be due; the events behind it wait for its end."""


class Story(FixedSplitsSource, SplitReader):
    """One event a batch, with places between them; the position is an index, as in a CollectionSource."""

    def __init__(self, clock, elements):
        super().__init__()
        self.clock, self.elements, self.messages = clock, elements, []
        self.index = 0
        self.awaited = None

    def tell(self, message):
        self.messages.append(message)

    def ended(self):
        return sum(isinstance(message, CheckpointCompleted | CheckpointFailed) for message in self.messages)

    def read_part(self, part, position, context):
        self.index, self.awaited = position or 0, None
        return self

    def position(self):
        return self.index

    def next_batch(self):
        if self.awaited is not None:
            if self.ended() < self.awaited:
                return []
            self.awaited = None
        if self.index == len(self.elements):
            return None
        element = self.elements[self.index]
        if isinstance(element, Crash) and element.is_armed:
            element.is_armed = False
            raise RuntimeError("crash")
        if isinstance(element, Call) and element.function() is False:
            return []
        self.index += 1
        if element is CHECKPOINT:
            self.clock.now += INTERVAL
            self.awaited = self.ended() + 1
        return [element] if isinstance(element, int) else []


def events_of(elements):
    return [element for element in elements if isinstance(element, int)]


class Count(KeyedProcessFunction):
    """Emits (event, how many events its key has had)."""

    completed: ClassVar = []  # shared by the copies that workers get

    def open(self, ctx):
        self.counts = ctx.value_state("count", int, default=0)
        self.seen = ctx.map_state("seen", int, int)

    def process(self, event, ctx):
        count = self.counts.value() + 1
        self.counts.update(count)
        self.seen.put(event, count)
        yield [event, count, len(list(self.seen.keys()))]

    def on_checkpoint_complete(self, checkpoint_id):
        Count.completed.append(checkpoint_id)


def key_of(event):
    return f"key {event % 3}"


def expected(events):
    """What comes out, computed with a Counter."""
    counts, rows = Counter(), []
    for event in events:
        counts[key_of(event)] += 1
        rows.append([event, counts[key_of(event)], counts[key_of(event)]])
    return rows


class Stage:
    """A job that counts the events of a story, its output in memory and in files, and what is told of its runs."""

    def __init__(self, places, backend, *settings):
        self.places, self.backend = places, backend
        self.clock, self.sink = Clock(), CollectSink()
        self.out = places.folder / "out"
        self.config = self.configured(*settings)
        self.story = Story(self.clock, [])
        self.started = []

    def configured(self, *settings):
        overrides = [f"checkpointing.interval={INTERVAL:g}s", f"checkpointing.timeout={TIMEOUT:g}s"]
        return load_config(overrides=[*self.places.overrides(self.backend), *overrides, *settings])

    def play(self, elements, *, restore=None, run="", if_exists="replace"):
        """A run of a new job object, as a program that is started again makes it."""
        self.story = Story(self.clock, elements)
        job = Job("story")
        counted = job.source(self.story).key_by(key_of, str).process(Count())
        counted.sink(self.sink)
        counted.sink(FileSink(self.out, if_exists=if_exists))
        return run_job(job, self.config, restore=restore, run=run, emit=self.story.tell, clock=self.clock)

    def told(self, kind):
        return [message for message in self.story.messages if isinstance(message, kind)]

    def crash(self, elements, **options):
        with pytest.raises(UserCodeError, match="RuntimeError: crash"):
            self.play(elements, **options)

    def written(self):
        """Events of the visible parts, in the order of their numbers."""
        parts = sorted(self.out.glob("part-*"), key=lambda path: path.name.split("-")[3])
        return [json.loads(line) for part in parts for line in part.read_text().splitlines()]

    def hidden(self):
        return [
            path.name for path in self.out.iterdir() if path.name.startswith(".") and not path.name.startswith(".owner")
        ]

    @property
    def checkpoints(self):
        return self.places.folder / "local" / "checkpoints" / "story"

    def check(self, events):
        self.check_visible(events)
        assert self.hidden() == []

    def check_visible(self, events):
        """When the run ended between a barrier and the end of its checkpoint, hidden parts are left to the next one."""
        assert self.sink.results == expected(events)
        assert self.written() == expected(events)


class Failing:
    """Makes a method fail at some of its calls, then work again."""

    def __init__(self, monkeypatch, owner, name, calls, error=None):
        self.calls, self.count = set(calls), 0
        self.error = error or UnavailableError("storage", "here", "no answer")
        original = getattr(owner, name)

        def method(*arguments):
            self.count += 1
            if self.count in self.calls:
                raise self.error
            return original(*arguments)

        monkeypatch.setattr(owner, name, method)
