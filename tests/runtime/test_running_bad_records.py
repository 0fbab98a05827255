"""Bad records of a run: the policy, the dead letters, and what a restore makes of both."""

from __future__ import annotations

import json

import msgspec
import pytest

from statestore_runtime import (
    FileSink,
    FileSource,
    Job,
    UserCodeError,
    run_job,
)
from tests.runtime.run_stories import (
    CHECKPOINT,
    Crash,
    Story,
)

LINES = "1\nbad 1\n2\nbad 2\n3\nbad 3\n4\n"


def bad_records_job(folder, sink, *others):
    (folder / "in.jsonl").write_text(LINES)
    job = Job("story")
    job.source(FileSource(folder / "in.jsonl", batch_size=1), "in").union(*map(job.source, others)).sink(sink)
    return job


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_bad_records_survive_a_restore(memory_stage, tmp_path, policy):
    """The sources take turns: the checkpoint comes when two of the bad records have been met."""
    stage = memory_stage(f"source.on-error={policy}")
    story = Story(stage.clock, [10, 20, 30, 40, CHECKPOINT, Crash()])
    job = bad_records_job(tmp_path, stage.sink, story)
    with pytest.raises(UserCodeError, match="crash"):
        run_job(job, stage.config, emit=story.tell, clock=stage.clock)
    assert stage.sink.results == [1, 10, 20, 2, 30, 40, 3]
    finished = run_job(job, stage.config, restore="latest", emit=story.tell, clock=stage.clock)
    assert (finished.bad_records, stage.sink.results) == (3, [1, 10, 20, 2, 30, 40, 3, 4])
    folder = tmp_path / "local" / "story" / "dead-letter" / "in"
    assert folder.is_dir() == (policy == "dead-letter")
    letters = [json.loads(line) for part in sorted(folder.glob("part-*")) for line in part.read_text().splitlines()]
    expected_letters = [(2, "bad 1"), (4, "bad 2"), (6, "bad 3")] if policy == "dead-letter" else []
    assert [(letter["line"], letter["text"]) for letter in letters] == expected_letters


def test_dead_letters_are_kept_when_the_policy_changes(memory_stage, tmp_path, monkeypatch):
    """The run dies between a checkpoint and the commit of its dead letters, and goes on with another policy."""
    stage = memory_stage("source.on-error=dead-letter")
    job = bad_records_job(tmp_path, stage.sink)
    with monkeypatch.context() as patch:
        patch.setattr(FileSink, "commit", lambda sink, transaction: 1 / 0)
        with pytest.raises(UserCodeError, match="ZeroDivisionError"):
            run_job(job, stage.config, clock=stage.clock)
    skipping = msgspec.structs.replace(
        stage.config, source=msgspec.structs.replace(stage.config.source, on_error="skip")
    )
    assert run_job(job, skipping, restore="latest", clock=stage.clock).bad_records == 3
    (part,) = (tmp_path / "local" / "story" / "dead-letter" / "in").glob("part-*")
    assert part.read_text().count('"bad ') == 3


def test_dead_letters_go_where_the_configuration_says(memory_stage, tmp_path):
    stage = memory_stage("source.on-error=dead-letter", f"source.dead-letter-dir={tmp_path / 'letters'}")
    finished = run_job(bad_records_job(tmp_path, stage.sink), stage.config, clock=stage.clock)
    assert finished.outputs == [str(tmp_path / "letters" / "in")]
    assert len(list((tmp_path / "letters" / "in").glob("part-*.jsonl"))) == 1


def test_a_sources_own_policy_goes_before_the_configuration(memory_stage, tmp_path):
    stage = memory_stage("source.on-error=dead-letter")
    (tmp_path / "in.jsonl").write_text(LINES)
    job = Job("story")
    job.source(FileSource(tmp_path / "in.jsonl", on_error="skip")).sink(stage.sink)
    finished = run_job(job, stage.config, clock=stage.clock)
    assert (finished.bad_records, finished.outputs) == (3, [])
