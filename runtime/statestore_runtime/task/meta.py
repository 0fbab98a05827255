"""What a checkpoint of a job knows beside the state: one dictionary, put together of what each worker contributes.

{
  "events": 1200,                                   read by all sources
  "skipped": 0,                                     passed over because a function failed on them
  "operators": ["process-1"],                       with state per key
  "sources": {"source-1": {"splits": {"a.jsonl": {"position": ..., "skip": 0}}, "finished": {"b.jsonl": {...}},
                        "bad_records": 0}},
  "sinks": {"sink-1": {"transactions": [...], "snapshots": {"0": ..., "1": ...}}},
  "states": {"process-2": [...]},                   of operators, not per key: one of each worker
  "watermark": 1700000000000
}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Meta = dict[str, Any]


def merged_meta(metas: Sequence[Meta]) -> Meta:
    """What a checkpoint knows, of what its workers know."""
    return {
        "events": sum(meta["events"] for meta in metas),
        "skipped": sum(meta["skipped"] for meta in metas),
        "operators": metas[0]["operators"],
        "sources": {uid: _merged_source([meta["sources"][uid] for meta in metas]) for uid in metas[0]["sources"]},
        "sinks": {uid: _merged_sink([meta["sinks"][uid] for meta in metas]) for uid in metas[0]["sinks"]},
        "states": _merged_states([meta["states"] for meta in metas]),
    }


def _merged_states(states: Sequence[Meta]) -> Meta:
    """Not every worker has something to keep of an operator."""
    merged: Meta = {}
    for of_worker in states:
        for uid, kept in of_worker.items():
            merged.setdefault(uid, []).extend(kept)
    return merged


def _merged_source(sources: Sequence[Meta]) -> Meta:
    return {
        "splits": {split: at for source in sources for split, at in source["splits"].items()},
        "finished": {split: at for source in sources for split, at in source["finished"].items()},
        "bad_records": sum(source["bad_records"] for source in sources),
    }


def _merged_sink(sinks: Sequence[Meta]) -> Meta:
    return {
        "transactions": [each for sink in sinks for each in sink["transactions"]],
        "snapshots": {subtask: taken for sink in sinks for subtask, taken in sink["snapshots"].items()},
    }


def known_splits(meta: Meta, uid: str) -> list[str]:
    """All splits of a source that a checkpoint knows, finished ones included, in order."""
    known = meta.get("sources", {}).get(uid)
    return sorted([*known["splits"], *known["finished"]]) if known is not None else []
