"""Processes batches so that an event on which a function fails leaves no trace: for jobs that skip such events, and for a job that has
failed on one and is about to come to it again.

What operators keep is marked before each batch, and comes back when one of its events fails; what leaves the worker is held until the batch
is through. Then the events of that batch are processed by halves, down to the one that fails, and around it. The timers of an operator that
are due are a batch like that. What a function keeps elsewhere, and what a `CallableSink` has done, is beyond this. So is an event that one
sink can't take when another has taken it already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Protocol

from statestore.errors import UsageError
from statestore.store import StateStore
from statestore.ttl import TimeDomain
from statestore_runtime.functions import UserCodeError
from statestore_runtime.operators import Operator, SinkOperator
from statestore_runtime.operators.base import Guard, Times
from statestore_runtime.operators.exchange import Keys
from statestore_runtime.operators.timed import TimedOperator
from statestore_runtime.task.exchange import ExchangeOutput

POISON = (UserCodeError, UsageError)
"""A function fails on an event, or the event is not what operators and sinks can take."""

EmitPart = Callable[[int, int], None]
"""Pushes the events of a batch from one index up to another."""

OnPoison = Callable[[UserCodeError | UsageError, int], None]
"""Called with the error and the index of the event that has failed; what it raises ends the batch."""

OnFailedTimer = Callable[[UserCodeError | UsageError, int, Any], None]
"""Called with the error, and time and key of the timer on which it came; what it raises ends the step."""


class Undoable(Protocol):
    """What keeps something outside the store that batches change; see `Operator`."""

    def mark(self) -> None:
        """A batch begins."""
        ...

    def rollback(self) -> None:
        """It has failed."""
        ...

    def keep(self) -> None:
        """It is through."""
        ...


class Careful:
    """Holds what leaves a worker, and undoes what failed.

    Parameters
    ----------
    on_failed_timer
        What becomes of a timer that is passed over.
    others
        What has to be undone beside store and operators.
    """

    def __init__(
        self,
        store: StateStore,
        operators: Sequence[Operator],
        outputs: Sequence[ExchangeOutput],
        on_failed_timer: OnFailedTimer,
        others: Sequence[Undoable] = (),
    ):
        self._store = store
        self._undoable: list[Undoable] = [*operators, *others]
        self._on_failed_timer = on_failed_timer
        self._is_trying = False  # what nothing has led to that can fail again is not held
        self._writes: list[tuple[SinkOperator, list[Any]]] = []
        self._sends: list[Callable[[], None]] = []
        self._sinks = [operator for operator in operators if isinstance(operator, SinkOperator)]
        self._timed = [operator for operator in operators if isinstance(operator, TimedOperator)]
        self._outputs = outputs
        self._written: set[str] = set()
        """Sinks that have taken their part of a batch."""
        self._passed_over: set[str] = set()
        """Those that have taken it at an attempt that failed at another sink: it can't be taken back, and they need it no more."""
        for operator in self._sinks:
            operator.write = self._held_write(operator)
        for output in outputs:
            output.operator.send = self._held_send(output)
        for timed in self._timed:
            timed.fire_all = partial(self.fire_all, timed)

    def _held_write(self, operator: SinkOperator) -> Callable[[list[Any]], None]:
        def write(batch: list[Any]) -> None:
            if self._is_trying:
                self._writes.append((operator, batch))
            else:
                operator.sink.write(batch)

        return write

    def _held_send(self, output: ExchangeOutput) -> Callable[[Keys, list[Any], Times], None]:
        def send(keys: Keys, batch: list[Any], times: Times = None) -> None:
            if self._is_trying:
                output.check(keys)
                self._sends.append(partial(output.send, keys, batch, times))
            else:
                output.send(keys, batch, times)

        return send

    def relax(self) -> None:
        """Hold nothing any more."""
        for operator in self._sinks:
            operator.write = operator.sink.write
        for output in self._outputs:
            output.operator.send = output.send
        for timed in self._timed:
            timed.fire_all = timed.fire_until_done

    @property
    def left_traces(self) -> bool:
        """Whether the event that has failed, or one after it, is in a sink nevertheless."""
        return bool(self._written | self._passed_over)

    def process(self, count: int, emit: EmitPart, on_poison: OnPoison) -> None:
        """Process a batch of `count` events.

        Raises
        ------
        What `on_poison` does
            Then all events before that one have been processed.
        StateStoreError
            What was due once events were through has failed, or something has that is nobody's fault.
        """
        self._passed_over = set()
        try:
            self._attempt(partial(emit, 0, count))
        except POISON:
            self._passed_over = set(self._written)
            self._process_halves(0, count, emit, on_poison)
        else:
            self._keep()

    def _process_halves(self, begin: int, end: int, emit: EmitPart, on_poison: OnPoison) -> None:
        """Process events that have failed together: those on which it fails alone are found, in their order."""
        middle = (begin + end) // 2
        for start, stop in ((begin, middle), (middle, end)):
            if start == stop:
                continue
            try:
                self._attempt(partial(emit, start, stop))
            except POISON as error:
                if stop - start == 1:
                    on_poison(error, start)
                    continue
                before, self._passed_over = self._passed_over, self._passed_over | self._written
                self._process_halves(start, stop, emit, on_poison)
                self._passed_over = before
            else:
                self._keep()

    def fire_all(self, operator: TimedOperator, domain: TimeDomain, until: int) -> None:
        """Fire the timers of an operator that are due. Raises as `process`, and what `on_failed_timer` does."""
        before = self._passed_over  # of the batch that has let time go on, if it was one
        while operator.timers.has_due(domain, until):
            self._passed_over = set()
            due = _Counted(operator.timers.due(domain, until))
            try:
                self._attempt(partial(operator.fire, due, domain))
            except POISON:
                self._passed_over = set(self._written)
                self._fire_singly(operator, domain, until, due.count)
            else:
                self._keep()
        self._passed_over = before

    def _fire_singly(self, operator: TimedOperator, domain: TimeDomain, until: int, count: int) -> None:
        """Fire so many timers. One that fails is there again after it, and is taken out without being fired."""

        def fire_next() -> None:
            operator.fire(islice(operator.timers.due(domain, until), 1), domain)

        for _ in range(count):
            try:
                self._attempt(fire_next)
            except POISON as error:
                time, key = next(operator.timers.due(domain, until))
                self._on_failed_timer(error, time, key)
                operator.pass_over(time, key)
            else:
                self._keep()

    def _keep(self) -> None:
        for undoable in self._undoable:
            undoable.keep()

    def _attempt(self, action: Callable[[], object]) -> None:
        self._store.mark()
        for undoable in self._undoable:
            undoable.mark()
        self._written = set()
        self._is_trying = True
        try:
            action()
            changes = self._store.encode_changes()
            self._let_go()
        except POISON:
            self._writes, self._sends = [], []
            self._store.rollback()
            for undoable in self._undoable:
                undoable.rollback()
            raise
        finally:
            self._is_trying = False
        self._store.mark(changes)

    def _let_go(self) -> None:
        """Write first: that may fail, sending does not."""
        writes, self._writes = self._writes, []
        for operator, batch in writes:
            if operator.uid not in self._passed_over:
                with Guard(operator.uid):
                    operator.sink.write(batch)
                self._written.add(operator.uid)
        sends, self._sends = self._sends, []
        for send in sends:
            send()


class _Counted(Iterator[tuple[int, Any]]):
    """Timers, and how many of them were taken."""

    def __init__(self, timers: Iterator[tuple[int, Any]]):
        self._timers, self.count = timers, 0

    def __next__(self) -> tuple[int, Any]:
        taken = next(self._timers)
        self.count += 1
        return taken
