"""Whether a storage really creates an object only if it is absent, which leader election rests upon."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from statestore.errors import ConfigError, UnavailableError
from statestore.io import FsspecStorage, LocalStorage, Storage, local_path, redacted

RACERS, ROUNDS = 8, 3


class _UnlookingStorage(FsspecStorage):
    """Leaves out the look before a put, so that all depends on whether the put itself is conditional.

    `create` then raises UnavailableError where the put was refused. It returns, or raises FileExistsError after what was put has been
    replaced, where the put was carried out.
    """

    def exists(self, name: str) -> bool:
        """Never known."""
        return False


def check_exclusive_create(url: str, key: str) -> None:
    """Make sure that of several processes that create an object at the same time exactly one does.

    Tried out by racing puts of a few objects, which are removed again. A local folder, whose hard links are exclusive, is tried as well:
    not every file system has them.

    Parameters
    ----------
    url
        Path or URL of the storage.
    key
        The setting that it comes from.

    Raises
    ------
    ConfigError
        More than one succeeded, or the storage is seen by this process only.
    UnavailableError
        The storage can't be written.
    """
    path = local_path(url)
    if path is None and url.startswith("memory:"):
        raise ConfigError("memory:// is seen by this process only", key=key, hint="use a place that all can reach")
    storage: Storage = _UnlookingStorage(url) if path is None else LocalStorage(path)
    existing = f"probes/{secrets.token_hex(8)}"
    names = [f"{existing}-{number}" for number in range(ROUNDS)]
    storage.write(existing, b"probe")
    try:
        is_replaced = _race(storage, existing)[0] > 0
        races = [_race(storage, name) for name in names]
    finally:
        for name in [existing, *names]:
            storage.delete(name)
    if is_replaced or any(carried_out > 1 for carried_out, _ in races):
        raise ConfigError(
            f"{redacted(url)} does not create an object only if it is absent, as a leader election needs",
            key=key,
            hint="use a local folder, an object store with conditional writes such as S3, or high-availability.type = redis",
        )
    if not any(carried_out for carried_out, _ in races):
        raise races[-1][1] or UnavailableError("storage", redacted(url), "it creates nothing")


def _race(storage: Storage, name: str) -> tuple[int, UnavailableError | None]:
    """How many of several creations of an object at the same time were carried out, and with which error one was refused."""
    start = threading.Barrier(RACERS)

    def create(number: int) -> bool | UnavailableError:
        start.wait()
        try:
            storage.create(name, b"%d" % number)
        except FileExistsError:
            return not isinstance(storage, LocalStorage)
        except UnavailableError as error:
            return error
        return True

    with ThreadPoolExecutor(RACERS) as racers:
        outcomes = list(racers.map(create, range(RACERS)))
    errors = [outcome for outcome in outcomes if isinstance(outcome, UnavailableError)]
    return sum(outcome is True for outcome in outcomes), errors[0] if errors else None
