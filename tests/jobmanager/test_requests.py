"""What a JobManager is asked for: each request is answered once, whatever becomes of the job."""

from __future__ import annotations

import pytest

from statestore.errors import CorruptionError, UsageError
from statestore_runtime.jobmanager.events import Cancel, Copied, RequestRefusedError, Rescale, Stop, TakeCheckpoint
from statestore_runtime.jobmanager.state import JobState
from statestore_runtime.protocol import Begin, Drain, Failed, InputEnded
from tests.jobmanager.driving import Driven

FATAL = Failed(error="damaged", exit_code=CorruptionError.exit_code)


@pytest.fixture
def running():
    return Driven().runs()


def restarted(job, restored=1):
    """It has lost a worker, and has opened its state again."""
    job.lose(0)
    job.passes(5.0)
    job.claimed()
    job.opened(restored)
    return job


def test_a_checkpoint_waits_for_the_pause_and_answers_with_its_path(running):
    running.ask(TakeCheckpoint)
    running.passes(1.9)
    assert len(running.triggers) == 1
    running.passes(0.1)
    running.complete()
    assert running.answers == ["chk-2"]


def test_it_looks_again_when_the_pause_before_a_checkpoint_is_over(running):
    running.ask(TakeCheckpoint)
    assert running.passes(1.9) == pytest.approx(0.1)


def test_a_checkpoint_that_fails_answers_with_the_reason(running):
    running.ask(TakeCheckpoint)
    running.passes(2.0)
    running.decline()
    (error,) = running.answers
    assert "disk full" in str(error)


@pytest.mark.parametrize("is_final", [False, True])
def test_a_new_base_is_made_when_somebody_asks_for_it(running, is_final):
    running.ask(TakeCheckpoint, base=True)
    if is_final:
        running.say_all(InputEnded())
    running.passes(2.0)
    assert running.triggers[-1].base and running.triggers[-1].final is is_final
    running.complete()
    if not is_final:
        running.passes(10.0)
        assert not running.triggers[-1].base


def test_a_savepoint_is_copied_from_its_checkpoint(running):
    running.ask(TakeCheckpoint, savepoint_dir="file:///savepoints")
    running.passes(2.0)
    running.complete()
    (copy,) = running.deployment.copies
    assert copy.dir == "file:///savepoints" and copy.manifest.checkpoint_id == 2 and not running.answers
    running.manager.handle(Copied("file:///savepoints/1", copy.reply))
    assert running.answers == ["file:///savepoints/1"]


def test_a_savepoint_while_it_goes_on_is_not_the_one_that_it_stops_with(running):
    running.ask(TakeCheckpoint, savepoint_dir="file:///savepoints")
    running.passes(2.0)
    running.complete()
    running.manager.handle(Copied("file:///savepoints/1", running.deployment.copies[0].reply))
    running.ask(Stop)
    running.passes(2.0)
    running.complete()
    running.done()
    assert running.state is JobState.FINISHED and running.manager.savepoint is None


def test_a_checkpoint_that_was_pending_when_the_job_failed_is_refused(running):
    running.ask(TakeCheckpoint)
    running.passes(2.0)
    running.lose(0)
    (refused,) = running.answers
    assert isinstance(refused, RequestRefusedError)


def test_one_that_was_not_begun_is_made_after_the_restart(running):
    running.ask(TakeCheckpoint)
    restarted(running)
    running.passes(0.0)
    running.complete()
    assert running.answers == ["chk-2"]


def test_who_asks_while_the_final_checkpoint_is_pending_is_answered_at_the_end(running):
    running.say_all(InputEnded())
    running.passes(2.0)
    running.ask(TakeCheckpoint)
    running.complete()
    running.done()
    (refused,) = running.answers
    assert isinstance(refused, RequestRefusedError) and "is finished" in str(refused)


@pytest.mark.parametrize("request_", [TakeCheckpoint, Stop])
def test_who_asks_before_it_runs_is_refused(request_):
    job = Driven()
    job.ask(request_)
    (refused,) = job.answers
    assert isinstance(refused, RequestRefusedError) and "is restoring" in str(refused)


# Stopping


def test_stopping_reads_nothing_behind_the_last_checkpoint(running):
    running.ask(Stop)
    running.passes(2.0)
    assert running.triggers[-1].stop and not running.triggers[-1].final
    running.complete()
    assert not running.answers
    running.done()
    assert running.answers == [2] and running.state is JobState.FINISHED


def test_a_checkpoint_that_was_begun_before_is_not_the_last(running):
    running.passes(10.0)
    running.ask(Stop)
    running.complete()
    running.passes(2.0)
    assert running.triggers[-1].stop and len(running.triggers) == 3


def test_a_job_that_fails_while_it_stops_reads_no_more_after_the_restart(running):
    running.ask(Stop)
    running.passes(2.0)
    running.deployment.sent.clear()
    restarted(running)
    running.passes(0.0)
    assert running.triggers[-1].stop and not running.sent(Begin)
    running.complete()
    running.done()
    assert running.answers == [2] and running.state is JobState.FINISHED


def test_a_job_that_fails_while_it_drains_drains_before_it_reads(running):
    running.ask(Stop, drain=True)
    assert running.sent(Drain)
    running.deployment.sent.clear()
    restarted(running)
    kinds = [type(command) for worker, command in running.deployment.sent if worker == 0]
    assert kinds == [Drain, Begin]
    running.ends()
    assert running.answers == [2] and running.state is JobState.FINISHED


def stopped_with_savepoint(running):
    running.ask(Stop, savepoint_dir="file:///savepoints")
    running.passes(2.0)
    running.complete()
    (copy,) = running.deployment.copies
    return copy


@pytest.mark.parametrize("what", ["ends", "fails", "is cancelled", "restarts"])
def test_a_savepoint_answers_once_whatever_the_job_does_meanwhile(running, what):
    copy = stopped_with_savepoint(running)
    match what:
        case "ends":
            running.done()
        case "fails":
            running.say(0, FATAL)
        case "is cancelled":
            running.manager.handle(Cancel(lambda outcome: None))
        case "restarts":
            restarted(running, 2)
            running.passes(0.0)
            running.complete()
            running.done()
    assert running.answers == [] and len(running.deployment.copies) == 1
    running.manager.handle(Copied("file:///savepoints/1", copy.reply))
    assert running.answers == [running.manager.savepoint] == ["file:///savepoints/1"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(UsageError("there is one already"), 2, "there is one already"), (OSError("disk full"), 3, "OSError: disk full")],
)
def test_a_savepoint_that_fails_tells_that_the_job_has_stopped_all_the_same(running, error, code, text):
    copy = stopped_with_savepoint(running)
    running.done()
    running.manager.handle(Copied(None, copy.reply, error))
    (told,) = running.answers
    assert str(told).startswith("job 'job' stops with checkpoint 2, which could not be copied: ") and text in str(told)
    assert told.exit_code == code and running.manager.savepoint is None


def test_what_is_saved_before_a_failure_is_not_the_savepoint_of_a_stop(running):
    running.ask(Stop, savepoint_dir="file:///savepoints", drain=True)
    running.say(0, Failed(error="a function failed", exit_code=10, is_users=True, is_reproduced=True, can_save=True))
    running.passes(2.0)
    running.complete()
    running.done()
    (refused,) = running.answers
    assert "has failed: a function failed" in str(refused) and not running.deployment.copies


@pytest.mark.parametrize(
    ("asked", "end"),
    [
        (lambda job: job.ask(Stop), lambda job: job.say(0, FATAL)),
        (lambda job: job.ask(Stop, savepoint_dir="x"), lambda job: job.manager.handle(Cancel(lambda outcome: None))),
        (lambda job: job.ask(Rescale, 3), lambda job: job.say(0, FATAL)),
        (lambda job: job.ask(TakeCheckpoint), lambda job: job.manager.handle(Cancel(lambda outcome: None))),
    ],
    ids=["stop", "savepoint", "rescale", "checkpoint"],
)
def test_a_job_that_ends_otherwise_refuses_who_waits(running, asked, end):
    asked(running)
    end(running)
    (refused,) = running.answers
    assert isinstance(refused, RequestRefusedError)


def test_who_asks_a_job_that_is_stopping_is_refused(running):
    running.manager.handle(Stop(lambda outcome: None))
    for request in (TakeCheckpoint, Stop):
        running.ask(request)
    running.ask(Rescale, 3)
    assert ["is stopping" in str(answer) for answer in running.answers] == [True] * 3


# Rescaling


def test_rescaling_goes_on_with_another_number_of_workers(running):
    running.ask(Rescale, 3)
    running.passes(2.0)
    assert running.triggers[-1].stop
    running.complete()
    running.done()
    assert running.state is JobState.RESTORING
    running.claimed()
    assert running.deployment.started[-1].parallelism == 3
    running.opened(2)
    assert running.answers == [3] and running.state is JobState.RUNNING and running.manager.failures.restarts == 0


def test_a_rescaled_job_that_is_cancelled_has_not_finished(running):
    running.ask(Rescale, 3)
    running.passes(2.0)
    running.complete()
    running.done()
    running.manager.handle(Cancel(lambda outcome: None))
    assert running.state is JobState.CANCELLED and running.manager.finished is None


@pytest.mark.parametrize("is_complete", [False, True])
def test_a_job_that_fails_while_it_rescales_restarts_with_the_new_number(running, is_complete):
    running.ask(Rescale, 3)
    running.passes(2.0)
    if is_complete:
        running.complete()
    running.lose(0)
    running.passes(5.0)
    running.claimed()
    assert running.deployment.started[-1].parallelism == 3
    running.opened(2 if is_complete else 1)
    assert running.answers == [3] and running.manager.parallelism == 3


@pytest.mark.parametrize("parallelism", [0, 129])
def test_a_number_of_workers_that_there_can_not_be_is_refused(running, parallelism):
    running.ask(Rescale, parallelism)
    (refused,) = running.answers
    assert "it must be from 1 to 128" in str(refused)
