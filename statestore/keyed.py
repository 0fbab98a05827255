"""A scope of keyed state: one key type, one current key, the states registered for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from statestore.codecs import Codec
from statestore.collection_state import ListState, MapState
from statestore.errors import UsageError, did_you_mean
from statestore.expiring import EXPIRING
from statestore.keys import KeyCodec, key_group_of
from statestore.state import AggregateFunction, AggregatingState, ReducingState, State, ValueState
from statestore.timers import Timers
from statestore.ttl import TimeDomain
from statestore.types import KeyGroup
from statestore.versions import Declaration, StateOptions, full_names

if TYPE_CHECKING:
    from statestore.store import StateStore

S = TypeVar("S", bound="State[Any]")


class _NoKey:
    """Stands for the current key where there is none; looking it up is the error."""

    def __hash__(self) -> int:
        raise UsageError("there is no current key: call set_current_key(key), or use `with store.key(key):`")


NO_KEY = _NoKey()


class StateFactory(ABC):
    """The five ways to register a state, wherever a program may do it."""

    @abstractmethod
    def _keyed(self) -> KeyedState:
        """Scope that the states are of."""

    def value_state(
        self, name: str, type: Any, default: Any = None, **options: Unpack[StateOptions]
    ) -> ValueState[Any]:
        """Register a state with one value per key.

        Parameters
        ----------
        name
            Unique in the scope; the state is found again by it.
        type
            Type of the values; see `statestore.codecs.Codec`.
        default
            What `value()` gives where nothing is stored.
        **options
            `ttl`, `upcast`, `renamed_from` and `codec`: see `StateOptions`.

        Raises
        ------
        UsageError
            The name is taken, or the type can't be stored.
        ConfigError
            `codec` is "pickle", and the configuration does not allow it.
        IncompatibleStateError
            The restored state of that name is of another kind or key type.
        StateMigrationError
            Values of it are stored that can't be read as `type`.
        """
        return self._keyed().register(ValueState, name, type, default, **options)

    def list_state(self, name: str, type: Any, **options: Unpack[StateOptions]) -> ListState[Any]:
        """Register a state with a list of `type` per key; each element has its own time-out. Options and errors as of `value_state`."""
        return self._keyed().register(ListState, name, type, **options)

    def map_state(
        self, name: str, key_type: Any, value_type: Any, **options: Unpack[StateOptions]
    ) -> MapState[Any, Any]:
        """Register a state with a map per key; each entry has its own time-out. Options and errors as of `value_state`."""
        map_keys = KeyCodec(key_type)
        return self._keyed().register(MapState, name, value_type, map_keys, detail=f"[{map_keys.name}]", **options)

    def reducing_state(
        self, name: str, type: Any, function: Callable[[Any, Any], Any], **options: Unpack[StateOptions]
    ) -> ReducingState[Any]:
        """Register a state that combines the values added to it with `function`. Options and errors as of `value_state`."""
        return self._keyed().register(ReducingState, name, type, function, **options)

    def aggregating_state(
        self, name: str, function: AggregateFunction, accumulator_type: Any, **options: Unpack[StateOptions]
    ) -> AggregatingState[Any]:
        """Register a state that keeps an accumulator of the values added to it. Options and errors as of `value_state`."""
        if not isinstance(function, AggregateFunction):
            raise UsageError(
                f"state '{name}': {function!r} is no AggregateFunction (create_accumulator, add, get_result, merge)"
            )
        return self._keyed().register(AggregatingState, name, accumulator_type, function, **options)

    def timers(self, name: str, *, time: TimeDomain = "processing-time") -> Timers:
        """Register timers.

        Parameters
        ----------
        name
            Unique among the states of the scope; the timers are found again by it.
        time
            "processing-time", the machine's clock, or "event-time", as far as the program says it has come.

        Raises
        ------
        UsageError
            The name is taken.
        IncompatibleStateError
            The restored state of that name is something else.
        """
        return self._keyed().register_timers(name, time)


class KeyedState(StateFactory):
    """States that share a key: those of one stateful operator, or of an embedding program.

    Not thread-safe: one thread uses a scope and its handles.

    Attributes
    ----------
    key
        The current key. `set_current_key` checks its type; a loop that has passed all its keys to `begin_batch` may set it directly.
    batch
        The keys of the last `begin_batch`.
    """

    def __init__(self, store: StateStore, prefix: str, key_type: Any):
        self._store, self._prefix = store, prefix
        self._key_codec = KeyCodec(key_type)
        self.encode_key, self.encode_keys = self._key_codec.encode, self._key_codec.encode_many
        self.key: Any = NO_KEY
        self.batch: Sequence[Any] = ()
        self.decode_key = self._key_codec.decode
        self.states: dict[str, State[Any] | Timers] = {}

    # Current key

    @property
    def key_type(self) -> str:
        """Readable name of the key type."""
        name: str = self._key_codec.name
        return name

    def set_current_key(self, key: Any) -> None:
        """Make `key` the one that all handles of the scope work on.

        Raises
        ------
        UsageError
            It is not exactly of the scope's key type.
        """
        if type(key) is not self._key_codec.runtime_type or not self._key_codec.is_scalar:
            self._key_codec.check(key)
        self.key = key

    def key_group(self, key: Any) -> KeyGroup:
        """Key group of a key, which decides the store that keeps its state. Raises UsageError as `set_current_key` does."""
        self._key_codec.check(key)
        return key_group_of(self.encode_key(key), self._store.max_parallelism)

    @contextmanager
    def at(self, key: Any) -> Iterator[None]:
        """Work on `key` within a `with` block, then on the key before."""
        before = self.key
        self.set_current_key(key)
        try:
            yield
        finally:
            self.key = before

    def check_keys(self, keys: Sequence[Any]) -> None:
        """Raise UsageError unless all `keys` are exactly of the scope's key type."""
        self._key_codec.check_all(keys)

    def begin_batch(self, keys: Sequence[Any]) -> None:
        """Check `keys`, before a loop sets `key` to each; a state that lacks one of them loads all that it lacks with one request.

        Raises
        ------
        UsageError
            A key is not of the scope's key type.
        """
        self.check_keys(keys)
        self.batch = keys

    # States

    def _keyed(self) -> KeyedState:
        return self

    def register(
        self,
        state_class: type[S],
        name: str,
        type: Any,
        *arguments: Any,
        detail: str = "",
        **options: Unpack[StateOptions],
    ) -> S:
        """Register a state of any kind; the methods named after the kinds do it."""
        full_name = self._full_name(name)
        unknown = options.keys() - StateOptions.__annotations__.keys()
        if unknown:
            hint = did_you_mean(min(unknown), StateOptions.__annotations__)
            raise UsageError(f"state '{full_name}': there is no option '{min(unknown)}'; {hint}")
        codec = Codec(type, options.get("codec", "msgpack"), allow_pickle=self._store.allow_pickle)
        declared = Declaration(
            full_name,
            f"{state_class.kind}{detail}",
            self.key_type,
            codec,
            options.get("upcast"),
            full_names(self._prefix, options.get("renamed_from", ())),
        )
        keys = self._store.registry.register(declared)
        expiry = self._store.registry.set_ttl(full_name, options.get("ttl"))
        made: Any = (state_class if expiry is None else EXPIRING[state_class])(full_name, self, codec, keys, *arguments)
        if expiry is not None:
            made.expiry = expiry
        self.states[name] = made
        self._store.share_cache()
        return made  # type: ignore[no-any-return]

    def _full_name(self, name: str) -> str:
        full_name = f"{self._prefix}/{name}" if self._prefix else name
        if name in self.states:
            raise UsageError(f"state '{full_name}' is registered already")
        return full_name

    def register_timers(self, name: str, time: TimeDomain) -> Timers:
        """See `timers`."""
        full_name = self._full_name(name)
        declared = Declaration(full_name, f"{Timers.kind}[{time}]", self.key_type, Codec(None))
        state_id, store = self._store.registry.register(declared).state_id, self._store
        made = self.states[name] = Timers(full_name, self, state_id, store.max_parallelism, store.key_groups, time)
        return made

    # What handles read through

    def encoded_key(self) -> bytes:
        """The current key as bytes. Raises UsageError when there is none."""
        hash(self.key)  # which raises where there is none
        return self.encode_key(self.key)

    def now_ms(self, time: TimeDomain) -> int | None:
        """Present time of a time domain in milliseconds, None while it is not known."""
        return self._store.times.now_ms(time)

    def read_first(self, prefix: bytes, start: bytes, limit: int, changes: dict[bytes, bytes | None]) -> list[bytes]:
        """First keys from `start` on with this prefix, with `changes` on top of what is committed."""
        return self._store.committed.read_first(prefix, start, limit, changes) if self.holds_entries or changes else []

    def had_ttl(self, name: str) -> bool:
        """Whether the state has, or ever had, a time-out."""
        return self._store.registry.had_ttl(name)

    @property
    def holds_entries(self) -> bool:
        """Whether anything has ever been committed."""
        return self._store.holds_entries

    def read(self, entry_key: bytes) -> bytes | None:
        """Committed value of one entry."""
        return self._store.committed.read_many([entry_key])[0]

    def read_many(self, entry_keys: list[bytes]) -> list[bytes | None]:
        """Committed values of several entries."""
        return self._store.committed.read_many(entry_keys)

    def read_collection(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Committed entries of one map."""
        return self._store.committed.read_collection(prefix)
