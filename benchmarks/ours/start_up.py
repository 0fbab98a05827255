"""How long fresh processes take."""

from __future__ import annotations

import os
import subprocess
import sys
import time

STARTS = 5
IMPORT = "import time; begun = time.perf_counter(); import statestore; print(time.perf_counter() - begun)"


def started(what: str) -> dict[str, float]:
    """Seconds and peak memory of the best of several starts; of an import, the import's own seconds."""
    command = {
        "python": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", IMPORT],
        "help": [sys.executable, "-m", "statestore_runtime.cli", "--help"],
    }[what]
    seconds, peak = [], 0.0
    for _ in range(STARTS):
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        seconds.append(float(out) if what == "import" else time.perf_counter() - begun)
        peak = max(peak, usage.ru_maxrss / 1024)
    return {"seconds": min(seconds), "peak_mib": peak}
