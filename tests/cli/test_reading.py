"""The commands that look into state print what is there, and name what is wrong in one line."""

from __future__ import annotations

import csv
import json
import random

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

import statestore
from statestore.testing.clock import FakeClock
from statestore_runtime.cli.main import main

VALUES = {f"key-{n:02}": n for n in range(30)}


class Place(msgspec.Struct, frozen=True):
    country: str
    number: int


class Cli:
    """The command in this process: its exit code, what it printed, what it complained of."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self, *arguments):
        code = main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return code, out, err

    def lines(self, *arguments):
        code, out, err = self(*arguments)
        assert (code, err) == (0, ""), err
        return out.splitlines()

    def json(self, *arguments):
        return json.loads("\n".join(self.lines(*arguments, "--json")))

    def error(self, code, *arguments):
        found, out, err = self(*arguments)
        assert (found, out, err.count("\n")) == (code, "", 1), err
        return err


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


@pytest.fixture
def url(tmp_path):
    """A store with two checkpoints."""
    url, clock = f"rocksdb://{tmp_path}/state", FakeClock(1000.0)
    with statestore.open(url, max_parallelism=8, clock=clock) as store:
        counts, entries = store.value_state("counts", int), store.map_state("entries", tuple[str, int], bytes)
        seen, timers = store.list_state("seen", str, ttl="10s"), store.timers("timers", time="event-time")
        places = store.keyed("scope", Place).value_state("places", float)
        counts.update_many(list(VALUES), list(VALUES.values()))
        store.set_current_key("key-00")
        entries["a", 1] = b"\x00\x01"
        seen.add("x\ty")
        timers.register(1.5)
        places.update_many([Place("ch", 1), Place("fr", 2)], [0.5, 1.5])
        store.checkpoint()
        counts.update_many(["key-00", "new\n"], [100, 2**70])
        store.set_current_key("key-29")
        counts.clear()
        clock.advance(11)
        store.checkpoint()
    return url


def test_list(cli, url):
    assert cli.lines("state", "list", url) == [
        "counts        value of int by str",
        "entries       map of tuple[str, int] to bytes by str",
        "seen          list of str by str, 10 s to live in processing-time",
        "timers        timers by str in event-time",
        "scope/places  value of float by Place(country: str, number: int)",
    ]
    assert cli.json("state", "list", url)[2] == {
        "name": "seen", "kind": "list", "key_type": "str", "value_type": "str", "map_key_type": None, "ttl": 10.0,
        "time": "processing-time",
    }  # fmt: skip


def test_get(cli, url, tmp_path):
    first = tmp_path / "state" / "checkpoints" / "store" / "chk-1"
    assert cli.lines("state", "get", url, "counts", "key-00") == ["100"]
    assert cli.lines("state", "get", first, "counts", "key-00") == ["0"]
    assert cli.lines("state", "get", first.parent, "entries", "key-00") == ['[[["a",1],"AAE="]]']
    assert cli.lines("state", "get", "store", "timers", "key-00", "--dir", first.parent.parent) == ["[1.5]"]
    for key in ('["ch",1]', '{"country":"ch","number":1}'):
        assert cli.json("state", "get", url, "scope/places", key) == {
            "state": "scope/places", "key": {"country": "ch", "number": 1}, "value": 0.5,
        }  # fmt: skip
    assert cli.lines("state", "get", first, "seen", "key-00") == ['["x\\ty"]']
    assert cli.lines("state", "get", url, "seen", "key-00", "--expired") == ['["x\\ty"]']


def test_what_is_not_there(cli, url):
    assert "'counts'" in (error := cli.error(7, "state", "get", url, "counts", "nobody"))
    assert "nothing for key nobody" in error
    cli.error(7, "state", "get", url, "seen", "key-00")
    assert "did you mean 'counts'" in cli.error(2, "state", "get", url, "count", "key-00")
    assert "is no key" in cli.error(2, "state", "get", url, "scope/places", '["ch"]')
    assert "is no key" in cli.error(2, "state", "get", url, "scope/places", "ch")
    assert "JSON array" in cli.error(2, "state", "scan", url, "scope/places", "--prefix", "ch")
    assert "is no key group" in cli.error(2, "state", "scan", url, "counts", "--key-group", "a")
    assert "no key group 8" in cli.error(2, "state", "scan", url, "counts", "--key-group", "7-8")
    assert "nowhere" in cli.error(7, "state", "list", "nowhere/job")
    assert "Try --help" in cli.error(2, "state", "scan", url)


def test_scan(cli, url):
    rows = [line.split("\t") for line in cli.lines("state", "scan", url, "counts")]
    expected = {key: value for key, value in VALUES.items() if key != "key-29"} | {"key-00": 100, '"new\\n"': 2**70}
    assert {key: json.loads(value) for key, value in rows} == expected
    some = cli.json("state", "scan", url, "counts", "--prefix", "key-1")
    assert {row["key"]: row["value"] for row in some} == {
        key: n for key, n in VALUES.items() if key.startswith("key-1")
    }
    assert len(cli.lines("state", "scan", url, "counts", "--limit", 7)) == 7
    halves = [cli.json("state", "scan", url, "counts", "--key-group", groups) for groups in ("0-3", "4-6", "7")]
    assert sum(map(len, halves)) == 30
    assert cli.json("state", "scan", url, "counts", "--prefix", "nobody") == []
    assert cli.lines("state", "scan", url, "scope/places", "--prefix", '["ch"]') == ['{"country":"ch","number":1}\t0.5']


def test_count(cli, url):
    assert cli.json("state", "count", url) == {"counts": 30, "entries": 1, "seen": 0, "timers": 1, "scope/places": 2}
    assert cli.lines("state", "count", url, "seen", "--expired") == ["seen  1"]


def test_diff(cli, url, tmp_path):
    job = tmp_path / "state" / "checkpoints" / "store"
    before, after = job / "chk-1", job / "chk-2"
    assert sorted(cli.lines("checkpoint", "diff", before, after)) == [
        f'+ counts  "new\\n"  {2**70}',
        "- counts  key-29  29",
        '- seen  key-00  ["x\\ty"]',
        "~ counts  key-00  0 -> 100",
    ]
    assert len(cli.lines("checkpoint", "diff", before, after, "--limit", 2)) == 2
    assert cli.json("checkpoint", "diff", before, url, "--state", "seen") == [
        {"state": "seen", "key": "key-00", "change": "removed", "before": ["x\ty"], "after": None}
    ]
    assert cli.lines("checkpoint", "diff", after, url) == []
    assert cli.json("checkpoint", "diff", after, url) == []
    assert cli.json("checkpoint", "diff", before, after, "--summary")["counts"] == {
        "added": 1,
        "removed": 1,
        "changed": 1,
    }
    assert cli.lines("checkpoint", "diff", after, before, "--summary", "--state", "seen") == [
        "seen  1 added, 0 removed, 0 changed"
    ]


def test_export_of_lines(cli, url, tmp_path):
    (line,) = cli.lines("checkpoint", "export", url, "all.jsonl")
    assert line == f"all.jsonl: 34 rows of {tmp_path}/state/checkpoints/store/chk-2"
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert {row["key"]: row["value"] for row in rows if row["state"] == "counts"} == statestore.read(url).state(
        "counts"
    ).to_dict()
    assert {"state": "timers", "key": "key-00", "value": 1.5} in rows
    assert cli.json("checkpoint", "export", url, "some.csv", "--state", "counts", "--state", "timers")["rows"] == 31
    with (tmp_path / "some.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {"state": "counts", "key": "key-00", "value": "100"} in table
    assert len(table) == 31


def test_export_of_tables(cli, url, tmp_path):
    for name in ("places.parquet", "places.arrow"):
        assert cli.json("checkpoint", "export", url, name, "--state", "scope/places")["rows"] == 2
    tables = parquet.read_table("places.parquet"), pa.ipc.open_file("places.arrow").read_all()
    for table in tables:
        assert sorted(table.to_pylist(), key=str) == [
            {"key": {"country": "ch", "number": 1}, "value": 0.5},
            {"key": {"country": "fr", "number": 2}, "value": 1.5},
        ]


def test_exports_that_fail_leave_nothing(cli, url, tmp_path):
    assert "--state" in cli.error(2, "checkpoint", "export", url, "all.parquet")
    assert "no common Arrow type" in cli.error(2, "checkpoint", "export", url, "counts.arrow", "--state", "counts")
    assert ".jsonl" in cli.error(2, "checkpoint", "export", url, "all.txt")
    assert "nowhere" in cli.error(3, "checkpoint", "export", url, "nowhere/all.csv")
    with statestore.open(url, max_parallelism=8, clock=FakeClock(1000.0)) as store:
        store.value_state("large", bytes).update_many(["key-00"], [random.Random(1).randbytes(50_000)])
        store.checkpoint()  # too large for the manifest
    (delta,) = (tmp_path / "state" / "checkpoints" / "store" / "shared").iterdir()
    delta.write_bytes(delta.read_bytes()[:-1])
    assert delta.name in cli.error(4, "checkpoint", "export", url, "all.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    (tmp_path / "all.csv").write_text("mine")
    assert "is there already" in cli.error(2, "checkpoint", "export", url, "all.csv")
    assert (tmp_path / "all.csv").read_text() == "mine"


def test_values_that_json_has_no_form_for():
    from statestore_runtime.cli.values import to_json

    extension = msgspec.msgpack.Ext(5, b"x")
    assert to_json({"a": extension}) == '{"a":{"extension":5,"data":"eA=="}}'
    assert to_json([{(1, "a"): {True: None}}, "\ud800", float("inf")]) == '[[[[1,"a"],[[true,null]]]],"\\ud800",null]'
    assert to_json({"p": Place("\ud800", 1), "n": float("nan"), "b": {2**70}}) == (
        '{"p":{"country":"\\ud800","number":1},"n":null,"b":[1180591620717411303424]}'
    )
