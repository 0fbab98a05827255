"""Python's cycle collector while a job runs."""

from __future__ import annotations

import gc

import pytest

from statestore.config import load_config
from statestore_runtime import CollectionSource, CollectSink, Job, UserCodeError
from statestore_runtime.garbage import THRESHOLDS


@pytest.fixture
def set_threshold():
    before = gc.get_threshold()
    yield gc.set_threshold
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("chosen", "within"), [((700, 10, 10), THRESHOLDS), ((90_000, 5, 5), None), ((0, 10, 10), None)]
)
@pytest.mark.parametrize("fails", [False, True])
def test_thresholds_of_a_run(set_threshold, tmp_path, chosen, within, fails):
    def look(event):
        seen.append(gc.get_threshold())
        return 1 / 0 if fails else event

    seen, job = [], Job("job")
    job.source(CollectionSource([1])).map(look).sink(CollectSink())
    set_threshold(*chosen)
    try:
        job.run(load_config(overrides=["state.backend=memory", f"state.dir={tmp_path}"]))
    except UserCodeError:
        assert fails
    assert seen == [within or chosen]
    assert gc.get_threshold() == chosen
