"""What a checkpoint of a job knows beside the state: one dictionary, put together of what each worker contributes.

{
  "events": 1200,                                   read by all sources
  "skipped": 0,                                     passed over because a function failed on them
  "operators": ["process-1"],                       with state per key
  "sources": {"source-1": {"splits": {"a.jsonl": {"position": ..., "skip": 0, "newest": 1700000000000}, "c.jsonl": null},
                           "finished": {"b.jsonl": null}, "bad_records": 0}},
  "sinks": {"sink-1": {"transactions": [...], "snapshots": {"0": ..., "1": ...}}},
  "states": {"process-2": [...]}                    of operators, not per key: one of each worker
}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from statestore.errors import IncompatibleStateError

Meta = dict[str, Any]

DEAD_LETTER = ".dead-letter"
"""Ends the uid of the sink that takes what an operator could not process."""


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


def check_uids(meta: Meta, job: Mapping[str, Sequence[str]]) -> None:
    """See whether a job has everything that a checkpoint knows; it may have more.

    Parameters
    ----------
    job
        Uids of its "sources", "operators" with state, and "sinks".

    Raises
    ------
    IncompatibleStateError
        It lacks one.
    """
    for kind, uids in job.items():
        for uid in meta.get(kind, ()):
            is_dead_letter = kind == "sinks" and uid.endswith(DEAD_LETTER)  # it comes and goes with a setting
            if uid not in uids and not is_dead_letter:
                raise IncompatibleStateError(
                    f"the checkpoint knows a {kind[:-1]} '{uid}', the job has none: give it that uid again "
                    f"(the job's {kind} are {', '.join(uids) or 'none'}), or start over with --restore none"
                )
