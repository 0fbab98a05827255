"""`python -m statestore_runtime.cli` is `statestore`, whatever is on the path."""

import sys

from statestore_runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
