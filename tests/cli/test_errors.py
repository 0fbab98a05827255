"""Bad input gets one clear line and its exit code; nothing is lost."""

from __future__ import annotations

import shutil
import time

import pytest

from statestore.testing import redis_server
from tests.command import ROOT, settings, statestore

FLIGHTS = ROOT / "examples" / "flights.py"

JOB = """
from statestore_runtime import FileSink, FileSource, Job
job = Job("numbers")
job.source(FileSource("numbers.jsonl")).key_by(lambda n: n % 2, int).reduce(lambda a, b: a + b, int).sink(FileSink("out"))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "numbers.jsonl").write_text("".join(f"{n}\n" for n in range(10)))
    return tmp_path


def check(ended, code, *parts):
    """One line on standard error that says all that."""
    assert ended.code == code, ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("statestore: ")]
    assert len(lines) == 1, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["-D", "state.backend=rocksbd"], ["rocksbd", "did you mean 'rocksdb'?"]),
        (["-D", "checkpointing.intervall=5s"], ["checkpointing.intervall", "-D", "did you mean 'checkpointing.interval'?"]),
        (["-D", "checkpointing.interval=soon"], ["checkpointing.interval", "-D", "soon"]),
        (["-D", "checkpointing.num-retained=0"], ["checkpointing.num-retained", "0", "less than 1"]),
        (["-D", "state.cache-size=big"], ["state.cache-size", "big"]),
        (["-D", "state.redis.ur=x", "-D", "state.backend=redis"], ["state.redis.ur", "did you mean 'url'?"]),
        (["-D", "nonsense"], ["nonsense", "key=value"]),
        (["-c", "nowhere.toml"], ["nowhere.toml", "no such file"]),
        (["--restore", "checkpoint"], ["checkpoint", "chk-<number>"]),
        (["--nonsense"], ["--nonsense", "--help"]),
    ],
)  # fmt: skip
def test_wrong_settings(folder, options, parts):
    check(statestore("run", "job.py:job", *options, cwd=folder), 2, *parts)


def test_wrong_settings_in_file_and_environment(folder):
    (folder / "statestore.toml").write_text("[checkpointing]\nintervall = '5s'\n")
    check(statestore("run", "job.py", cwd=folder), 2, "checkpointing.intervall", "statestore.toml")
    (folder / "statestore.toml").write_text("[checkpointing\n")
    check(statestore("run", "job.py", cwd=folder), 2, "statestore.toml", "line 1")
    (folder / "statestore.toml").unlink()
    variable = "STATESTORE__STATE__CACHE_SIZ"
    check(statestore("run", "job.py", cwd=folder, **{variable: "1mb"}), 2, "state.cache-siz", variable)


def test_wrong_job_files(folder):
    check(statestore("run", "jobb.py:job", cwd=folder), 2, "jobb.py", "no job file")
    check(statestore("run", "job.py:jab", cwd=folder), 2, "jab", "did you mean 'job'?")
    (folder / "empty.py").write_text("")
    check(statestore("run", "empty.py", cwd=folder), 2, "empty.py", "no job")
    (folder / "raises.py").write_text("x = 1\n1 / 0\n")
    check(statestore("run", "raises.py", cwd=folder), 10, "raises.py, line 2", "ZeroDivisionError")
    (folder / "syntax.py").write_text("x = 1\ny = = 2\n")
    check(statestore("run", "syntax.py", cwd=folder), 10, "syntax.py, line 2", "SyntaxError")
    (folder / "exits.py").write_text("raise SystemExit('no data')\n")
    check(statestore("run", "exits.py", cwd=folder), 10, "exits.py, line 1", "no data")
    (folder / "default.py").write_text(JOB.replace('"numbers")', '"numbers", defaults={"state.bakend": "memory"})'))
    check(statestore("run", "default.py", cwd=folder), 2, "state.bakend", "job's defaults", "'state.backend'")


def test_a_failing_function(folder):
    (folder / "fails.py").write_text(JOB.replace("n % 2", "n % (n - 7)"))
    ended = statestore("run", "fails.py", cwd=folder)
    line = check(ended, 10, "key-by-1", "ZeroDivisionError", "fails.py:4")
    assert ended.err.count("; restart 1 in ") == 1, "it is shown, and not logged as well"
    assert line.endswith("(after 1 restart)"), "it is tried once more, to keep what came before"
    written = [line for part in folder.glob("out/part-*") for line in part.read_text().splitlines()]
    assert written == ["0", "1", "2", "3", "4", "8", "6"], "the sums of what came before 7, by the remainder of n - 7"
    shutil.rmtree(folder / "out")
    debug = statestore("run", "fails.py", "--restore", "none", "--debug", cwd=folder)
    assert "Traceback" in debug.err
    assert "lambda n" in debug.err


def test_unreachable_redis(folder):
    url = f"redis://user:canary@127.0.0.1:{redis_server.free_port()}/0"
    begun = time.monotonic()
    ended = statestore("run", "job.py", "-D", "state.backend=redis", "-D", f"state.redis.url={url}", cwd=folder)
    check(ended, 3, "redis unavailable at redis://user:***@127.0.0.1", "refused")
    assert "canary" not in ended.err + ended.out
    assert time.monotonic() - begun < 30, "it is not tried again and again: the job has never run"


def test_places_that_are_no_folders(folder):
    (folder / "file").write_text("")
    check(statestore("run", "job.py", "-D", "state.dir=file/state", cwd=folder), 3, "file/state")
    check(statestore("run", "job.py", "-D", "checkpointing.dir=file/checkpoints", cwd=folder), 3, "file/checkpoints")
    (folder / "out").write_text("")
    check(statestore("run", "job.py", "--restore", "none", cwd=folder), 3, "out")


def test_bad_records(folder):
    (folder / "numbers.jsonl").write_text("1\n2\n{3\n4\n")
    check(statestore("run", "job.py", cwd=folder), 8, "numbers.jsonl", "line 3", "'{3'", "source.on-error")
    assert not list(folder.glob("out/part-*"))
    skipped = statestore("run", "job.py", "--restore", "none", "--json", "-D", "source.on-error=skip", cwd=folder)
    assert (skipped.code, skipped.json["finished"]["events"], skipped.json["finished"]["bad_records"]) == (0, 3, 1)
    options = ["--restore", "none", "-D", "source.on-error=dead-letter", "-D", "source.dead-letter-dir=dead"]
    (folder / "again.py").write_text(JOB.replace('FileSink("out")', 'FileSink("out2")'))
    assert statestore("run", "again.py", *options, cwd=folder).code == 0
    (letters,) = (folder / "dead" / "source-1").glob("part-*.jsonl")
    assert '"line":3,"text":"{3"' in letters.read_text()


def test_nothing_to_restore(folder):
    check(statestore("run", "job.py", "--restore", "latest", cwd=folder), 7, "no checkpoint", "without --restore")
    path = folder / "checkpoints" / "numbers" / "chk-7"
    check(statestore("run", "job.py", "--restore", path, cwd=folder), 7, "chk-7", "no such folder")
    check(statestore("checkpoint", "list", cwd=folder), 7, "no checkpoints")
    check(statestore("checkpoint", "list", "--dir", "nowhere", cwd=folder), 7, "nowhere", "--dir")
    check(statestore("checkpoint", "show", "numbers", cwd=folder), 7, "no checkpoint")


def test_corrupt_checkpoints(folder):
    assert statestore("run", "job.py", "-D", "checkpointing.inline-threshold=0", cwd=folder).code == 0
    checkpoints = folder / ".statestore" / "checkpoints" / "numbers"
    newest = max(checkpoints.glob("chk-*"), key=lambda path: int(path.name.split("-")[1]))
    (delta, *_) = sorted((checkpoints / "shared").iterdir(), reverse=True)
    delta.write_bytes(delta.read_bytes()[:-1] + b"?")
    check(statestore("checkpoint", "verify", "numbers", cwd=folder), 4, delta.name, "checksum", "key group")
    check(statestore("checkpoint", "verify", newest, cwd=folder), 4, delta.name)
    check(statestore("run", "job.py", "--restore", newest, "-D", "state.dir=other", cwd=folder), 4, delta.name)
    assert len(list(folder.glob("out/part-*"))) == 1, "what was written stays"
    (newest / "_metadata").write_text("{}")
    check(statestore("checkpoint", "show", newest, cwd=folder), 4, "_metadata")
    listed = statestore("checkpoint", "list", cwd=folder)
    assert (listed.code, listed.out.count("unreadable")) == (0, 1)


def test_an_unfinished_run_is_not_started_over_unasked(folder):
    (folder / "fails.py").write_text(
        JOB.replace("n % 2", "n % (n - 7)").replace('"numbers.jsonl"', '"numbers.jsonl", batch_size=1')
    )
    assert statestore("run", "fails.py", cwd=folder).code == 10
    check(statestore("run", "job.py", cwd=folder), 2, "did not finish", "--restore latest", "--restore none")
    ended = statestore("run", "job.py", "--restore", "latest", "--json", cwd=folder)
    assert (ended.code, ended.json["finished"]["events"]) == (0, 10)


def test_another_run_holds_the_folder(folder):
    """The second of two runs at the same time is told who is in the way."""
    from statestore.clock import SystemClock
    from statestore.io import FolderLock

    lock = FolderLock(folder / ".statestore" / "numbers", SystemClock())
    try:
        check(statestore("run", "job.py", cwd=folder), 3, ".statestore/numbers")
    finally:
        lock.release()


def test_results_as_json(folder):
    ended = statestore("run", "job.py", "--json", cwd=folder)
    assert ended.code == 0, ended.err
    finished = ended.json["finished"]
    assert (finished["events"], finished["keys"], finished["outputs"]) == (10, 2, ["out"])
    assert finished["shares"].keys() == {"wal", "persistence", "checkpoint", "heartbeat", "recovery"}
    listed = statestore("checkpoint", "list", "--json", cwd=folder).json
    assert [(row["job"], row["kind"]) for row in listed] == [("numbers", "checkpoint"), ("numbers", "final")]
    shown = statestore("checkpoint", "show", listed[-1]["path"], "--json", cwd=folder).json
    assert (shown["epoch"], shown["meta"]["events"]) == (listed[-1]["epoch"], 10)
    verified = statestore("checkpoint", "verify", "numbers", "--json", cwd=folder).json
    assert (verified["path"], verified["problems"]) == (listed[-1]["path"], [])
    failed = statestore("run", "nowhere.py", "--json", cwd=folder)
    assert (failed.code, failed.json["exit_code"], failed.json["restarts"]) == (2, 2, 0)


def test_the_report(folder):
    ended = statestore("run", "job.py", *settings(["restart.type=none"]), cwd=folder)
    assert ended.code == 0, ended.err
    for part in (
        "numbers finished: 10 events, 2 keys",
        "chk-2",
        "share of time",
        "wal ",
        "output         out",
        "try next",
    ):
        assert part in ended.out
    assert "backend rocksdb at .statestore/numbers/rocksdb" in ended.err


LATE_AND_BAD = """
from statestore_runtime import CollectionSource, Job, PrintSink, Tumbling, WatermarkStrategy

job = Job("times")
times = WatermarkStrategy.monotonous(lambda event: event)
timed = job.source(CollectionSource([1.0, 100.0, 2.0, 0.0], batch_size=1)).assign_timestamps(times)
timed.map(lambda event: 1 / event).sink(PrintSink())
timed.key_by(lambda event: "all", str).window(Tumbling("10ms")).reduce(max, float).sink(PrintSink())
"""


def test_the_report_tells_what_was_left_out(folder):
    (folder / "times.py").write_text(LATE_AND_BAD)
    ended = statestore("run", "times.py", *settings(["job.on-error=skip"]), cwd=folder)
    assert ended.code == 0, ended.err
    assert "skipped        1 on which a function failed" in ended.out
    assert "too late       1 event, dropped" in ended.out


def test_help_and_version(folder):
    assert "Commands:" in statestore("--help", cwd=folder).out
    assert "--restore" in statestore("run", "--help", cwd=folder).out
    assert statestore("--version", cwd=folder).out.startswith("statestore 0.")
    check(statestore("walk", cwd=folder), 2, "walk")
