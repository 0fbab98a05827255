"""The JobManager's life: deployments, failures, restarts, the end."""

from __future__ import annotations

import pytest

from statestore.errors import CorruptionError, FencedError, UnavailableError
from statestore_runtime.jobmanager.events import Cancel, Claimed, RequestRefusedError, TakeCheckpoint
from statestore_runtime.jobmanager.state import JobState
from statestore_runtime.messages import Finished, Restarting, Restoring, Started
from statestore_runtime.protocol import (
    Assign,
    Begin,
    Discovered,
    Done,
    Drain,
    Failed,
    Heartbeat,
    InputEnded,
    NoMoreSplits,
    Recovering,
    Relax,
)
from tests.jobmanager.driving import FINISHED, Driven

RECOVERING = Recovering(
    restoring=Restoring(job="job", bytes_done=0, bytes_total=1, entries=0, seconds=0.0, eta_seconds=None)
)
POISONED = Failed(error="a function failed", exit_code=1, is_users=True)
REPRODUCED = Failed(error="a function failed", exit_code=1, is_users=True, is_reproduced=True, can_save=True)


@pytest.fixture
def running():
    return Driven().runs()


def failed_once(running):
    """It has failed, and the deployment after it has got its attempt."""
    running.lose(1)
    running.passes(5.0)
    running.claimed()
    return running


def test_from_the_first_claim_to_the_end(running):
    assert running.deployment.claims == [(1, 0)]
    (deploy,) = running.deployment.started
    assert (deploy.attempt, deploy.parallelism, deploy.restore, deploy.run, deploy.careful) == (
        1,
        2,
        None,
        "run",
        False,
    )
    assert running.state is JobState.RUNNING
    running.ends()
    assert running.state is JobState.FINISHED
    assert [trigger.final for trigger in running.triggers] == [False, True]
    assert [type(message) for message in running.told if isinstance(message, Started | Finished)] == [Started, Finished]
    assert running.manager.finished.events == 10


def test_nothing_is_read_before_there_is_a_checkpoint_to_come_back_to():
    job = Driven()
    job.claimed()
    job.opened()
    job.manager.tick()
    job.acknowledge()
    assert not job.sent(Begin)
    job.commit()
    assert len(job.sent(Begin, 0)) == len(job.sent(Begin, 1)) == 1


def test_what_is_restored_and_not_the_newest_needs_a_checkpoint_first():
    job = Driven(restore="file:///savepoint")
    job.claimed()
    job.opened(3, is_newest=False)
    job.manager.tick()
    assert job.triggers and not job.sent(Begin)


def test_what_is_restored_and_the_newest_needs_none():
    job = Driven(restore="latest")
    job.claimed()
    job.opened(3)
    assert job.sent(Begin) and not job.triggers


def test_splits_go_to_the_workers_that_have_fewest():
    job = Driven(restore="latest")
    job.claimed()
    job.opened(3, splits=["a", "b", "c"])  # 0 has two of them
    job.say(0, Discovered(source="source", splits=["c", "d"], is_final=True))
    assert job.sent(Assign, 1) == [Assign(source="source", splits=["d"])]
    assert job.sent(Assign, 0) == [Assign(source="source", splits=[])], "it knows now that it has no more"
    assert len(job.sent(NoMoreSplits, 0)) == len(job.sent(NoMoreSplits, 1)) == 1


# Failures


def test_a_lost_worker_restarts_the_job_after_the_delay(running, caplog):
    running.lose(1)
    assert running.state is JobState.RESTARTING
    assert running.deployment.ends == 1
    assert isinstance(running.told[-1], Restarting) and running.told[-1].delay_seconds == 5.0
    assert caplog.messages[-1] == "job 'job' has failed: worker process 1 was killed; restart 1 in 5.0 s"
    assert running.passes(4.0) == pytest.approx(1.0)
    running.passes(1.0)
    assert running.state is JobState.RESTORING and running.deployment.claims[-1] == (2, 0)


def test_of_two_workers_that_lose_each_other_one_failure_counts(running):
    lost_peer = Failed(error="another worker hung up", exit_code=3, is_lost_peer=True)
    running.say(0, lost_peer)
    running.say(1, lost_peer)
    running.lose(0)
    running.lose(1)
    assert running.manager.failures.restarts == 1 and len(running.manager.failures.last) == 1


def test_a_claim_that_is_answered_when_it_was_given_up_starts_nothing(running):
    running.lose(0)
    running.passes(5.0)
    running.passes(100.0)  # the claim of deployment 2 hangs
    assert running.state is JobState.RESTARTING
    running.manager.handle(Claimed(2, 7))
    assert len(running.deployment.started) == 1
    assert running.state is JobState.RESTARTING


def test_a_claim_that_was_given_up_and_shuts_the_next_attempt_out_is_outbid(running):
    failed_once(running)
    running.opened(1)
    running.manager.handle(Claimed(1, 7))  # of deployment 1: its storage has taken all that time
    assert running.state is JobState.RESTORING and running.deployment.claims[-1] == (3, 7)
    assert running.deployment.ends == 2 and running.manager.failures.restarts == 1
    running.manager.handle(Claimed(2, 6))
    assert running.deployment.claims[-1] == (3, 7), "an older one is of no interest"


def test_what_fails_before_it_has_ever_run_ends_the_job():
    job = Driven()
    job.manager.handle(Claimed(1, None, UnavailableError("storage", "s3://bucket", "no answer")))
    assert job.state is JobState.FAILED


def test_unless_it_has_run_under_another_job_manager():
    job = Driven(resumed=True, restore="latest")
    job.manager.handle(Claimed(1, None, UnavailableError("storage", "s3://bucket", "no answer")))
    assert job.state is JobState.RESTARTING


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (Failed(error="disk full", exit_code=UnavailableError.exit_code), JobState.RESTARTING),
        (Failed(error="internal error: KeyError", exit_code=1, is_known=False), JobState.RESTARTING),
        (POISONED, JobState.RESTARTING),
        (Failed(error="damaged", exit_code=CorruptionError.exit_code), JobState.FAILED),
        (Failed(error="fenced", exit_code=FencedError.exit_code), JobState.FAILED),
    ],
)
def test_only_what_may_pass_is_tried_again(running, failure, state):
    running.say(0, failure)
    assert running.state is state


@pytest.mark.parametrize(("code", "state"), [(1, JobState.RESTARTING), (4, JobState.FAILED)])
def test_an_internal_error_that_fails_a_checkpoint_may_pass_too(code, state):
    job = Driven(tolerable_failed=0).runs()
    job.passes(10.0)
    job.decline(exit_code=code)
    assert job.state is state


def test_an_owner_that_nobody_knows_is_outbid_at_once(running):
    running.say(1, Failed(error="fenced", exit_code=6, claim_above=41))
    assert running.deployment.claims[-1] == (2, 41) and running.deployment.ends == 1
    assert not running.manager.failures.last


def test_the_strategy_gives_up():
    job = Driven(restarts=0).runs()
    job.lose(0)
    assert job.state is JobState.FAILED and "worker process 0 was killed" in job.manager.failures.last[-1].error


def test_workers_that_restored_different_checkpoints_start_again(running):
    failed_once(running)
    running.deployment.sent.clear()
    running.opened(1, workers=[0])
    running.opened(2, workers=[1])
    assert running.state is JobState.RESTARTING and not running.sent(Begin)


# Time


def test_a_silent_worker_is_dead(running):
    running.clock.advance(49.0)
    running.say(0, Heartbeat())
    running.manager.tick()
    assert running.state is JobState.RUNNING
    running.clock.advance(1.0)
    running.manager.tick()
    assert running.state is JobState.RESTARTING
    assert running.manager.failures.last[-1].error == "worker process 1 stayed silent for 50 s and was killed"


def test_state_must_open_within_its_time_or_tell_of_progress():
    job = Driven(resumed=True)
    job.claimed()
    job.passes(99.0)
    job.say(0, RECOVERING)
    job.passes(99.0)
    assert job.state is JobState.RESTORING
    job.passes(1.0)
    assert "job.restore-timeout" in job.manager.failures.last[-1].error


def test_progress_of_a_lazy_restore_sets_no_deadline():
    job = Driven()
    job.claimed()
    job.opened()
    job.say(0, RECOVERING)
    job.manager.tick()
    job.complete()
    for _ in range(6):
        job.passes(20.0)
        if len(job.triggers) > len(job.deployment.commits):
            job.complete()
    assert job.state is JobState.RUNNING and not job.manager.failures.last


def test_it_waits_while_a_checkpoint_that_it_insists_on_is_pending_or_has_failed():
    job = Driven(min_pause=0.0)
    job.claimed()
    job.opened()
    assert job.manager.tick() > 0.2
    job.decline()
    assert job.manager.tick() == pytest.approx(1.0)
    job.passes(1.0)
    assert len(job.triggers) == 2


def test_workers_that_are_done_are_not_expected_to_be_heard(running):
    running.say_all(InputEnded())
    running.passes(2.0)
    running.complete()
    running.say(0, Done(finished=FINISHED))
    for _ in range(3):
        running.clock.advance(40.0)
        running.say(1, Heartbeat())
        assert running.manager.tick() > 0
    assert running.state is JobState.RUNNING
    running.clock.advance(50.0)
    running.manager.tick()
    assert running.manager.failures.last[-1].error.startswith("worker process 1 stayed silent")


def test_a_job_that_does_not_stop_in_time_restarts(running):
    running.say_all(InputEnded())
    running.passes(2.0)
    running.complete()
    for _ in range(5):
        running.passes(40.0)
    assert "job.stop-timeout" in running.manager.failures.last[-1].error


# What functions fail on


def careful(running):
    running.say(0, POISONED)
    running.passes(5.0)
    running.claimed()
    running.opened(1)
    return running


def test_after_a_function_has_failed_the_workers_are_careful_until_they_are_past_it(running):
    careful(running)
    assert running.deployment.started[-1].careful
    running.passes(10.0)
    running.complete()
    assert running.sent(Relax)


def test_what_was_before_the_failure_is_saved_and_the_job_ends(running):
    careful(running)
    running.say(1, REPRODUCED)
    assert running.state is JobState.FAILING
    running.manager.tick()
    assert running.triggers[-1].stop
    running.complete()
    assert running.state is JobState.FAILING and running.deployment.ends == 1, "its output is not visible yet"
    running.done()
    assert running.state is JobState.FAILED and running.manager.failures.last[-1] == REPRODUCED


@pytest.mark.parametrize("how", ["declined", "too long", "lost", "not visible"])
def test_it_ends_for_the_functions_failure_also_when_nothing_can_be_saved(how):
    running = careful(Driven(tolerable_failed=0).runs())
    running.say(1, REPRODUCED)
    running.manager.tick()
    match how:
        case "declined":
            running.decline()
        case "too long":
            running.passes(30.0)
        case "lost":
            running.lose(0)
        case "not visible":
            running.complete()
            for _ in range(5):
                running.passes(40.0)
    assert running.state is JobState.FAILED and running.manager.failures.last[-1] == REPRODUCED


def test_nothing_is_saved_where_that_is_not_wanted():
    running = careful(Driven(on_failure=False).runs())
    running.say(1, REPRODUCED)
    assert running.state is JobState.FAILED


# The end


def test_after_the_final_checkpoint_there_is_no_other_one(running):
    running.say_all(InputEnded())
    running.passes(2.0)
    running.complete()
    running.ask(TakeCheckpoint)
    (refused,) = running.answers
    assert isinstance(refused, RequestRefusedError) and "is finishing" in str(refused)
    running.passes(20.0)
    assert running.triggers[-1].final
    running.done()
    assert running.state is JobState.FINISHED


def test_a_failure_after_the_final_checkpoint_is_made_good(running):
    running.say_all(InputEnded())
    running.passes(2.0)
    running.complete()
    running.lose(1)
    running.passes(5.0)
    running.claimed()
    running.opened(2)
    running.ends()
    assert running.state is JobState.FINISHED
    assert not running.sent(Drain)


def test_the_final_checkpoint_is_tried_again(running):
    running.say_all(InputEnded())
    running.passes(2.0)
    running.decline()
    running.passes(2.0)
    assert running.triggers[-1].final and len(running.triggers) == 3
    running.complete()
    running.done()
    assert running.state is JobState.FINISHED


def test_who_is_cancelled_ends_at_once_wherever_it_stands(running):
    running.ask(Cancel)
    assert running.state is JobState.CANCELLED and running.deployment.ends == 1
    running.ask(Cancel)
    assert running.answers[0] is None
    assert isinstance(running.answers[1], RequestRefusedError)
