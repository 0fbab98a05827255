"""Bad records that are read again on the way to the place where a checkpoint stands, in the middle of a batch."""

from __future__ import annotations

import pytest

from statestore.config import load_config
from statestore_runtime import CollectSink, FileSource, Job, UserCodeError, run_job


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_they_count_once(tmp_path, policy):
    (tmp_path / "in.jsonl").write_text("1\nbad\n2\n3\nworse\n4\n")
    config = load_config(
        overrides=[f"state.dir={tmp_path / 'state'}", "state.backend=memory", f"source.on-error={policy}"]
    )
    sink = CollectSink()

    def job(function):
        made = Job("job")
        made.source(FileSource(tmp_path / "in.jsonl")).map(function).sink(sink)
        return made

    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        run_job(job(lambda n: n // (n - 3)), config, restarts=True)
    assert sink.results == [-1, -2], "all before 3, which a checkpoint stands before"
    finished = run_job(job(lambda n: n), config, restore="latest")
    assert (sink.results, finished.bad_records) == ([-1, -2, 3, 4], 2)
    letters = [line for part in tmp_path.rglob("dead-letter/**/part-*") for line in part.read_text().splitlines()]
    assert len(letters) == (2 if policy == "dead-letter" else 0)
