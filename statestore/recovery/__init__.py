"""Brings a store to a consistent epoch when it is opened.

Where state can come from, in the order of preference:

1. the backend as it survived, and the local log from its marker on: costs what was not yet applied, however large the state is;
2. a checkpoint's base and deltas into an emptied backend, and then the local log if it continues that checkpoint.

Invariants:
- a surviving backend is used only when its stamp (attempt and epoch, written in the same batch as the data) names an epoch that
  the local log holds from the same attempt: an epoch number alone could belong to a history that was given up;
- what was committed after the checkpoint counts only if `tail_counts`: an embedded store's own commits do, a job's do not, since its
  sources and sinks go back to the checkpoint with it;
- nothing starts empty where something was expected;
- each manifest and each log segment is read once.

`choosing` decides, `local` knows log and backend as they survived, `loading` fills a backend from a checkpoint.
"""

from statestore.recovery.choosing import Recovery
from statestore.recovery.loading import Loader
from statestore.recovery.recovered import Recovered

__all__ = ["Loader", "Recovered", "Recovery"]
