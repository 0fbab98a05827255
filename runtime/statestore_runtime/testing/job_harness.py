"""Runs a job over scripts: lists of events with crashes, checkpoints and changes of parallelism between them."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from statestore.config import Config, load_config
from statestore_runtime.deployment.inprocess import InProcess
from statestore_runtime.job import Job
from statestore_runtime.jobmanager.events import Event
from statestore_runtime.jobmanager.restart import restart_strategy
from statestore_runtime.messages import Finished, Message, Restarting
from statestore_runtime.sinks import CollectSink
from statestore_runtime.testing.clock import HarnessClock
from statestore_runtime.testing.script import ScriptedSource, Stage

DEFAULTS: Mapping[str, Any] = {
    "checkpointing.interval": 0,  # those of the script, the first and the last
    "restart.type": "fixed-delay",
    "restart.attempts": 10,
    "restart.delay": 0,
}


class JobHarness:
    """Runs a job in this process, all its workers in this thread, and gives what comes out of it.

    Parameters
    ----------
    build
        Called with a source for each script, and then the sink; returns the job. It is called again at each RESTART and EOF, as a program
        is that is started again.
    backend
        Any that is installed. For "redis" give `settings={"state.redis.url": ...}`.
    parallelism
        Number of workers.
    splits
        Parts of each source. With one, the events of a key keep their order even with several workers.
    batch_size
        Events that are processed together, where no marker is between them.
    settings
        By dotted key, such as {"checkpointing.mode": "at-least-once"}. By default there are no checkpoints but those of the script, the
        first and the final one, and a job that fails is restarted at once, ten times.
    dir
        Where state and checkpoints are kept; by default in a temporary folder for each `run`.

    Attributes
    ----------
    clock : HarnessClock
        The job's.
    sink : CollectSink
        What the last run has written to it.
    messages : list of Message
        Everything that the last run told.
    finished : Finished or None
        Figures of the last run.
    """

    def __init__(
        self,
        build: Callable[..., Job],
        *,
        backend: str = "memory",
        parallelism: int = 1,
        splits: int = 1,
        batch_size: int = 1,
        settings: Mapping[str, Any] | None = None,
        dir: str | Path | None = None,
    ):
        self._build, self._splits, self._batch_size, self._dir = build, splits, batch_size, dir
        self._settings = {
            **DEFAULTS,
            "state.backend": backend,
            "job.parallelism": parallelism,
            **(settings or {}),
        }
        self._begin_run()

    def _begin_run(self) -> None:
        self.clock, self.sink = HarnessClock(), CollectSink()
        self.messages: list[Message] = []
        self.finished: Finished | None = None
        self._execution: _Execution | None = None

    @property
    def restarts(self) -> int:
        """How often the JobManager has restarted the job in the last run."""
        return sum(isinstance(message, Restarting) for message in self.messages)

    def run(self, *scripts: Sequence[Any], restore: str = "none") -> list[Any]:
        """Run the job until the scripts end.

        Parameters
        ----------
        scripts
            Events, and markers between them; see `statestore_runtime.testing.markers`.
        restore
            What the job begins with: nothing, "latest" (which needs `dir`), or the path of a checkpoint or savepoint.

        Returns
        -------
        list
            What came out, each event that counts once. With several workers its order is that of checkpoints, and of workers within one.

        Raises
        ------
        StateStoreError
            What the job has failed with for good.
        """
        self._begin_run()
        stage = Stage(self.clock)
        sources = [ScriptedSource(script, stage, parts=self._splits, batch_size=self._batch_size) for script in scripts]
        with ExitStack() as cleanup:
            dir = self._dir or cleanup.enter_context(tempfile.TemporaryDirectory(prefix="statestore-"))
            config = load_config(
                overrides=[f"{key}={value}" for key, value in {**self._settings, "state.dir": dir}.items()]
            )
            is_more = True
            while is_more:
                execution = self._execution = _Execution(
                    self._build(*sources, self.sink), config, restore, stage, self.messages.append
                )
                try:
                    self.finished = execution.run()
                    is_more = sum(source.pass_end() for source in sources) > 0  # all of them pass theirs
                except _Restart:
                    stage.is_over = False
                restore = "latest"
                parallel = msgspec.structs.replace(config.job, parallelism=execution.manager.parallelism)
                config = msgspec.structs.replace(config, job=parallel)
        return list(self.sink.results)

    def request(self, event: Event) -> None:
        """Ask the JobManager of the run that is under way for something, such as a `Stop`; for functions that a script calls."""
        assert self._execution is not None, "nothing runs"
        self._execution.request(event)


class _Restart(Exception):
    """The run ends here, as if its process were killed."""


class _Execution(InProcess):
    def __init__(self, job: Job, config: Config, restore: str, stage: Stage, emit: Callable[[Message], object]):
        self._stage, clock = stage, stage.clock
        strategy = restart_strategy(config.restart, clock, lambda: 0.5)
        run = uuid.uuid4().hex  # so that a restart goes on from its checkpoints
        super().__init__(job, config, restore=restore, run=run, emit=emit, clock=clock, strategy=strategy)
        stage.request = self.request

    def step(self) -> None:
        before = self._stage.clock.quiet_rounds
        super().step()
        if self._stage.clock.quiet_rounds <= before:  # it has not asked for sleep
            self._stage.clock.quiet_rounds = 0
        if self._stage.is_over:
            raise _Restart
