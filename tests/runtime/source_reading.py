"""Reads a source as one worker would: splits side by side or one after the other, with a position for each."""

from __future__ import annotations

import contextlib
import json

from statestore_runtime.sources import BadRecordError, SourceContext


class Reading:
    """One run of a source; `position()` is what a checkpoint would hold, and what the next run begins with."""

    def __init__(self, source, position=None, context=None):
        self._source, self._context = source, context or SourceContext()
        position = position or {"finished": [], "splits": {}}
        self._finished = list(position["finished"])
        self._positions = dict(position["splits"])
        self.readers = {}
        self.look()
        self._open_next()

    def look(self):
        """Look for new splits; returns them."""
        found = self._source.discover([*self._finished, *self._positions])
        self._positions.update(dict.fromkeys(found))
        return found

    def _open_next(self):
        waiting = [split for split in self._positions if split not in self.readers]
        begun = [split for split in waiting if self._positions[split] is not None]
        for split in sorted(waiting, key=begun.__contains__, reverse=True):
            if self.readers and not self._source.is_concurrent:
                break
            self.readers[split] = self._source.read(split, self._positions[split], self._context)

    def next_batch(self):
        """Of the first split that has events; [] when none has just now, None when all have ended."""
        while True:
            self._open_next()
            for split, reader in list(self.readers.items()):
                batch = reader.next_batch()
                if batch is None:
                    self._finish(split)
                elif batch:
                    return batch
            if not self._positions:
                return None
            if self.readers:
                return []

    def _finish(self, split):
        self.readers.pop(split).close()
        del self._positions[split]
        self._finished.append(split)

    def position(self):
        """Of all splits."""
        now = {split: reader.position() for split, reader in self.readers.items()}
        return {"finished": list(self._finished), "splits": {**self._positions, **now}}

    def close(self):
        """Close readers and source."""
        for reader in self.readers.values():
            reader.close()
        self._source.close()


def drained(reader):
    events = []
    while (batch := reader.next_batch()) is not None:
        events += batch
    return events


def read(source, position=None, context=None):
    """All events of a source; `position` is that of a `Reading`."""
    with contextlib.closing(Reading(source, position, context)) as reading:
        return drained(reading)


def stopped(source, batches, context=None):
    """The position after a number of batches, and these."""
    with contextlib.closing(Reading(source, None, context)) as reading:
        read_batches = [reading.next_batch() for _ in range(batches)]
        return reading.position(), read_batches


def check_every_cut(make, expected):
    """Stop after each number of batches of each size, go on in another object with another size, and miss or repeat nothing."""
    for first_size in (1, 2, 3, 100):
        for cut in range(len(expected) + 2):
            reading, events = Reading(make(batch_size=first_size)), []
            for _ in range(cut):
                events += reading.next_batch() or []
            position = json.loads(json.dumps(reading.position()))
            reading.close()
            for next_size in (1, 4):
                assert events + read(make(batch_size=next_size), position) == expected


def until_bad(source):
    """The events before the batch with a bad record, and the position that a checkpoint after the failure would hold."""
    events = []
    with contextlib.closing(Reading(source)) as reading:
        try:
            while (batch := reading.next_batch()) is not None:
                events += batch
        except BadRecordError:
            return events, reading.position()
    raise AssertionError("no bad record")
