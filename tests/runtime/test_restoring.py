"""What a job tells of the restoring of its state, and what the command shows of it."""

from __future__ import annotations

import pytest

from statestore.config import load_config
from statestore_runtime import CollectionSource, CollectSink, IterableSource, Job, run_job
from statestore_runtime.cli import display
from statestore_runtime.messages import Progress, Restoring, Started
from statestore_runtime.protocol import Recovering, decode_report, encode


def job(source, sink):
    made = Job("job")
    made.source(source).key_by(lambda event: event, int).reduce(lambda one, other: one + other, int).sink(sink)
    return made


def failing():
    """Ends with an exception."""
    yield from range(100)
    raise RuntimeError("crash")


@pytest.mark.parametrize("lazy", [False, True])
def test_a_job_tells_how_far_it_is(tmp_path, monkeypatch, lazy):
    """Before it starts; or, where it starts at once, with its progress."""
    overrides = [f"state.dir={tmp_path}", "state.backend=memory", "checkpointing.interval=0", "restart.type=none"]
    with pytest.raises(Exception, match="crash"):
        run_job(job(IterableSource(failing, batch_size=10), CollectSink()), load_config(overrides=overrides))
    monkeypatch.setattr("statestore_runtime.task.task.PROGRESS_SECONDS", 0.0)
    if lazy:
        monkeypatch.setattr("statestore.hydration.Hydrating.start", lambda backend: None)
    told = []
    config = load_config(overrides=[*overrides, f"state-recovery.lazy={lazy}"])
    run_job(job(CollectionSource(range(100)), CollectSink()), config, restore="latest", emit=told.append)
    started = next(index for index, message in enumerate(told) if isinstance(message, Started))
    restoring = [index for index, message in enumerate(told) if isinstance(message, Restoring)]
    assert restoring
    assert all(index > started for index in restoring) if lazy else all(index < started for index in restoring)


def restoring(**values):
    known = {"job": "job", "bytes_done": 1 << 20, "bytes_total": 4 << 20, "entries": 1234, "seconds": 2.0}
    return Restoring(**{**known, "eta_seconds": 6.0, **values})


def started():
    return Started(job="job", backend="memory", state="here", checkpoints="there", attempt=2, restored_checkpoint=7)


def progress(seconds=1.0):
    return Progress(events=10, seconds=seconds, checkpoints=0, state_bytes=0)


def test_the_message_passes_between_processes():
    for message in (restoring(), restoring(eta_seconds=None)):
        report = Recovering(restoring=message)
        assert decode_report(encode(report)) == report


def test_what_the_command_shows(monkeypatch, capsys):
    monkeypatch.setattr(display, "LINE_SECONDS", 0.0)
    with display.Display() as shown:
        shown.show(restoring(bytes_done=0, eta_seconds=None))
        shown.show(restoring())
        shown.show(started())
        shown.show(restoring(bytes_done=2 << 20))
        shown.show(progress())
        shown.show(progress(2.0))
    first, second, _, with_it, without_it = capsys.readouterr().err.splitlines()
    assert "restored 0% of 4.0 MiB, 1,234 entries" in first
    assert "restored 25% of 4.0 MiB, 6 s left, 1,234 entries, 2 s" in second
    assert with_it.endswith("restored 50% of 4.0 MiB, 6 s left")
    assert "restored" not in without_it
