"""`statestore checkpoint pin|unpin|prune|verify`."""

from __future__ import annotations

import os

import pytest

from tests.command import statestore


@pytest.fixture
def folder(tmp_path):
    import statestore as library

    settings = [
        f"state.dir={tmp_path}/state",
        f"checkpointing.dir={tmp_path}/checkpoints",
        "checkpointing.inline-threshold=0",
    ]
    with library.open(library.load_config(overrides=settings), job="counts") as store:
        counts = store.value_state("counts", int)
        for number in range(1, 4):
            with store.key("a"):
                counts.update(number)
            store.checkpoint()
    return tmp_path


def command(folder, *arguments):
    return statestore("checkpoint", *arguments, cwd=folder)


def test_pin_and_prune(folder):
    where = ("--dir", "checkpoints")
    pinned = command(folder, "pin", "checkpoints/counts/chk-1")
    assert (pinned.code, pinned.out) == (0, f"{folder}/checkpoints/counts/chk-1: pinned\n")
    listed = command(folder, "list", *where, "--json").json
    assert [(row["checkpoint"], row["pinned"]) for row in listed] == [(1, True), (2, False), (3, False)]
    assert "(pinned)" in command(folder, "list", *where).out
    before = sorted(folder.glob("checkpoints/**/*"))
    would = command(folder, "prune", "counts", *where, "--keep", "1", "--dry-run")
    assert (would.code, sorted(folder.glob("checkpoints/**/*"))) == (0, before)
    assert "keeps   " in would.out
    assert "would remove counts/chk-2/_metadata" in would.out
    pruned = command(folder, "prune", *where, "--keep", "1", "--json")
    (report,) = pruned.json
    assert [kept["why"] for kept in report["kept"]] == ["pinned", "the newest"]
    assert (report["removed_checkpoints"], report["bytes"]) == ([2], sum(item["bytes"] for item in report["removed"]))
    assert command(folder, "verify", "checkpoints/counts/chk-1").code == 0
    assert command(folder, "unpin", "checkpoints/counts/chk-1", "--json").json["pinned"] is False
    assert command(folder, "prune", *where, "--keep", "1", "--json").json[0]["removed_checkpoints"] == [1]
    again = command(folder, "unpin", "counts", *where)
    assert (again.code, "not pinned" in again.err) == (2, True)


def test_orphans(folder):
    orphan = folder / "checkpoints" / "counts" / "shared" / "base-0-1-0-ab.seg"
    orphan.write_bytes(b"x")
    os.utime(orphan, (0, 0))
    never = command(folder, "prune", "--dir", "checkpoints", "--orphan-age", "0")
    assert (never.code, orphan.exists()) == (0, True)
    bad = command(folder, "prune", "--dir", "checkpoints", "--orphan-age", "soon")
    assert (bad.code, "--orphan-age" in bad.err) == (2, True)
    pruned = command(folder, "prune", "--dir", "checkpoints", "--orphan-age", "1h")
    assert (pruned.code, orphan.exists()) == (0, False)
    assert (
        "removed counts/shared/base-0-1-0-ab.seg  1 bytes  (no checkpoint names it, and attempt 0 is over)"
        in pruned.out
    )


def test_an_unreadable_manifest_removes_nothing(folder):
    (folder / "checkpoints" / "counts" / "chk-2" / "_metadata").write_bytes(b"{}")
    before = sorted(folder.glob("checkpoints/**/*"))
    refused = command(folder, "prune", "--dir", "checkpoints", "--keep", "1")
    assert (refused.code, sorted(folder.glob("checkpoints/**/*"))) == (4, before)
    assert "nothing is removed" in refused.err


def test_verify_reports_every_damage(folder):
    deltas = sorted((folder / "checkpoints" / "counts" / "shared").iterdir())
    for delta in deltas[:2]:
        data = bytearray(delta.read_bytes())
        data[-3] ^= 1
        delta.write_bytes(bytes(data))
    ended = command(folder, "verify", "counts", "--dir", "checkpoints")
    assert ended.code == 4
    lines = ended.out.splitlines()
    assert [delta.name in line for delta, line in zip(deltas, lines, strict=False)] == [True, True]
    assert all("at byte" in line and "key groups 0 to 127" in line for line in lines)
    found = command(folder, "verify", "counts", "--dir", "checkpoints", "--json").json
    assert [problem["last_key_group"] for problem in found["problems"]] == [127, 127]
