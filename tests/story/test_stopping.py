"""Jobs that are stopped, drained, copied, changed, and go on."""

from __future__ import annotations

import json

import pytest

from statestore.errors import IncompatibleStateError
from statestore_runtime import FileSink, Job, KeyedProcessFunction, Tumbling, WatermarkStrategy
from statestore_runtime.jobmanager.events import RequestRefusedError, Stop, TakeCheckpoint
from statestore_runtime.testing import ADVANCE, CALL, CHECKPOINT, CRASH, EOF, RESCALE, JobHarness
from tests.conftest import BACKENDS
from tests.story import jobs
from tests.story.jobs import check_two_stages, counted


def request(harness, event):
    """A place in a script where somebody asks the running job for something."""
    return CALL(lambda: harness.request(event) or None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parallelism", [1, 2])
def test_stopped_with_a_savepoint_and_gone_on_from_it(tmp_path, redis_url, backend, parallelism):
    """Elsewhere, with other backend and parallelism; what came after the stop was not read before."""
    answers = []
    harness = jobs.harness(jobs.two_stages, redis_url, backend, parallelism, splits=2)
    stop = request(harness, Stop(answers.append, savepoint_dir=str(tmp_path / "savepoint")))
    script = [*range(10), CHECKPOINT, *range(10, 15), stop, *range(15, 30)]
    before = harness.run(script)
    assert answers == [str(tmp_path / "savepoint")]
    assert harness.finished.events < 30
    other = jobs.harness(jobs.two_stages, parallelism=3 - parallelism, splits=2)
    script[script.index(stop)] = CALL(lambda: None)
    after = other.run(script, restore=answers[0])
    assert before
    assert after
    check_two_stages([*before, *after], range(30), in_order=False)


@pytest.mark.parametrize("parallelism", [1, 2])
def test_drained(parallelism):
    """As if the sources had ended: windows and timers fire, and the output is there."""
    answers = []

    def build(source, sink):
        job = Job("story")
        events = job.source(source, watermarks=WatermarkStrategy.monotonous(lambda event: event * 1000))
        events.key_by(lambda event: event % 2, int).window(Tumbling("100s")).count().map(tuple_of).sink(sink)
        return job

    harness = jobs.harness(build, parallelism=parallelism)
    found = harness.run([*range(6), request(harness, Stop(answers.append, drain=True)), CALL(lambda: bool(answers)), 7])
    assert sorted(found) == [(0, 3), (1, 3)]
    assert answers == [harness.finished.last_checkpoint]


def tuple_of(result):
    return result.key, result.value


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_savepoint_of_a_job_that_goes_on(tmp_path, parallelism):
    answers = []
    harness = jobs.harness(jobs.two_stages, parallelism=parallelism)
    save = request(harness, TakeCheckpoint(answers.append, savepoint_dir=str(tmp_path / "savepoint")))
    script = [*range(10), save, CALL(lambda: bool(answers)), *range(10, 20), CRASH, 20]
    check_two_stages(harness.run(script), range(21))
    other = jobs.harness(jobs.two_stages, parallelism=2)
    script[script.index(save)] = CALL(lambda: None)
    rows = [row for row in other.run(script, restore=answers[0]) if isinstance(row[0], str)]
    assert sorted(rows) == sorted(row for row in counted(range(21)) if row[1] >= 10)


def test_requests_that_come_at_the_wrong_time(tmp_path):
    answers = []
    harness = jobs.harness(jobs.two_stages)
    stop = Stop(lambda outcome: None, savepoint_dir=str(tmp_path / "one"))

    def both():
        harness.request(stop)
        harness.request(TakeCheckpoint(answers.append))
        harness.request(Stop(answers.append))

    harness.run([1, CALL(both), 2])
    assert [type(answer) for answer in answers] == [RequestRefusedError] * 2


@pytest.mark.parametrize("parallelism", [1, 2])
def test_the_final_transactions_are_there(tmp_path, parallelism):
    """In files as in memory; also of the runs before, and of those that were stopped in order to rescale."""

    def build(source, sink):
        job = Job("story")
        rows = job.source(source).key_by(jobs.user_of, str).process(jobs.Count())
        rows.sink(sink)
        rows.sink(FileSink(tmp_path / "out"))
        return job

    script = [1, 2, 3, EOF, 4, CRASH, 5, RESCALE(3), 6, 8, EOF, CRASH, 9]
    found = jobs.harness(build, parallelism=parallelism, dir=tmp_path / "state").run(script)
    parts = (tmp_path / "out").glob("part-*")
    written = [tuple(json.loads(line)) for part in parts for line in part.read_text().splitlines()]
    assert sorted(found) == sorted(written) == sorted(counted([1, 2, 3, 4, 5, 6, 8, 9]))


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_job_whose_graph_changed_says_what_no_longer_maps(tmp_path, parallelism):
    opened = []

    class Noting(KeyedProcessFunction):
        def process(self, event, ctx):
            opened.append(event)
            yield event

    def changed(source, sink):
        job = Job("story")
        job.source(source).key_by(jobs.user_of, str).process(Noting(), uid="noting").sink(sink)
        return job

    jobs.harness(jobs.two_stages, parallelism=parallelism, dir=tmp_path).run([1, 2])
    harness = jobs.harness(changed, parallelism=parallelism, dir=tmp_path)
    with pytest.raises(IncompatibleStateError, match=r"knows a operator 'process-1'.*the job's operators are noting"):
        harness.run([1, 2, 3], restore="latest")
    assert (opened, harness.restarts) == ([], 0)
    assert harness.run([1, 2, 3], restore="none") == [1, 2, 3]


@pytest.mark.parametrize("parallelism", [1, 2])
def test_rate_limit(parallelism):
    """Time passes only while nothing else can happen, so it tells how long the source had to wait."""

    def build(source, sink):
        job = Job("story")
        job.source(source, rate_limit=10).key_by(jobs.user_of, str).process(jobs.Count()).sink(sink)
        return job

    harness = JobHarness(build, parallelism=parallelism, splits=parallelism)
    found = harness.run([*range(15), CRASH, *range(15, 31), ADVANCE("1s")])
    assert sorted(found) == sorted(counted(range(31))) if parallelism == 1 else len(found) == 31
    replayed = 15
    assert (30 + replayed) / 10 - 0.5 <= harness.clock.monotonic() - 1 <= (31 + replayed) / 10 + 1
