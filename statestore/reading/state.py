"""One state of a checkpoint, as a read-only mapping of its keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from statestore.errors import UsageError
from statestore.keys import EntryKeys, KeyCodec, group_start, key_group_of, prefix_end, read_varint
from statestore.reading.records import Entry, ListReader, MapReader, Record, RecordReader, SingleReader, TimerReader
from statestore.reading.values import ValueReader, as_key, key_codec_of
from statestore.state import ABSENT
from statestore.ttl import Expiry, TimeDomain, domain_name
from statestore.wal.record import StateDescriptor

if TYPE_CHECKING:
    import pyarrow

KeyGroups = int | Iterable[int] | None
"""What a `key_groups=` argument takes: one, several (such as a range), or None for all."""

ARROW_BATCH_ROWS = 65536


class Entries(Protocol):
    """The entries of a checkpoint, as `CheckpointView` gives them."""

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Values of `keys` in their order."""
        ...

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        """Entries with start <= key < stop, ascending."""
        ...


class StateInfo(NamedTuple):
    """What is stored about a state."""

    name: str
    kind: str
    """"value", "list", "map", "reducing", "aggregating" or "timers"."""
    key_type: str
    value_type: str
    map_key_type: str | None
    """Of a map."""
    ttl: float | None
    """Seconds that values live, None for ever."""
    time: TimeDomain | None
    """Which clock the time-out, or the timers, go by."""


def info_of(state: StateDescriptor) -> StateInfo:
    """What `StateReader.states` tells."""
    kind, _, detail = state.kind.removesuffix("]").partition("[")
    expires = state.ttl is not None and state.ttl.after_ms > 0
    return StateInfo(
        name=state.name,
        kind=kind,
        key_type=state.key_type,
        value_type=state.type,
        map_key_type=detail if kind == "map" else None,
        ttl=state.ttl.after_ms / 1000 if state.ttl is not None and expires else None,
        time=cast(TimeDomain, detail)
        if kind == "timers"
        else domain_name(state.ttl.domain)
        if state.ttl is not None
        else None,
    )


class StoredState:
    """The keys and values of one state; made by `StateReader.state`. May be used by several threads.

    A key's value is what the handle in a program gives for it: of list state a list, of map state a dict, of aggregating state the
    accumulator. Of timers it is a time, in seconds; a key may have several. Keys come by key group, within it in no order of use.

    Raises
    ------
    CheckpointNotFoundError
        From any read: the checkpoint has been collected since it was opened.
    CorruptionError
        From any read: a file is missing or damaged, or a value can't be read.
    UnavailableError
        From any read: the storage does not answer.
    """

    def __init__(
        self,
        entries: Entries,
        state: StateDescriptor,
        max_parallelism: int,
        expiry: Expiry | None,
        value_type: Any,
        key_type: Any,
    ):
        self.info = info_of(state)
        self._entries, self._max_parallelism = entries, max_parallelism
        self._entry_keys = EntryKeys(state.id, max_parallelism)
        self.key_codec: KeyCodec = key_codec_of(state.key_type, key_type, state.name)
        values = ValueReader(state, value_type)
        self.reader: RecordReader
        if self.info.kind == "list":
            self.reader = ListReader(state, values, expiry)
        elif self.info.kind == "map":
            self.reader = MapReader(state, values, expiry, key_codec_of(self.info.map_key_type or "", None, state.name))
        elif self.info.kind == "timers":
            self.reader = TimerReader(state, values, None)
        else:
            self.reader = SingleReader(state, values, expiry)

    def __repr__(self) -> str:
        return f"<StoredState '{self.info.name}', {self.info.kind} of {self.info.value_type} by {self.info.key_type}>"

    def get(self, key: Any, default: Any = None) -> Any:
        """Value of a key, `default` where there is none; of timers, the sorted list of its times.

        Costs the blocks that hold the key; of timers, those of its key group.

        Raises
        ------
        UsageError
            The key is not of the state's key type. A Struct may be given as the tuple of its fields.
        """
        encoded = self.key_codec.encode(as_key(key, self.key_codec))
        value = self.reader.value
        if self.info.kind == "timers":
            in_group = self.records(key_group_of(encoded, self._max_parallelism))
            return [value(record) for record in in_group if record.key == encoded] or default
        entry_key = self._entry_keys.of(encoded)
        if isinstance(self.reader, SingleReader):
            (stored,) = self._entries.get_many([entry_key])
            found = ABSENT if stored is None else value(Record(b"", encoded, [(b"", stored)]))
        else:
            records = self.reader.records(self._entries.scan(entry_key, prefix_end(entry_key)))
            found = next((value(record) for record in records), ABSENT)
        return default if found is ABSENT else found

    def items(self, *, prefix: Any = None, key_groups: KeyGroups = None) -> Iterator[tuple[Any, Any]]:
        """Keys and values, read as they are asked for; of timers, a pair for each.

        Parameters
        ----------
        prefix
            Only keys that begin so: text or bytes, or of a tuple or Struct a tuple of its first elements.
        key_groups
            Only these.

        Raises
        ------
        UsageError
            The prefix does not fit the key type, or there is no such key group.
        """
        decode = self.key_codec.decode
        for record in self._selected(prefix, key_groups):
            value = self.reader.value(record)
            if value is not ABSENT:
                yield decode(record.key), value

    def keys(self, *, prefix: Any = None, key_groups: KeyGroups = None) -> Iterator[Any]:
        """Keys alone, as `items` gives them; values are not decoded."""
        decode = self.key_codec.decode
        return (decode(record.key) for record in self._selected(prefix, key_groups) if self.reader.is_live(record))

    def count(self, *, prefix: Any = None, key_groups: KeyGroups = None) -> int:
        """Number of keys (or timers) that `items` gives; values are not decoded."""
        return sum(self.reader.is_live(record) for record in self._selected(prefix, key_groups))

    def to_dict(self, *, prefix: Any = None, key_groups: KeyGroups = None) -> dict[Any, Any]:
        """All that `items` gives; of timers, the sorted times of each key."""
        items = self.items(prefix=prefix, key_groups=key_groups)
        if self.info.kind != "timers":
            return dict(items)
        times: dict[Any, list[float]] = {}
        for key, time in items:
            times.setdefault(key, []).append(time)
        return times

    def to_arrow(
        self,
        *,
        prefix: Any = None,
        key_groups: KeyGroups = None,
        value_type: pyarrow.DataType | None = None,
        batch_rows: int = ARROW_BATCH_ROWS,
    ) -> pyarrow.RecordBatchReader:
        """All that `items` gives as Arrow record batches with the columns `key` and `value`, one batch in memory at a time.

        Parameters
        ----------
        value_type
            Arrow type of the values, converted as pyarrow does; by default that of the first batch, to which all others must conform.

        Raises
        ------
        ConfigError
            pyarrow is not installed.
        UsageError
            From here or from the reader: values have no common Arrow type, or don't conform to it.
        """
        from statestore.reading.arrow import record_batches

        items = self.items(prefix=prefix, key_groups=key_groups)
        return record_batches(self.info, self.key_codec, items, value_type, batch_rows)

    # Records

    def records(self, group: int) -> Iterator[Record]:
        """Records of a key group, expired ones included."""
        head = self._head(group)
        return self.reader.records(self._entries.scan(head, prefix_end(head)))

    def _head(self, group: int) -> bytes:
        return group_start(group) + self._entry_keys.state_id.to_bytes(2, "big")

    def _selected(self, prefix: Any, key_groups: KeyGroups) -> Iterator[Record]:
        groups = self._groups(key_groups)
        encoded = None if prefix is None else self.key_codec.encode_prefix(prefix)
        return (record for group in groups for record in self._group_records(group, encoded))

    def _groups(self, key_groups: KeyGroups) -> Iterable[int]:
        if key_groups is None:
            return range(self._max_parallelism)
        groups = [key_groups] if isinstance(key_groups, int) else list(key_groups)
        for group in groups:
            if not 0 <= group < self._max_parallelism:
                raise UsageError(f"there is no key group {group}: there are 0 to {self._max_parallelism - 1}")
        return groups

    def _group_records(self, group: int, prefix: bytes | None) -> Iterator[Record]:
        if prefix is None:
            return self.records(group)
        if self.info.kind == "timers":
            return (record for record in self.records(group) if record.key.startswith(prefix))
        return self.reader.records(self._with_prefix(group, prefix))

    def _with_prefix(self, group: int, prefix: bytes) -> Iterator[Entry]:
        """Entries of keys that begin so. Keys of one length are together, so there is one range for each length."""
        head = self._head(group)
        start: bytes | None = head
        stop = prefix_end(head)
        while start is not None and (first := next(self._entries.scan(start, stop), None)) is not None:
            length, offset = read_varint(first[0], len(head))
            of_length = first[0][:offset]
            if length >= len(prefix):
                yield from self._entries.scan(of_length + prefix, prefix_end(of_length + prefix))
            start = prefix_end(of_length)
