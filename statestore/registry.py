"""The states of one store: what is stored about each, what the program declares of them, and which of them expire."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from statestore.errors import UsageError
from statestore.keys import EntryKeys
from statestore.pending import Pending
from statestore.stamp import STAMP_STATE_ID
from statestore.sweep import Sweep
from statestore.ttl import SWITCHED_OFF, Expiry, StateClock, StoredTtl, TimeToLive, Ttl
from statestore.versions import Declaration, Scan, find, first_descriptor, fit, versions_in_use
from statestore.wal.record import StateDescriptor


class Registry:
    """What states there are. `restore` comes first.

    Parameters
    ----------
    default_ttl
        Of the states that declare none.
    """

    def __init__(
        self, max_parallelism: int, key_groups: range, pending: Pending, times: StateClock, default_ttl: TimeToLive
    ):
        self._max_parallelism, self._key_groups = max_parallelism, key_groups
        self._pending, self._times, self._default_ttl = pending, times, default_ttl
        self._states: dict[str, StateDescriptor] = {}
        self._expiries: dict[str, Expiry] = {}
        self.declarations: dict[str, Declaration] = {}
        """What has been registered, by full name."""
        self.has_changed = False
        """Whether the log has to hear of the states again; set back by whoever tells it."""

    def restore(self, states: Iterable[StateDescriptor], scan: Scan, sweep: Sweep) -> None:
        """Take over the states that were found; `scan` reads the entries of the backend they are in, `sweep` removes the expired."""
        self._states = {state.name: state for state in states}
        self._scan, self._sweep = scan, sweep

    def descriptors(self) -> list[StateDescriptor]:
        """What is to be stored about the states."""
        return list(self._states.values())

    def register(self, declared: Declaration) -> EntryKeys:
        """Find a state among the restored ones, or give it an id. Raises IncompatibleStateError."""
        known = find(self._states, declared)
        if known is None:
            state_id = max((state.id for state in self._states.values()), default=0) + 1
            if state_id >= STAMP_STATE_ID:
                raise UsageError(f"a store can't have more than {STAMP_STATE_ID - 1} states")
            state = first_descriptor(state_id, declared)
        else:
            if known.name != declared.name and known.name in self.declarations:
                raise UsageError(f"state '{declared.name}' can't be renamed from '{known.name}', which is registered")
            is_whole = len(self._key_groups) == self._max_parallelism
            state = fit(known, declared, self.versions_in_use, is_whole=is_whole)
        if state != known:
            if known is not None:
                del self._states[known.name]
            self._states[state.name] = state
            self.has_changed = True
        self.declarations[state.name] = declared
        return EntryKeys(state.id, self._max_parallelism, self._key_groups)

    def versions_in_use(self, state_id: int) -> set[int]:
        """Schema versions that values of a state are stored with, by reading all of it."""
        return versions_in_use(self._scan, state_id, self._key_groups, self._pending.everything())

    # Time-outs

    def set_ttl(self, name: str, ttl: Ttl) -> Expiry | None:
        """Switch a registered state's time-out on or off; what tells the expired, or None when nothing expires. Raises UsageError."""
        state = self._states[name]
        time_to_live = self._default_ttl if ttl is None else ttl if isinstance(ttl, TimeToLive) else TimeToLive(ttl)
        if time_to_live.seconds == 0:
            if state.ttl is not None:
                self._note_ttl(name, SWITCHED_OFF)
            return None
        expiry = Expiry(time_to_live, self._times, state.ttl)
        self._sweep.watch(state.id, expiry)
        self._expiries[name] = expiry
        self._note_ttl(name, expiry.to_store())
        return expiry

    def had_ttl(self, name: str) -> bool:
        """Whether a registered state has, or ever had, a time-out."""
        return self._states[name].ttl is not None

    def note_event_time(self) -> None:
        """Event time has advanced: it may be known only now since when the states that go by it expire."""
        for name, expiry in self._expiries.items():
            if expiry.since_ms is None:
                self._note_ttl(name, expiry.to_store())

    def _note_ttl(self, name: str, ttl: StoredTtl) -> None:
        if self._states[name].ttl != ttl:
            self._states[name] = replace(self._states[name], ttl=ttl)
            self.has_changed = True
