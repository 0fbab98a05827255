"""The writing end of a task: its sinks, the transactions that wait for a checkpoint, and what happens to bad records.

Invariants:
- nothing becomes visible before the checkpoint it belongs to is complete;
- transactions whose checkpoint failed are carried in the next one's meta, until one completes;
- each transaction of a restored checkpoint is committed by exactly one worker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from statestore.clock import Clock
from statestore.config import Config
from statestore.errors import UsageError
from statestore.store import StateStore
from statestore_runtime.functions import UserCodeError
from statestore_runtime.operators import Operator, SinkOperator, SourceOperator
from statestore_runtime.sinks import FileSink, Sink, SinkContext
from statestore_runtime.sources import DeadLetter, SourceContext
from statestore_runtime.task.meta import DEAD_LETTER, Meta
from statestore_runtime.task.sourcing import guarded

logger = logging.getLogger("statestore_runtime.task")

EVENTS = "events"
"""Stands for a source's uid where events were read, but could not be processed."""


class Output:
    """The sinks of one worker."""

    def __init__(self, job: str, config: Config, operators: list[Operator], clock: Clock):
        self._job, self._config, self._clock = job, config, clock
        self.sinks: dict[str, Sink] = {
            operator.uid: operator.sink for operator in operators if isinstance(operator, SinkOperator)
        }
        if config.job.on_error == "dead-letter":
            self.dead_letters(EVENTS)
        self._uncommitted: dict[str, list[Any]] = {}
        self._subtask, self._parallelism = 0, 1

    # Dead letters

    def source_context(self, operator: SourceOperator) -> SourceContext:
        """What happens to the bad records of a source."""
        on_error = operator.source.on_error or self._config.source.on_error
        if on_error != "dead-letter":
            return SourceContext(on_error, clock=self._clock)
        return SourceContext(on_error, self.dead_letters(operator.uid).write, clock=self._clock)

    def dead_letters(self, uid: str) -> Sink:
        """The sink of what an operator could not process."""
        name = f"{uid}{DEAD_LETTER}"
        if name not in self.sinks:
            base = self._config.source.dead_letter_dir or str(Path(self._config.state.dir, self._job, "dead-letter"))
            self.sinks[name] = FileSink(Path(base, uid), if_exists="append")
        return self.sinks[name]

    def write_dead_letter(self, text: str, error: UserCodeError | UsageError) -> None:
        """Put aside an event, or a timer, on which a function failed. Raises as `Sink.write` does."""
        uid = error.operator if isinstance(error, UserCodeError) else EVENTS
        self.dead_letters(EVENTS).write([DeadLetter(source=uid, text=text, error=str(error))])

    def _adopt_dead_letters(self, meta: Meta) -> None:
        """Sinks for the dead letters of a run with another policy: what the checkpoint has of them must be committed."""
        for uid in meta.get("sinks", ()):
            if uid.endswith(DEAD_LETTER):
                self.dead_letters(uid.removesuffix(DEAD_LETTER))

    # Life

    def open(
        self, store: StateStore, meta: Meta, *, subtask: int, parallelism: int, run: str, cleanup: ExitStack
    ) -> None:
        """Open all sinks; `cleanup` closes them. Raises as `Sink.open` does."""
        self._adopt_dead_letters(meta)
        self._subtask, self._parallelism = subtask, parallelism
        self._uncommitted = {uid: [] for uid in self.sinks}
        for uid, sink in self.sinks.items():
            cleanup.callback(close_quietly, sink)
            guarded(uid, sink.open, self._context(uid, store, meta, run))

    def _context(self, uid: str, store: StateStore, meta: Meta, run: str) -> SinkContext:
        """What a sink is opened with, of what the restored checkpoint or that of the run before knows of it."""
        known = meta.get("sinks", {}).get(uid)
        mine = known["transactions"][self._subtask :: self._parallelism] if known is not None else ()
        # The run before may have died between its final checkpoint and the commit of its last output.
        finished = store.finished_meta.get("sinks", {}).get(uid, {}).get("transactions", ())
        return SinkContext(
            job=store.job,
            attempt=store.attempt,
            subtask=self._subtask,
            parallelism=self._parallelism,
            fresh=known is None,
            transactions=tuple(mine),
            snapshots={int(each): snap for each, snap in known["snapshots"].items()} if known is not None else {},
            finished=tuple(finished) if self._subtask == 0 else (),
            run=run,
            clock=self._clock,
        )

    # Checkpoints

    def prepare(self) -> Meta:
        """Make durable what was written; what a checkpoint knows of it."""
        made: Meta = {}
        for uid, sink in self.sinks.items():
            transaction = guarded(uid, sink.prepare)
            if transaction is not None:
                self._uncommitted[uid].append(transaction)
            snapshots = {str(self._subtask): guarded(uid, sink.snapshot)}
            made[uid] = {"transactions": list(self._uncommitted[uid]), "snapshots": snapshots}
        return made

    def commit(self, prepared: Meta) -> None:
        """Make visible what `prepare` returned, as its checkpoint is complete."""
        for uid, known in prepared.items():
            for transaction in known["transactions"]:
                guarded(uid, self.sinks[uid].commit, transaction)
                self._uncommitted[uid].remove(transaction)

    def places(self) -> Iterator[str]:
        """Where output goes."""
        return (sink.place for sink in self.sinks.values() if sink.place is not None)


def close_quietly(closable: Any) -> None:
    """Close on the way out; what goes wrong must not hide why the job ends."""
    try:
        closable.close()
    except Exception:
        logger.exception("closing %s failed", type(closable).__name__)
