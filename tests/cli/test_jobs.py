"""Commands that ask a running job, from other processes."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from statestore.errors import UnavailableError
from statestore_runtime.control.client import JobClient
from statestore_runtime.control.place import read_address
from tests.command import settings, statestore
from tests.running import EVENTS, PARTS, Runs, expected, lives, wait_for


@pytest.fixture
def runs(tmp_path):
    runs = Runs(tmp_path, "state.backend=memory")
    yield runs
    runs.end()


def begun(runs, *options, events=50):
    process = runs.start(*options)
    runs.limit(events)
    return process, runs.wait_for_events(events)


def socket_of(runs):
    """Where it listens: in the folder of the job or, where that has a long path, in one of the user's own."""
    address = read_address(runs.folder / "state" / "gated" / "control")
    return Path(address.socket)


def test_how_a_job_stands(runs):
    process, status = begun(runs, "--parallelism", "2")
    status = runs.wait(lambda status: status["last_checkpoint"] and status["last_checkpoint"]["checkpoint"] > 2)
    assert (status["job"], status["state"], status["pid"]) == ("gated", "running", process.pid)
    assert (status["attempt"], status["parallelism"], status["restored_checkpoint"]) == (1, 2, None)
    assert (status["restarts"], status["failures"], status["progress"]["events"]) == (0, [], PARTS * 50)
    assert status["completed_checkpoints"] == status["last_checkpoint"]["checkpoint"]
    assert [set(phases) for phases in status["last_checkpoint"]["tasks"]] == [
        {"start-delay", "alignment", "sync", "async"}
    ] * 2
    assert len(status["workers"]) == 2
    assert all(lives(pid) for pid in status["workers"])
    shown = runs.command("status").out
    assert shown.startswith("gated: running, 2 workers, 200 events, process ")
    assert f"workers           processes {status['workers'][0]}, {status['workers'][1]}\n" in shown
    assert "worker 1        start-delay" in shown
    assert runs.command("list", job=None).out.startswith("gated: running, 2 workers")
    (listed,) = runs.command("list", "--json", job=None).json
    assert (listed["pid"], listed["state"]) == (process.pid, "running")


def test_the_job_is_named_by_its_file(runs):
    begun(runs)
    for job in (str(runs.file), f"{runs.file}:job"):
        assert runs.command("status", "--json", job=job).json["job"] == "gated"
    assert runs.command("cancel", job=str(runs.file)).code == 0


def test_a_stopped_job_goes_on_where_it_was(runs):
    process, _ = begun(runs)
    stopped = runs.command("stop")
    assert (stopped.code, stopped.err) == (0, "")
    code, outcome = runs.ended(process)
    number = outcome["finished"]["last_checkpoint"]
    assert stopped.out == f"gated has stopped with checkpoint {number}; it goes on from there with --restore latest\n"
    assert (code, outcome["stopped"], outcome["finished"]["events"]) == (0, True, PARTS * 50)
    assert runs.written() == expected(50)
    runs.limit(EVENTS)
    code, outcome = runs.ended(runs.start("--restore", "latest"))
    assert (code, outcome["stopped"], outcome["finished"]["events_this_run"]) == (0, False, PARTS * (EVENTS - 50))
    assert runs.written() == expected()


def test_a_job_that_is_drained_has_finished(runs):
    process, _ = begun(runs)
    assert runs.command("stop", "--drain").out == "gated has finished\n"
    code, outcome = runs.ended(process)
    assert (code, outcome["stopped"], runs.written()) == (0, False, expected(50))
    runs.limit(EVENTS)
    assert runs.ended(runs.start())[1]["finished"]["events_this_run"] == PARTS * EVENTS


def test_stopped_with_a_savepoint(runs):
    process, _ = begun(runs)
    stopped = runs.command("stop", "--savepoint", "sp", "--json")
    assert stopped.json == {"job": "gated", "savepoint": str(runs.folder / "sp")}
    code, outcome = runs.ended(process)
    assert (code, outcome["stopped"], outcome["savepoint"]) == (0, True, str(runs.folder / "sp"))
    runs.limit(EVENTS)
    code, outcome = runs.ended(runs.start("--restore", "sp"))
    assert (code, outcome["finished"]["events_this_run"]) == (0, PARTS * (EVENTS - 50))
    assert runs.written() == expected()


def test_a_savepoint_of_a_running_job_is_of_this_moment(runs):
    runs.overrides.append("checkpointing.interval=0")
    _, status = begun(runs)
    assert status["last_checkpoint"]["checkpoint"] == 1, "the only one, before it read anything"
    made = runs.command("savepoint", "sp", "--json").json
    assert (made["job"], made["path"]) == ("gated", str(runs.folder / "sp"))
    assert made["entries"] >= 23
    assert runs.command("savepoint", "sp").code == 2, "there is one"
    assert runs.command("cancel").code == 0
    runs.limit(EVENTS)
    code, outcome = runs.ended(runs.start("--restore", "sp"))
    assert (code, outcome["finished"]["events_this_run"]) == (0, PARTS * (EVENTS - 50))


def test_a_checkpoint_that_is_asked_for(runs):
    runs.overrides.append("checkpointing.interval=0")
    begun(runs)
    made = runs.command("checkpoint trigger", "--json").json
    assert made["checkpoint"].endswith("/gated/chk-2")
    assert runs.command("checkpoint trigger", "--full").out.endswith("/gated/chk-3\n")
    assert runs.status()["completed_checkpoints"] == 3


def test_cancelled(runs):
    process, status = begun(runs)
    assert runs.command("cancel").code == 0
    code, told = runs.ended(process)
    assert (code, told["exit_code"]) == (12, 12)
    assert runs.error(process) == "statestore: cancelled before its end; go on with --restore latest\n"
    assert not any(lives(pid) for pid in status["workers"])
    for name, others in (("status", ()), ("cancel", ()), ("stop", ()), ("rescale", ("2",)), ("checkpoint trigger", ())):
        ended = runs.command(name, *others)
        assert (ended.code, len(ended.err.splitlines())) == (9, 1)
        assert "job 'gated' is not running" in ended.err
    assert runs.command("list", job=None).out == "gated: not running\n"
    runs.limit(EVENTS)
    assert runs.ended(runs.start("--restore", "latest"))[0] == 0
    assert runs.written() == expected()


def test_a_restart_and_its_cause(runs):
    process, status = begun(runs)
    os.kill(status["workers"][0], signal.SIGKILL)
    again = runs.wait(lambda status: status["restarts"] == 1 and status["state"] == "running")
    (failure,) = again["failures"]
    assert (failure["error"], failure["exit_code"]) == ("the worker process was killed by SIGKILL", 11)
    assert again["workers"] != status["workers"]
    shown = runs.command("status").out
    assert ", 1 restart, process " in shown and "s ago: the worker process was killed by SIGKILL" in shown
    logged = "statestore: WARNING: job 'gated' has failed: the worker process was killed by SIGKILL; restart 1 in "
    assert runs.error(process).startswith(logged)


def test_only_one_process_runs_a_job(runs):
    process, status = begun(runs)
    second = runs.start("--restore", "latest")
    assert runs.ended(second)[0] == 3
    assert f"job 'gated' runs already (process {process.pid} uses it): end it with" in runs.error(second)
    assert runs.status()["attempt"] == status["attempt"]


def test_who_was_killed_leaves_nothing_in_the_way(runs):
    process, _ = begun(runs)
    socket = socket_of(runs)
    process.kill()
    process.wait()
    assert socket.exists()
    assert runs.command("status").code == 9
    assert runs.command("list", job=None).out == "gated: not running\n"
    process = runs.start("--restore", "latest")
    assert runs.wait_for_events(50)["pid"] == process.pid
    assert runs.command("stop").code == 0
    assert not socket.exists()


def test_a_process_that_stands_still_is_told_from_one_that_works(runs):
    process, _ = begun(runs)
    client = JobClient(str(runs.folder / "state"), "gated", silence_seconds=2.0)
    assert client.statuses()[0].pid == process.pid
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UnavailableError, match=f"process {process.pid} said nothing for 2 s; does it stand still"):
        client.statuses()
    process.send_signal(signal.SIGCONT)
    assert client.statuses()[0].state == "running"


def test_a_path_that_is_too_long_for_a_socket(runs, tmp_path):
    runs.overrides[0] = f"state.dir={tmp_path / ('x' * 60) / ('y' * 60)}"
    with tempfile.TemporaryDirectory() as runtime:
        process = runs.start(XDG_RUNTIME_DIR=runtime)
        runs.wait_for_events(0)
        (folder,) = Path(runtime).iterdir()
        (place,) = folder.iterdir()
        assert (folder.stat().st_mode & 0o777, place.stat().st_mode & 0o777) == (0o700, 0o600)
        assert runs.command("cancel").code == 0
        assert runs.ended(process)[0] == 12
        assert list(folder.iterdir()) == []


def test_nobody_else_may_connect(runs):
    begun(runs)
    socket = socket_of(runs)
    assert (socket.parent.stat().st_mode & 0o777, socket.stat().st_mode & 0o777) == (0o700, 0o600)


def test_in_the_background(runs):
    runs.limit(50)
    options = ["--detached", "--json", *settings(runs.overrides)]
    ended = statestore("run", runs.file, *options, cwd=runs.folder)
    assert ended.code == 0, ended.err
    assert (ended.json["job"], ended.json["state"]) == ("gated", "running")
    status = runs.wait_for_events(50)
    assert status["pid"] == ended.json["pid"]
    assert runs.command("stop").code == 0
    wait_for(lambda: not lives(status["pid"]))
    assert "gated stopped: 200 events" in (runs.folder / "state" / "gated" / "run.log").read_text()
    assert runs.written() == expected(50)
    again = statestore("run", runs.file, *options, cwd=runs.folder)
    assert (again.code, "job 'gated' did not finish" in again.err) == (2, True)
    assert len(again.err.splitlines()) == 1
    runs.limit(EVENTS)
    shown = statestore(
        "run", runs.file, "--detached", "--restore", "latest", *settings(runs.overrides), cwd=runs.folder
    )
    assert (shown.code, "log in " in shown.out) == (0, True)
    wait_for(lambda: runs.written() == expected())


def test_each_in_the_background_has_a_log_of_its_own(runs):
    runs.overrides.append("high-availability.renew-interval=200ms")

    def start():
        return statestore("run", runs.file, "--ha", "--detached", "--json", *settings(runs.overrides), cwd=runs.folder)

    one, other = start().json, start().json
    try:
        folder = runs.folder / "state" / "gated"
        assert [one["log"], other["log"]] == [str(folder / name) for name in ("run.log", "run-2.log")]
        wait_for(lambda: "gated: leading" in (folder / "run.log").read_text())
        wait_for(lambda: f"standing by, process {one['pid']} on " in (folder / "run-2.log").read_text())
        assert runs.command("cancel").code == 0
        wait_for(lambda: not lives(one["pid"]) and not lives(other["pid"]))
        assert "standing by" not in (folder / "run.log").read_text()
        assert f"was cancelled at process {one['pid']} on " in (folder / "run-2.log").read_text()
    finally:
        for pid in (one["pid"], other["pid"]):
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


def test_no_such_job(tmp_path):
    for job, code in (("nobody", 9), ("no.py", 2), ("a b", 2)):
        ended = statestore("status", job, cwd=tmp_path)
        assert (ended.code, len(ended.err.splitlines())) == (code, 1)
    assert statestore("list", cwd=tmp_path).out == "no jobs in .statestore\n"


def test_a_bad_parallelism_is_refused(runs):
    begun(runs)
    ended = runs.command("rescale", "0")
    assert (ended.code, ended.err) == (2, "statestore: parallelism is 0, it must be from 1 to 128\n")
    assert runs.status()["parallelism"] == 1
