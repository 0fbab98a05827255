"""State that is spread over several stores, each with a range of the key groups: one checkpoint of all, and its restore by others.

Invariants:
- the manifest of a job's checkpoint is put together of those that its stores have made for the same moment, and completed once;
- a store whose key groups are no part of the checkpoint inherits: its base is what the parts that overlap them have of them, read where it
  lies. Segments that hold nothing of these key groups are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from statestore.checkpoint.manifest import (
    Base,
    BaseEntry,
    Delta,
    InheritedBase,
    LogDelta,
    Manifest,
    Part,
    SegmentEntry,
)
from statestore.checkpoint.snapshot import CheckpointInfo
from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import IncompatibleStateError, UsageError
from statestore.keys import group_of_entry
from statestore.ttl import StoredTtl, Times
from statestore.types import Epoch
from statestore.wal.record import StateDescriptor


def part_for(manifest: Manifest, key_groups: range) -> Part:
    """What a store of `key_groups` goes on from: the checkpoint's part of just these, or one that inherits them."""
    own = manifest.part_of(key_groups)
    if own is not None:
        return own
    parts = [_clipped(part, key_groups) for part in manifest.parts if _common(part.key_groups, key_groups)]
    epoch = Epoch(max(part.epoch for part in parts))
    name = f"{manifest.job}/{manifest.attempt}/{manifest.checkpoint_id}/{key_groups.start}-{key_groups.stop}"
    return Part(
        first_key_group=key_groups.start,
        last_key_group=key_groups.stop - 1,
        epoch=epoch,
        base=InheritedBase(epoch=epoch, parts=parts),
        deltas=[],
        log_sequence=0,
        log_sha256=hashlib.sha256(
            name.encode()
        ).hexdigest(),  # so that the log which begins here is known to continue it
        uploaded_bytes=0,
    )


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _clipped(part: Part, key_groups: range) -> Part:
    """A part's share of `key_groups`."""
    common = _common(part.key_groups, key_groups)
    return replace(
        part,
        first_key_group=common.start,
        last_key_group=common.stop - 1,
        base=_clipped_base(part.base, common),
        deltas=[_clipped_delta(delta, common) for delta in part.deltas],
    )


def _clipped_base(base: Base | None, key_groups: range) -> Base | None:
    if isinstance(base, BaseEntry):
        return replace(base, segments=_overlapping(base.segments, key_groups))
    if isinstance(base, InheritedBase):
        parts = [_clipped(part, key_groups) for part in base.parts if _common(part.key_groups, key_groups)]
        return replace(base, parts=parts)
    return base


def _clipped_delta(delta: Delta, key_groups: range) -> Delta:
    if isinstance(delta, LogDelta):
        return delta
    return replace(delta, segments=_overlapping(delta.segments, key_groups))


def _overlapping(segments: list[SegmentEntry], key_groups: range) -> list[SegmentEntry]:
    return [
        segment
        for segment in segments
        if group_of_entry(segment.first_key) < key_groups.stop and group_of_entry(segment.last_key) >= key_groups.start
    ]


def complete_parts(
    checkpoints: CheckpointStorage,
    manifests: Sequence[Manifest],
    meta: dict[str, Any] | None = None,
    *,
    seconds: float = 0.0,
) -> CheckpointInfo:
    """Complete the checkpoint whose parts several stores have uploaded; then every store's `complete` is due.

    Parameters
    ----------
    meta
        What is kept with the checkpoint; by default that of the first part.
    seconds
        How long it has taken.

    Raises
    ------
    UsageError, IncompatibleStateError
        As `combined` does.
    FencedError, UnavailableError
        As `CheckpointStorage.complete` does.
    """
    manifest = checkpoints.complete_next(combined(manifests, meta))
    return CheckpointInfo.of(manifest, checkpoints, seconds)


def combined(manifests: Sequence[Manifest], meta: dict[str, Any] | None = None) -> Manifest:
    """The manifest of a checkpoint whose parts several stores have uploaded.

    Parameters
    ----------
    meta
        What is kept with the checkpoint; by default that of the first.

    Raises
    ------
    UsageError
        They don't belong together, or don't cover every key group once.
    IncompatibleStateError
        Two of the stores have registered different states under one number.
    """
    first = manifests[0]
    for manifest in manifests:
        if _identity(manifest) != _identity(first):
            raise UsageError(f"no checkpoint can be made of parts of {_identity(first)} and of {_identity(manifest)}")
    parts = sorted((part for manifest in manifests for part in manifest.parts), key=lambda part: part.first_key_group)
    if [group for part in parts for group in part.key_groups] != list(range(first.max_parallelism)):
        ranges = ", ".join(f"{part.first_key_group} to {part.last_key_group}" for part in parts)
        raise UsageError(
            f"the parts have the key groups {ranges}, and not each of 0 to {first.max_parallelism - 1} once"
        )
    return replace(
        first,
        checkpoint_id=max(manifest.checkpoint_id for manifest in manifests),
        created=max(manifest.created for manifest in manifests),
        states=_merged_states(manifests),
        parts=parts,
        meta=first.meta if meta is None else meta,
        times=_latest([manifest.times for manifest in manifests]),
    )


def _identity(manifest: Manifest) -> str:
    return f"{manifest.kind} of job '{manifest.job}', attempt {manifest.attempt}, max parallelism {manifest.max_parallelism}"


def _merged_states(manifests: Sequence[Manifest]) -> list[StateDescriptor]:
    merged: dict[int, StateDescriptor] = {}
    for manifest in manifests:
        for state in manifest.states:
            known = merged.setdefault(state.id, state)
            if known == state:
                continue
            if replace(known, ttl=None) != replace(state, ttl=None):
                raise IncompatibleStateError(
                    f"one store has registered '{known.name}' as its state {state.id}, another one '{state.name}': "
                    "register the same states in the same order everywhere"
                )
            merged[state.id] = replace(known, ttl=_later(known.ttl, state.ttl))
    names = [state.name for state in merged.values()]
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise IncompatibleStateError(
            f"the stores have registered '{doubled}' under different numbers: register the same states in the same order everywhere"
        )
    return list(merged.values())


def _later(one: StoredTtl | None, other: StoredTtl | None) -> StoredTtl | None:
    """Of two moments at which a time-out was switched on the later, so that nothing expires early."""
    return max(filter(None, (one, other)), key=lambda ttl: ttl.since_ms or 0)


def _latest(times: Sequence[Times]) -> Times:
    """Clocks that go back for none of the stores."""
    known = [time.event_ms for time in times if time.event_ms is not None]
    return Times(max(time.processing_ms for time in times), max(known, default=None))
