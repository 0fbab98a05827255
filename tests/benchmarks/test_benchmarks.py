"""Every workload at a tiny size: that it runs, and that its results are checked and written down."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import bench, results
from benchmarks.__main__ import main
from benchmarks.job_run import JobRun
from benchmarks.peers import PEERS, Peer
from benchmarks.process import ROOT, Measured, MeasurementError, below, measure
from benchmarks.results import Row
from benchmarks.targets import TARGETS, Target, judge
from benchmarks.workloads import WORKLOADS, jobs, start_up
from tests.running import lives

TINY = replace(bench.QUICK, events=2000, event_keys=200, keys=600, flights=500, log_bytes=1 << 20)
HERE = "tests.benchmarks.test_benchmarks"


def in_this_process(function, /, *, python=None, beside=(), **arguments):
    """Stands in for a process of its own, which takes longer to start than all that is done here."""
    module, name = function.split(":")
    begun = time.monotonic()
    returned = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
    value = returned.checked() if isinstance(returned, JobRun) else json.loads(json.dumps(returned))
    return Measured(value, time.monotonic() - begun, 0.1, 30.0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The document that a run at a tiny size writes."""
    monkeypatch.setattr("benchmarks.bench.measure", in_this_process)
    monkeypatch.setattr("benchmarks.__main__.QUICK", TINY)

    def run(*arguments):
        out, report = tmp_path / "results.json", tmp_path / "report.html"
        outputs = ["--json", str(out), "--report", str(report)]
        assert main(["--quick", "--backend", "memory", "--backend", "rocksdb", *arguments, *outputs]) == 0
        return json.loads(out.read_text()), report.read_text()

    return run


@pytest.mark.parametrize("workload", ["keyed-count", "windows", "flights"])
def test_a_job_has_the_result_of_its_floor(run, workload):
    document, _ = run("--workload", workload, "--peer", "none")
    rows = document["results"]
    floors = {row["case"]: row for row in rows if row["role"] == "floor"}
    assert len(floors) == 1
    assert {row["backend"] for row in rows if row["role"] == "statestore"} == {"memory", "rocksdb"}
    for row in rows:
        assert row["details"]["result"] == floors[row["case"]]["details"]["result"]
        assert row["operations"] == {"keyed-count": 2000, "windows": 1000, "flights": 500}[workload]
        assert row["per_second"] > row["per_second_with_start_up"] > 0
        assert row["peak_mib"] > 5
        assert set(row["ratios"]) == ({"plain loop"} if row["role"] == "statestore" else set())


def test_state_operations_have_flinks_names_and_are_compared_with_what_is_below(run):
    document, _ = run("--workload", "state-operations")
    rows = {(row["case"], row["system"]): row for row in document["results"]}
    names = {case.split()[0] for case, _ in rows}
    assert {"valueAdd", "listGetAndIterate", "listAddAll", "mapIterator", "mapPutAll", "mapIsEmpty"} <= names
    assert len(names) == 3 + 6 + 11
    hot, cold = rows["mapGet hot", "statestore rocksdb"], rows["valueGet cold, in batches", "statestore rocksdb"]
    assert (hot["floor"], cold["floor"]) == ("statestore memory", "raw rocksdict")
    assert {"sqlite", "lmdb", "raw rocksdict"} <= set(cold["ratios"])
    assert all(row["per_second"] > 0 and row["peak_mib"] > 5 for row in document["results"])


def test_checkpoints_tell_what_stands_still_and_what_is_uploaded(run):
    document, _ = run("--workload", "checkpoints", "--backend", "filesystem")
    ours = [row for row in document["results"] if row["role"] == "statestore"]
    assert [row["operations"] for row in ours if row["backend"] == "memory"] == [1, 6, 60, 600]
    for row in ours:
        assert 0 < row["details"]["blocking_seconds"] < row["seconds"]
        assert row["details"]["uploaded_bytes"] > 100 * row["operations"]
        assert row["floor"] == "plain file"


def test_a_state_comes_back_in_every_way(run):
    document, _ = run("--workload", "recovery", "--workload", "memory")
    found = {(row["case"].split(",")[0], row["system"]) for row in document["results"]}
    assert {(case, "statestore rocksdb") for case in ("restart", "restore", "rescale 2 to 3", "600 keys")} <= found
    assert ("restart", "statestore memory") not in found, "nothing of it survives"
    eager = [row for row in document["results"] if row["case"].startswith("restore, eager")]
    assert {"file copy (memory)", "file copy (rocksdb)"} == {name for row in eager for name in row["ratios"]}


def test_the_log_and_the_start_of_processes(run, monkeypatch):
    monkeypatch.setattr(start_up, "STARTED", {"python": "python -c pass"})
    document, report = run("--workload", "log", "--workload", "start-up")
    by_system = {row["system"]: row for row in document["results"]}
    assert by_system["statestore log"]["details"]["written"] < by_system["statestore log"]["details"]["bytes"]
    assert by_system["python"]["seconds"] > 0
    assert document["format"] == results.FORMAT
    assert document["machine"].keys() == {"cpus", "cpu", "python", "system"}
    assert document["seconds"].keys() == {"log", "start-up"}
    assert report.count("<svg") == 2
    assert "log: of plain sequential writes" in report
    assert not re.search(r"(src|href)=\"(?!#)", report), "the page needs nothing from elsewhere"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_come_to_the_result_of_one_loop(tmp_path, workers):
    small = bench.Bench(tmp_path, TINY, ("memory",), ())
    for number in range(2):
        jobs_file = tmp_path / f"events-{number}.jsonl"
        jobs_file.write_text("".join(f'{{"key":"k{n % 7}","value":{n},"ts":{n}}}\n' for n in range(number, 900, 2)))
    ours = jobs.statestore("benchmarks.ours.workers:two_stages", ("memory",), parallelism=workers)
    floor, row = jobs.run(small, "parallelism", "", "two_stages", ours, f"{tmp_path}/events-*.jsonl")
    assert row.details["result"] == floor.details["result"]
    assert row.operations == 900
    assert row.peak_mib > 2 * floor.peak_mib, "the workers' memory counts"


def test_a_peer_that_is_not_installed_says_how_to_install_it(run, monkeypatch, capsys):
    monkeypatch.setitem(PEERS, "spark", Peer("spark", "no_such_package", ("pyspark>=4,<5",)))
    monkeypatch.setattr("benchmarks.peers.ROOT", Path("/nonexistent"))
    document, report = run("--workload", "keyed-count", "--peer", "spark")
    (missing,) = [row for row in document["results"] if row["role"] == "peer"]
    assert "not installed" in missing["missing"]
    assert missing["per_second_with_start_up"] is None
    assert "pyspark&gt;=4,&lt;5" in report
    assert "not installed" in capsys.readouterr().out


def miscounting(file, folder, **options):
    return JobRun(3, 0.1, lambda: "another")


def failing(file, folder, **options):
    raise ValueError("out of luck")


@pytest.mark.parametrize(("function", "problem"), [("miscounting", "wrong result"), ("failing", "out of luck")])
def test_what_is_wrong_is_told_and_not_timed(tmp_path, function, problem):
    events = tmp_path / "events.jsonl"
    events.write_text('{"key":"a","value":1,"ts":1}\n')
    small = bench.Bench(tmp_path, TINY, ("memory",), ())
    peer = jobs.System("peer", "peer", f"{HERE}:{function}")
    _, row = jobs.run(small, "keyed-count", "", "keyed_count", [peer], str(events))
    assert problem in row.missing
    assert row.seconds == 0
    ours = jobs.System("ours", "statestore", f"{HERE}:{function}", "memory")
    with pytest.raises(MeasurementError):
        list(jobs.run(small, "keyed-count", "", "keyed_count", [ours], str(events)))


def taking_memory(mib):
    return len(bytearray(mib << 20))


def test_a_process_of_its_own_tells_what_it_takes():
    measured = measure(f"{HERE}:taking_memory", mib=100)
    assert measured.value == 100 << 20
    assert measured.peak_mib > 100
    assert measured.wall_seconds > 0
    assert measured.cpu_seconds > 0


def test_results_are_shown_again_as_they_were(run, tmp_path, capsys):
    run("--workload", "log", "--markdown")
    before = capsys.readouterr().out
    again = ["--show", str(tmp_path / "results.json"), "--report", ""]
    assert main([*again, "--markdown"]) == 0
    assert capsys.readouterr().out == before
    assert "| random bytes | statestore log |" in before


def test_a_run_that_is_terminated_leaves_nothing_behind(tmp_path):
    outputs = ["--json", str(tmp_path / "results.json"), "--report", ""]
    command = [sys.executable, "-m", "benchmarks", "--workload", "parallelism", "--backend", "memory", *outputs]
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not (begun := below(run.pid)):
            assert run.poll() is None
            time.sleep(0.02)
        run.terminate()
        assert run.wait(60) == 128 + signal.SIGTERM
    finally:
        run.kill()
        run.wait()
    while any(lives(pid) for pid in begun):
        time.sleep(0.02)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_target_is_judged_by_its_worst_figure():
    rows = []
    for backend, ratio in (("memory", 0.6), ("rocksdb", 0.4)):
        row = Row("keyed-count", "uniform", f"statestore {backend}", "statestore", backend, 100, seconds=1.0)
        row.ratios = {"plain loop": ratio}
        rows.append(row)
    (judged,) = judge(rows)
    assert (judged.value, judged.met) == (0.4, False)
    assert "rocksdb" in judged.where
    assert Target("at most", at_most=1).met(1)
    assert not Target("at most", at_most=1).met(1.1)


def test_every_workload_is_there():
    assert len(WORKLOADS) == 10
    assert len({target.text for target, _ in TARGETS}) == len(TARGETS)
