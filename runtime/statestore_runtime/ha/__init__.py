"""High availability: of several JobManagers of a job one leads, and when it dies another one takes over.

- `open_high_availability` gives what the configuration asks for: a `LeaderThread`, which elects, a `LatestPointer` and a `RunRecorder`.
- `Election` decides, by a `Lease` in a `LeaseStore`; it is a state machine without I/O.
- A `Register` is what leases and pointers are kept in: `StorageRegister` for files and object stores, `redis_register.RedisRegister`, which
  is imported where it is asked for.
"""

from statestore_runtime.ha.election import Election
from statestore_runtime.ha.leader_thread import LeaderThread, LeaseClock
from statestore_runtime.ha.lease import Lease, LeaseStore, RegisterLeaseStore
from statestore_runtime.ha.opening import HighAvailability, high_availability_dir, open_high_availability
from statestore_runtime.ha.pointer import Latest, LatestPointer
from statestore_runtime.ha.register import Register
from statestore_runtime.ha.run_record import RunEnd, RunRecord, RunRecorder
from statestore_runtime.ha.storage_register import StorageRegister

__all__ = [
    "Election",
    "HighAvailability",
    "Latest",
    "LatestPointer",
    "LeaderThread",
    "Lease",
    "LeaseClock",
    "LeaseStore",
    "Register",
    "RegisterLeaseStore",
    "RunEnd",
    "RunRecord",
    "RunRecorder",
    "StorageRegister",
    "high_availability_dir",
    "open_high_availability",
]
