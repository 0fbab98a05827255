"""The commands read encrypted checkpoints with the configured keys, and say which key is missing."""

from __future__ import annotations

import pytest

from statestore.io import Keyring
from tests.cli.test_errors import JOB, check
from tests.command import statestore

FIRST, SECOND = "a1" * 32, "b2" * 32
IDS = [Keyring([bytes.fromhex(key)]).ids[0] for key in (FIRST, SECOND)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "numbers.jsonl").write_text("".join(f"{n}\n" for n in range(10)))
    (tmp_path / "first.key").write_text(FIRST)
    (tmp_path / "statestore.toml").write_text(
        '[encryption]\nkey-env = "FIRST_KEY"\n[checkpointing]\ninline-threshold = 0\n'
    )
    assert statestore("run", "job.py:job", cwd=tmp_path, FIRST_KEY=FIRST).code == 0
    return tmp_path


def test_commands_use_the_configured_key(folder):
    path = statestore("checkpoint", "list", "--json", cwd=folder, FIRST_KEY=FIRST).json[0]["path"]
    for which in ("numbers", path):
        assert statestore("checkpoint", "verify", which, cwd=folder, FIRST_KEY=FIRST).code == 0
        shown = statestore("checkpoint", "show", which, "--json", cwd=folder, FIRST_KEY=FIRST)
        assert shown.json["job"] == "numbers"
        keys = statestore("checkpoint", "keys", which, "--json", cwd=folder, FIRST_KEY=FIRST).json["keys"]
        assert set(keys.values()) == {IDS[0]}
        assert statestore("checkpoint", "keys", which, cwd=folder, FIRST_KEY=FIRST).out.startswith(f"{IDS[0]}  ")
    assert statestore("run", "job.py:job", "--restore", "latest", cwd=folder, FIRST_KEY=FIRST).code == 0


def test_a_missing_key_is_one_line(folder):
    no_key = folder / "empty.toml"
    no_key.write_text("")
    for command in (
        ["run", "job.py:job", "--restore", "latest"],
        ["checkpoint", "list"],
        ["checkpoint", "verify", "numbers"],
    ):
        check(statestore(*command, "-c", no_key, cwd=folder), 2, IDS[0], "no key is configured", "encryption.key-file")
        check(statestore(*command, cwd=folder, FIRST_KEY=SECOND), 2, IDS[0], IDS[1], "previous-key-files")
        check(statestore(*command, cwd=folder), 2, "FIRST_KEY", "no such environment variable")


def test_a_rotated_key_on_the_command_line(folder):
    options = ["-D", "encryption.previous-key-files=first.key, first.key"]
    again = statestore("run", "job.py:job", "--restore", "latest", *options, cwd=folder, FIRST_KEY=SECOND)
    assert again.code == 0, again.err
    keys = statestore("checkpoint", "keys", "numbers", "--json", *options, cwd=folder, FIRST_KEY=SECOND).json["keys"]
    assert set(keys.values()) == set(IDS)
