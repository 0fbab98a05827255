"""Checkpoints made by hand, for tests of what happens to them."""

from __future__ import annotations

import hashlib

from statestore.checkpoint.manifest import LogDelta, Manifest, Part
from statestore.ttl import Times


def delta(path, first, last, data=b""):
    return LogDelta(
        path=path,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        sequence=last,
        first_epoch=first,
        last_epoch=last,
    )


def manifest(number, deltas=None, *, attempt=1, job="job"):
    deltas = deltas if deltas is not None else [delta("shared/d-1", 1, number)]
    part = Part(
        first_key_group=0,
        last_key_group=127,
        epoch=deltas[-1].last_epoch,
        base=None,
        deltas=deltas,
        log_sequence=number,
        log_sha256="ab" * 32,
        uploaded_bytes=0,
    )
    return Manifest(
        job=job,
        checkpoint_id=number,
        attempt=attempt,
        created=1.5,
        kind="checkpoint",
        run="r",
        max_parallelism=128,
        states=[],
        parts=[part],
        meta={"sources": {"s": {"position": 7}}},
        times=Times(),
    )


def naming(number, paths, *, attempt=1):
    """A manifest that names these files."""
    return manifest(number, [delta(path, 1, 1) for path in paths], attempt=attempt)
