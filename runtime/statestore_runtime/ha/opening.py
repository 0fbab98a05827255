"""The parts of high availability, as the configuration asks for them.

    <dir>/<job>/lease/     the lease, see `storage_register.py`
    <dir>/<job>/latest/    the pointer to the latest checkpoint
    <dir>/<job>/run/       the record of the run

In Redis they are the keys `statestore:{<job>}:ha:lease`, `...:latest` and `...:run`.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from statestore.checkpoint.storage import checked_job_name
from statestore.clock import Clock
from statestore.config import Config
from statestore.errors import ConfigError
from statestore.io import local_path, open_storage, redacted
from statestore.opening import keyring
from statestore_runtime.ha.election import Election
from statestore_runtime.ha.leader_thread import LeaderThread, LeaseClock
from statestore_runtime.ha.lease import RegisterLeaseStore
from statestore_runtime.ha.pointer import LatestPointer
from statestore_runtime.ha.probing import check_exclusive_create
from statestore_runtime.ha.register import Register
from statestore_runtime.ha.run_record import RunRecorder
from statestore_runtime.ha.storage_register import StorageRegister


@dataclass(frozen=True)
class HighAvailability:
    """What a JobManager needs to be one of several.

    Attributes
    ----------
    leader : LeaderThread
        The election, not started yet.
    latest : LatestPointer
        The job's latest checkpoint, for and from the leader.
    run : RunRecorder
        Which run it is, for and from the leader.
    """

    leader: LeaderThread
    latest: LatestPointer
    run: RunRecorder
    _disconnect: Callable[[], None]

    def close(self) -> None:
        """Resign, and close the connection to the store."""
        self.leader.close()
        self._disconnect()


def open_high_availability(
    config: Config,
    job: str,
    *,
    address: str = "",
    above: int = 0,
    on_lost: Callable[[int], None] | None = None,
    clock: Clock | None = None,
) -> HighAvailability | None:
    """Connect to the store of leases and check that it is fit for it; None where high availability is not configured.

    Parameters
    ----------
    job
        Of which the leader is elected: all candidates give the same name.
    address
        Where this process is reached once it leads.
    above
        Fencing tokens are greater than this: give the number of the newest attempt that is known.
    on_lost
        See `LeaderThread`.
    clock
        Its monotonic time should go on while the machine sleeps; default: the machine's that does.

    Raises
    ------
    ConfigError
        A setting is bad, or the store can't be relied upon.
    UnavailableError
        The store does not answer.
    """
    settings = config.high_availability
    if settings.type == "none":
        return None
    election = Election(
        clock or LeaseClock(),
        f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}",
        address=address,
        lease_seconds=settings.lease_duration,
        renew_seconds=settings.renew_interval,
        above=above,
        can_forget=settings.type == "redis",
    )
    open_registers = _in_redis if settings.type == "redis" else _in_storage
    lease, latest, run, disconnect = open_registers(config, checked_job_name(job))
    leader = LeaderThread(election, RegisterLeaseStore(lease), on_lost=on_lost)
    return HighAvailability(leader, LatestPointer(latest), RunRecorder(run), disconnect)


_Registers = tuple[Register, Register, Register, Callable[[], None]]


def _in_storage(config: Config, job: str) -> _Registers:
    place = high_availability_dir(config, job)
    check_exclusive_create(place, "high-availability.dir")
    storage = open_storage(place, keyring(config))
    lease, latest, run = (StorageRegister(storage, name) for name in ("lease", "latest", "run"))
    return lease, latest, run, lambda: None


def _in_redis(config: Config, job: str) -> _Registers:
    from statestore_runtime.ha.redis_register import RedisRegister, connect  # slow to import

    url = config.high_availability.url
    if url is None:
        raise ConfigError("it is not set", key="high-availability.url", hint="give it like redis://host:6379/0")
    client = connect(url, config.high_availability.renew_interval, "high-availability.url")
    lease, latest, run = (
        RedisRegister(client, f"statestore:{{{job}}}:ha:{name}", redacted(url)) for name in ("lease", "latest", "run")
    )
    return lease, latest, run, client.close


def high_availability_dir(config: Config, job: str) -> str:
    """Path or URL of a job's part of the store."""
    root = config.high_availability.dir
    if root is None:
        return str(PurePath(config.state.dir, job, "ha"))
    return str(PurePath(path, job)) if (path := local_path(root)) is not None else f"{root.rstrip('/')}/{job}"
