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
@pytest.mark.parametrize("is_enabled", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_thresholds_of_a_run(set_threshold, tmp_path, chosen, within, fails, is_enabled):
    def look(event):
        seen.append((gc.get_threshold(), gc.isenabled()))
        return 1 / 0 if fails else event

    seen, job = [], Job("job")
    job.source(CollectionSource([1])).map(look).sink(CollectSink())
    set_threshold(*chosen)
    if not is_enabled:
        gc.disable()
    try:
        job.run(load_config(overrides=["state.backend=memory", f"state.dir={tmp_path}"]))
    except UserCodeError:
        assert fails
    finally:
        enabled_after = gc.isenabled()
        gc.enable()
    assert seen == [(within or chosen, is_enabled)]
    assert (gc.get_threshold(), enabled_after) == (chosen, is_enabled)
