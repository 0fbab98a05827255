"""`statestore checkpoint check`: what a job could go on from, before it tries."""

from __future__ import annotations

import pytest

from tests.cli.test_errors import check
from tests.command import statestore

JOB = """
import msgspec
from statestore_runtime import FileSink, FileSource, Job, KeyedProcessFunction

class Visits(msgspec.Struct):
    count: {count}
    {more}

class Counting(KeyedProcessFunction):
    def open(self, ctx):
        self.visits = ctx.value_state("visits", Visits{options})
        self.seen = ctx.list_state("{seen}", int)

    def process(self, event, ctx):
        before = self.visits.value() or Visits({zero})
        self.visits.update(before)
        self.seen.add(event)
        yield event

job = Job("numbers")
numbers = job.source(FileSource("numbers.jsonl"), uid="in").key_by(lambda n: n % 2, int)
numbers.process(Counting(), uid="{uid}").sink(FileSink("out"), uid="out")
"""
PLAIN = {"count": "int", "more": "", "options": "", "seen": "seen", "zero": "0", "uid": "counting"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "numbers.jsonl").write_text("".join(f"{n}\n" for n in range(10)))
    (tmp_path / "job.py").write_text(JOB.format(**PLAIN))
    assert statestore("run", "job.py:job", cwd=tmp_path).code == 0
    return tmp_path


def checked(folder, *options, **changes):
    (folder / "job.py").write_text(JOB.format(**PLAIN | changes))
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in str(path))
    ended = statestore("checkpoint", "check", "numbers", "job.py:job", *options, cwd=folder)
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in str(path)) == before
    return ended


def test_the_same_job(folder):
    ended = checked(folder)
    assert ended.code == 0
    assert [line.split()[:2] for line in ended.out.splitlines()] == [
        ["counting/visits", "same"],
        ["counting/seen", "same"],
    ]


def test_a_job_that_fits(folder):
    ended = checked(folder, "--json", count="float", more="last: int = 0", seen="others")
    assert ended.code == 0
    states = {state["name"]: (state["status"], state["notes"]) for state in ended.json["states"]}
    assert states == {
        "counting/visits": (
            "compatible", ["field 'count' was int and is float", "field 'last' was added, with a default"],
        ),
        "counting/others": ("new", []),
        "counting/seen": ("unread", []),
    }  # fmt: skip
    assert ended.json["path"].endswith("numbers/chk-1") or "chk-" in ended.json["path"]


def test_a_job_that_does_not_fit(folder):
    ended = checked(folder, count="str", zero="''")
    check(ended, 5, "1 of 2 states", "job 'numbers'", "state 'counting/visits'", "field 'count' was int and is str")
    assert "counting/visits  incompatible" in ended.out
    ended = checked(folder, "--json", count="str", zero="''")
    assert ended.code == 5
    assert ended.json["states"][0]["status"] == "incompatible"


def test_a_job_with_an_upcast(folder):
    ended = checked(folder, "--json", count="str", zero="''", options=", upcast=lambda old: Visits(str(old['count']))")
    assert ended.code == 0
    assert ended.json["states"][0]["status"] == "upcast"
    assert statestore("run", "job.py:job", "--restore", "latest", cwd=folder).code == 0


def test_a_job_without_the_operator(folder):
    ended = checked(folder, uid="other")
    check(ended, 5, "2 of 4 states", "no operator 'counting'")


def test_a_checkpoint_or_job_that_is_not_there(folder):
    check(statestore("checkpoint", "check", "nothing", "job.py", cwd=folder), 7, "no checkpoint")
    check(statestore("checkpoint", "check", "numbers", "nothing.py", cwd=folder), 2, "no job file")
