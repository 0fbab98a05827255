"""For tests of jobs: scripts with crashes in them, a clock that only a test moves, and functions driven by hand."""

from statestore_runtime.testing.clock import HarnessClock
from statestore_runtime.testing.function_harness import KeyedFunctionHarness, Snapshot
from statestore_runtime.testing.job_harness import JobHarness
from statestore_runtime.testing.markers import ADVANCE, CALL, CHECKPOINT, CRASH, EOF, RESCALE, RESTART, Marker
from statestore_runtime.testing.script import ScriptedCrashError, ScriptedSource

__all__ = [
    "ADVANCE",
    "CALL",
    "CHECKPOINT",
    "CRASH",
    "EOF",
    "RESCALE",
    "RESTART",
    "HarnessClock",
    "JobHarness",
    "KeyedFunctionHarness",
    "Marker",
    "ScriptedCrashError",
    "ScriptedSource",
    "Snapshot",
]
