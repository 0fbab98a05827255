"""Real processes that lead, die, stand still and wake up again, with files, Redis and S3."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading

import pytest

from tests.command import environment

FOREVER = 60.0
"""Seconds after which something counts as not happening; all of it takes a few."""

CANDIDATE = """
import json, signal, sys, threading, time
from statestore.config import load_config
from statestore_runtime.ha import open_high_availability

name, acts, *overrides = sys.argv[1:]
config = load_config(overrides=["high-availability.lease-duration=2s", "high-availability.renew-interval=400ms", *overrides])

def say(what, token):
    print(what, token, flush=True)

ha = open_high_availability(config, "job", address=name, on_lost=lambda token: say("lost", token))
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
ha.leader.start()
say("started", 0)
led = None
with open(acts, "a", buffering=1) as file:
    while not stopping.wait(0.005):
        before = time.clock_gettime(time.CLOCK_MONOTONIC)
        token = ha.leader.token
        if token is not None:
            after = time.clock_gettime(time.CLOCK_MONOTONIC)
            file.write(json.dumps([before, after, token]) + "\\n")
        if token is not None and token != led:
            led = token
            ha.latest.take_over(token)
            say("leads", token)
ha.close()
say("closed", led or 0)
"""


class Candidate:
    """A process that acts as often as it can, as long as it leads."""

    def __init__(self, name, acts, overrides):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CANDIDATE, name, str(acts), *overrides],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name, self._lines = name, queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait("started")

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.split())

    def wait(self, what):
        """Token of the next line that says so; others are left out."""
        while True:
            said, token = self._lines.get(timeout=FOREVER)
            if said == what:
                return int(token)

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


@pytest.fixture(params=["file", "redis", pytest.param("s3", marks=pytest.mark.slow)])
def start(request, tmp_path):
    if request.param == "redis":
        overrides = ["high-availability.type=redis", f"high-availability.url={request.getfixturevalue('redis_url')}"]
    else:
        place = tmp_path / "ha" if request.param == "file" else request.getfixturevalue("s3_url")
        overrides = ["high-availability.type=file", f"high-availability.dir={place}"]
    started = []

    def make():
        name = f"c{len(started) + 1}"
        started.append(Candidate(name, tmp_path / f"{name}.acts", overrides))
        return started[-1]

    yield make
    for candidate in started:
        candidate.end()
    check(list(tmp_path.glob("*.acts")))


def check(files):
    """By the machine's clock, no leader acted after one with a greater token had; and each token was one candidate's."""
    acts = [
        (before, after, token, file.name)
        for file in files
        for before, after, token in map(json.loads, file.read_text().splitlines())
    ]
    owners, first = {}, {}
    for _, after, token, name in acts:
        assert owners.setdefault(token, name) == name
        first[token] = min(after, first.get(token, after))
    assert len(first) >= 2, "nobody has taken over"
    for before, _, token, name in acts:
        late = [newer for newer, seconds in first.items() if newer > token and seconds < before]
        assert not late, f"{name} acted with token {token} at {before}, after {late}"


def test_killed_stopped_woken_and_ended(start):
    first = start()
    token = first.wait("leads")
    second = start()
    first.signal(signal.SIGKILL)
    taken = second.wait("leads")
    assert taken > token

    third = start()
    second.signal(signal.SIGSTOP)
    token = third.wait("leads")
    assert token > taken
    second.signal(signal.SIGCONT)
    assert second.wait("lost") >= taken  # it notices by itself, and acts no more: see check

    third.signal(signal.SIGTERM)
    assert third.wait("closed") >= token
    assert second.wait("leads") > token
