"""FileSink in each format keeps what every sink with transactions does."""

from __future__ import annotations

import itertools
import logging
import os
from typing import ClassVar

import pytest

from statestore.errors import (
    FencedError,
)
from tests.runtime.sink_conformance import SinkConformance
from tests.runtime.sink_driving import (
    EventSink,
    output,
)


class FileSinkConformance(SinkConformance):
    arguments: ClassVar = {}

    @pytest.fixture(autouse=True)
    def folders(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no crash of these takes the page cache with it
        caplog.set_level(logging.ERROR)
        self.places = (tmp_path / str(number) for number in itertools.count())

    def new_place(self):
        return next(self.places)

    def make(self, place):
        return EventSink(place, if_exists="append", **self.arguments)

    def output(self, place):
        return sorted(output(place))

    def expected(self, events):
        return sorted(events)

    def hidden(self, place):
        return [path.name for path in place.iterdir() if path.name.startswith(".part-")]

    def lose(self, place, name):
        (place / name).unlink()

    @pytest.mark.parametrize("after", [1, 2, 3])
    def test_a_restore_of_an_older_checkpoint_takes_output_back(self, place, job, after):
        job.deploy(2)
        job.checkpointed(10)
        early = job.checkpoint
        zombies = job.sinks
        for _ in range(2):
            job.checkpointed(10)
        job.process(10)
        late = job.barrier()
        transactions = job.uncommitted
        job.deploy(after, early)
        assert self.output(place) == self.expected(job.events[:10])
        for zombie, (transaction,) in zip(zombies, transactions, strict=True):
            with pytest.raises(FencedError):
                zombie.commit(transaction)
        assert late["position"] == 40
        job.run_to_the_end(10)
        assert self.output(place) == self.expected(job.events)
        assert len([path for path in place.iterdir() if path.name.startswith(".undone-")]) == 4


class TestJsonLines(FileSinkConformance):
    pass


class TestSmallCompressedCsv(FileSinkConformance):
    arguments: ClassVar = {"format": "csv", "compression": "gz", "roll_size": 1}


class TestSmallParquet(FileSinkConformance):
    arguments: ClassVar = {"format": "parquet", "compression": "zst", "roll_size": 20}
