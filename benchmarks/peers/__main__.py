"""`python -m benchmarks.peers NAME`: what to install for a peer that runs in an environment of its own."""

import sys

from benchmarks.peers import PEERS

if __name__ == "__main__":
    print("\n".join(PEERS[sys.argv[1]].requirements))
