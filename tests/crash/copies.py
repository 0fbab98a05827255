"""What the processes do that test_copies.py kills."""

from __future__ import annotations

import statestore
from statestore import Place, copying


def migrate(source, target, folder=None):
    copying.PIECE_ENTRIES = 30
    target = Place(target, dir=folder) if target.startswith("redis") else target
    print(statestore.migrate(source, target).resumed_at)


def savepoint(source, target):
    copying.PIECE_ENTRIES = 30
    with statestore.open(source) as store:
        store.savepoint(target)


def claim(source, target):
    _claim(source, target)


def go_on(source, target):
    _claim("latest", target)


def _claim(restore, target):
    with statestore.open(f"rocksdb://{target}", restore=restore, claim_mode="claim") as store:
        for _ in range(3):
            store.checkpoint()
