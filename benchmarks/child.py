"""The process of one measurement: calls a function, and writes down what it returns, when it ended and what it took.

`python -m benchmarks.child OUT MODULE:FUNCTION ARGUMENTS`; the arguments are JSON. Runs in the environments of other systems, so it imports
nothing but the standard library.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from pathlib import Path


def peak_mib() -> float:
    """The most memory that this process has taken. Not `ru_maxrss`, which begins with what the parent had when it started this process."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    out, function, arguments = sys.argv[1:]
    module, name = function.split(":")
    returned = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    ended, peak = time.monotonic(), peak_mib()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    document = {
        "value": returned.checked() if hasattr(returned, "checked") else returned,
        "ended": ended,
        "peak_mib": peak,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used),
    }
    Path(out).write_text(json.dumps(document))


if __name__ == "__main__":
    main()
