"""The contract of a state backend: seven operations over bytes.

What every backend guarantees, and the conformance suite in `statestore.testing` checks:

- **Atomic.** `apply` makes all of a batch visible together with its epoch marker. When it fails or the process dies
  in it, either nothing of it is there, or `applied_epoch` is still the old one and the same batch can be applied again
  (a backend spread over several servers can only promise that per key group).
- **Idempotent.** A batch is a mapping of whole values (`None` deletes), so applying it twice is applying it once.
- **Ordered.** `scan` yields keys in ascending byte order.
- **Fuzzy scan.** `scan` may run while `apply` does: an entry that the concurrent batches do not touch is yielded exactly once
  with its value; a touched one with its value before or after, or not at all. Nothing is ever skipped silently: damage raises
  `CorruptionError`.
- **Durable.** After `persist` returned an epoch, the entries up to that epoch and the marker survive the death of the process,
  and for local disks that of the machine. Before it, a crash may take the backend back to an earlier *whole* marker, never to
  a mixture. A backend with `durable = False` forgets everything when the process ends.
- **Threads.** `get_many` and `scan` may be called while another thread is in `apply`, `persist` or another `scan`; the
  caller never runs two of `apply`, `persist`, `clear` and `close` at a time.

A backend never sees an uncommitted write: the store gives it only epochs that can't be rolled back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from statestore.errors import ConfigError, did_you_mean
from statestore.io import OpenStorage, open_storage
from statestore.types import Attempt, Epoch

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "statestore.backends"

Batch = Mapping[bytes, bytes | None]
V = TypeVar("V", bound=bytes | None)


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What a backend is told when it is opened.

    Attributes
    ----------
    job : str
        Name of the job, or of the embedded store; namespaces what several jobs keep in one place.
    directory : str or None
        Local directory that is this backend's own (made by it when it needs one), or None: keep nothing on local disk.
    max_parallelism : int
        Number of key groups; every key starts with its key group as two big-endian bytes.
    key_groups : range
        Those that this backend keeps, by default all. Several backends of one job may share a server; none may touch the
        entries or the marker of another's key groups.
    attempt : Attempt
        Fencing token: of two attempts that write to one place, the greater one owns it.
    options : Mapping[str, Any]
        The backend's own table of the configuration, checked by the backend.
    open_storage : OpenStorage
        Opens a path or URL in which the backend keeps files; what is in them is encrypted when encryption is configured.
    """

    job: str
    directory: str | None
    max_parallelism: int
    attempt: Attempt
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold passwords
    own_key_groups: range | None = None
    open_storage: OpenStorage = field(default=open_storage, repr=False)

    @property
    def key_groups(self) -> range:
        """The key groups to keep."""
        return range(self.max_parallelism) if self.own_key_groups is None else self.own_key_groups


class Backend(ABC):
    """Ordered map from bytes to bytes with an epoch marker; see the module's docstring for the guarantees."""

    durable: bool
    """Whether the data outlives the process, so that recovery can start from it."""

    @classmethod
    @abstractmethod
    def open(cls, context: BackendContext) -> Backend:
        """Open the backend, creating what it needs.

        Raises
        ------
        ConfigError
            An option is unknown or has a bad value.
        UnavailableError
            The place can't be reached, locked or written.
        FencedError
            A greater attempt owns the place already.
        CorruptionError
            What is there can't be read; `clear` can't help, a restore into an empty place can.
        """

    @classmethod
    def options_from_url(cls, url: str) -> dict[str, Any]:
        """Options that the URL `url` stands for, as in `statestore.open(url)`."""
        raise ConfigError(f"backend '{cls.__name__}' takes no URL", key="state.backend", hint="use its name and table")

    @abstractmethod
    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys` in their order, None where there is none."""

    @abstractmethod
    def apply(self, batch: Batch, epoch: Epoch) -> None:
        """Write `batch` and set the marker to `epoch`, atomically."""

    @abstractmethod
    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Entries with start <= key < stop (to the end when `stop` is None), ascending."""

    @abstractmethod
    def applied_epoch(self) -> Epoch:
        """The marker: the epoch of the last batch applied, 0 when empty or cleared."""

    @abstractmethod
    def persist(self) -> Epoch:
        """Make what was applied survive a crash; return the marker that does."""

    @abstractmethod
    def clear(self, key_groups: range) -> None:
        """Set the marker to 0, then remove every entry of `key_groups`."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; idempotent. Does not imply `persist`."""


def next_piece(entries: Iterator[tuple[bytes, V]], *, entries_max: int, bytes_max: int) -> list[tuple[bytes, V]]:
    """The next entries, until either limit is reached; empty at the end."""
    piece, size = [], 0
    for entry in entries:
        piece.append(entry)
        size += len(entry[0]) + (0 if entry[1] is None else len(entry[1]))
        if size >= bytes_max or len(piece) >= entries_max:
            break
    return piece


@runtime_checkable
class SupportsBulkLoad(Protocol):
    """A backend that can be filled faster than batch by batch."""

    def bulk_load(self, entries: Iterator[tuple[bytes, bytes]]) -> None:
        """Fill the backend, just cleared and so with the marker at 0, with all its entries, which come in ascending order.

        Not atomic: the marker stays 0 until the caller's next `apply`, so what an interrupted load leaves is cleared again. Nobody reads
        meanwhile. What `entries` raises ends the load and is passed on. Durable with the next `persist`, as after `apply`.
        """
        ...


@runtime_checkable
class SupportsMetrics(Protocol):
    """A backend that has figures of its own."""

    def metrics(self) -> dict[str, int]:
        """Their present values by name, in Prometheus's spelling with the unit last; cheap, from any thread."""
        ...


_registered: dict[str, type[Backend]] = {}


def register_backend(name: str, backend: type[Backend]) -> None:
    """Make `backend` known in this process as `name`, before one of that name that is installed."""
    _registered[name] = backend


def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # slow to import

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def backend_names() -> set[str]:
    """Names of the backends that there are, which are also the schemes of state URLs."""
    return _installed().keys() | _registered.keys()


@dataclass(frozen=True, slots=True)
class NativeCheckpoint:
    """A copy of a backend's files, as a whole."""

    epoch: Epoch
    """The marker in it."""
    entries: int
    """About how many there are."""
    immutable: frozenset[str]
    """Names of those files that never change: what has another content has another name, for as long as the database lives."""


@runtime_checkable
class SupportsNativeCheckpoint(Protocol):
    """Feature of a backend that can be copied file by file, faster than entry by entry.

    `open` must work on a folder that holds such a copy. `native_checkpoint` and `restore_native` are, like `apply`, the only call at
    a time; `verify_native` may run while anything else does.
    """

    def native_checkpoint(self, folder: str) -> NativeCheckpoint:
        """Make the new `folder` (in the file system of the backend's own) a copy of all that is applied, in hardly any time.

        All files lie in the folder itself. Nothing that happens to the backend afterwards changes them.
        """
        ...

    def verify_native(self, folder: str, names: Sequence[str]) -> None:
        """Read these immutable files of a copy. Raises CorruptionError when one is damaged where it matters to an entry."""
        ...

    def restore_native(self, folder: str) -> None:
        """Become what the copy in `folder` is, its marker included, and take its files over.

        When it fails or the process dies in it, the backend is what it was, or empty with marker 0, or what the copy is.
        """
        ...


def backend_class(name: str) -> type[Backend]:
    """Class registered as `name` with `register_backend`, or in the entry-point group `statestore.backends`.

    Raises
    ------
    ConfigError
        No such backend is installed, or its driver can't be imported.
    """
    if name in _registered:
        return _registered[name]
    found = _installed()
    if name not in found:
        hint = did_you_mean(name, found.keys() | _registered.keys())
        raise ConfigError(f"no backend '{name}' is installed", key="state.backend", hint=hint)
    try:
        loaded = found[name].load()
    except ImportError as error:
        raise ConfigError(f"backend '{name}' can't be loaded: {error}", key="state.backend") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise ConfigError(f"'{found[name].value}' is not a statestore Backend", key="state.backend")
    return loaded
