"""Looks for splits that nobody reads yet; what is found is the JobManager's to give away."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from statestore_runtime.protocol import Discovered
from statestore_runtime.task.sourcing import SourceInput, guarded


class Discovery:
    """The splits of all sources, for the one worker that looks for them.

    Parameters
    ----------
    known
        By source, the splits that the restored checkpoint knows, finished ones included.
    tell
        Called with what is found.
    """

    def __init__(self, known: dict[str, Iterable[str]], tell: Callable[[Discovered], object]):
        self._known = {uid: set(splits) for uid, splits in known.items()}
        self._next: dict[str, float] = {}
        self._tell = tell

    def look(self, source: SourceInput, now: float) -> None:
        """Look for new splits of a source, if it is time. Raises as `Source.discover` does."""
        uid = source.uid
        is_first = uid not in self._next
        if not is_first and now < self._next[uid]:
            return
        interval = source.operator.source.discovery_interval
        self._next[uid] = float("inf") if interval is None else now + interval
        known = self._known[uid]
        found = guarded(uid, source.operator.source.discover, frozenset(known))
        known.update(found)
        if found or is_first:
            self._tell(Discovered(source=uid, splits=list(found), is_final=interval is None))
