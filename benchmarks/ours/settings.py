"""Configurations of what is measured."""

from __future__ import annotations

from statestore.config import Config, load_config

BACKENDS = ("memory", "rocksdb", "filesystem", "redis")


def config_for(backend: str, folder: str, redis_url: str, *settings: str) -> Config:
    """State and checkpoints in `folder`, a checkpoint each second."""
    return load_config(overrides=overrides_for(backend, folder, redis_url, *settings))


def overrides_for(backend: str, folder: str, redis_url: str, *settings: str) -> list[str]:
    """The settings, as the command line takes them."""
    overrides = [
        f"state.backend={backend}",
        f"state.dir={folder}/state",
        f"checkpointing.dir={folder}/checkpoints",
        "checkpointing.interval=1s",
        "checkpointing.mode=exactly-once",
        *settings,
    ]
    return [*overrides, f"state.redis.url={redis_url}"] if backend == "redis" else overrides
