"""Settings from everywhere, in their order; mistakes are named with place and mend."""

from __future__ import annotations

import pytest

from statestore import Config, ConfigError, load_config
from statestore.config import parse_options
from statestore_backends.redis import RedisOptions


def test_precedence(tmp_path):
    file = tmp_path / "statestore.toml"
    file.write_text("[checkpointing]\ninterval = '3s'\nmin-pause = '3s'\ntimeout = '3s'\n")
    config = load_config(
        defaults={
            "checkpointing.interval": "4s",
            "checkpointing.min-pause": "4s",
            "checkpointing.timeout": "4s",
            "checkpointing.num-retained": 4,
        },
        file=str(file),
        environ={
            "STATESTORE__CHECKPOINTING__INTERVAL": "2s",
            "STATESTORE__CHECKPOINTING__MIN_PAUSE": "2s",
            "HOME": "/",
        },
        overrides=["checkpointing.interval=1s"],
    ).checkpointing
    assert (config.interval, config.min_pause, config.timeout, config.num_retained) == (1, 2, 3, 4)


def test_nothing_given():
    assert load_config() == Config()


@pytest.mark.parametrize(
    ("setting", "section", "field", "value"),
    [
        ("execution.checkpointing.interval=5s", "checkpointing", "interval", 5),
        ("execution.checkpointing.tolerable-failed-checkpoints=2", "checkpointing", "tolerable_failed", 2),
        ("execution.checkpointing.data-inline-threshold=1kb", "checkpointing", "inline_threshold", 1024),
        ("state.backend.type=redis", "state", "backend", "redis"),
        ("state.checkpoints.num-retained=7", "checkpointing", "num_retained", 7),
        ("restart-strategy.type=none", "restart", "type", "none"),
        ("restart-strategy.fixed-delay.delay=2min", "restart", "delay", 120),
        ("pipeline.max-parallelism=16", "state", "max_parallelism", 16),
        ("state-backend=memory", "state", "backend", "memory"),
        ("checkpoint-interval=1500", "checkpointing", "interval", 1.5),
        ("checkpoint-interval=2s", "checkpointing", "interval", 2),
        ("min-pause-between-checkpoints=250", "checkpointing", "min_pause", 0.25),
        ("checkpoint-dir=s3://b/c", "checkpointing", "dir", "s3://b/c"),
        ("checkpointing-mode=AT_LEAST_ONCE", "checkpointing", "mode", "at-least-once"),
        ("state.allow-pickle=true", "state", "allow_pickle", True),
        ("state.cache-size=1.5gb", "state", "cache_size", 3 << 29),
        ("source.on-error=DEAD_LETTER", "source", "on_error", "dead-letter"),
        ("high-availability.type=FILE", "high_availability", "type", "file"),
        ("high-availability.storageDir=s3://b/ha", "high_availability", "dir", "s3://b/ha"),
        ("high-availability.storage-dir=/ha", "high_availability", "dir", "/ha"),
        ("high-availability.lease-duration=30s", "high_availability", "lease_duration", 30),
        ("high-availability.kubernetes.leader-election.lease-duration=9s", "high_availability", "lease_duration", 9),
        ("high-availability.kubernetes.leader-election.retry-period=2s", "high_availability", "renew_interval", 2),
    ],
)
def test_aliases_and_units(setting, section, field, value):
    assert getattr(getattr(load_config(overrides=[setting]), section), field) == value


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("checkpointing.intervall=5s", ["checkpointing.intervall", "did you mean 'checkpointing.interval'"]),
        ("heartbeet.interval=5s", ["heartbeet.interval", "did you mean 'heartbeat.interval'"]),
        ("checkpointing.interval=5", ["checkpointing.interval", "'5'", "unit"]),
        ("checkpointing.interval=-5s", ["checkpointing.interval"]),
        ("checkpointing.interval=5 parsecs", ["checkpointing.interval", "parsecs"]),
        ("state.cache-size=lots", ["state.cache-size", "lots"]),
        ("state.allow-pickle=perhaps", ["state.allow-pickle", "true or false"]),
        ("checkpointing.mode=sometimes", ["checkpointing.mode", "sometimes", "exactly-once, at-least-once"]),
        ("checkpointing.num-retained=three", ["checkpointing.num-retained", "three", "a number"]),
        ("restart.attempts=-1", ["restart.attempts", "less than 0"]),
        ("state.max-parallelism=40000", ["state.max-parallelism", "32768"]),
        ("state.ttl=soon", ["state.ttl", "soon"]),
        ("state.ttl-time=local", ["state.ttl-time", "local", "processing-time, event-time"]),
        ("state-recovery.lazy=perhaps", ["state-recovery.lazy", "perhaps", "true or false"]),
        ("state-recovery.parallelism=0", ["state-recovery.parallelism", "less than 1"]),
        ("high-availability.type=zookeeper", ["high-availability.type", "zookeeper", "none, file, redis"]),
        (
            "high-availability.lease-time=5s",
            ["high-availability.lease-time", "did you mean 'high-availability.lease-duration'"],
        ),
        ("nonsense", ["nonsense", "key=value"]),
        ("=5", ["key=value"]),
    ],
)
def test_mistakes(setting, parts):
    with pytest.raises(ConfigError) as raised:
        load_config(overrides=[setting])
    for part in parts:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_mistakes_name_their_place(tmp_path):
    file = tmp_path / "statestore.toml"
    file.write_text("[state]\ncache-size = 'x'\n")
    with pytest.raises(ConfigError, match=r"statestore\.toml"):
        load_config(file=str(file))
    file.write_text("[state]\nbackend = 7\n")
    with pytest.raises(ConfigError, match=r"state\.backend.*7 is not text"):
        load_config(file=str(file))
    file.write_text("not toml")
    with pytest.raises(ConfigError, match=r"statestore\.toml.*can't be read"):
        load_config(file=str(file))
    with pytest.raises(ConfigError, match="no such file"):
        load_config(file=str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match="STATESTORE__STATE__BAKEND"):
        load_config(environ={"STATESTORE__STATE__BAKEND": "x"})
    with pytest.raises(ConfigError, match="the job's defaults"):
        load_config(defaults={"state.bakend": "x"})


def test_a_backends_own_table():
    config = load_config(overrides=["state.redis.url=redis://h/0", "state.redis.socket-timeout=2s"])
    assert config.state.backends == {"redis": {"url": "redis://h/0", "socket-timeout": "2s"}}
    options = parse_options(RedisOptions, config.state.backends["redis"], "state.redis")
    assert (options.url, options.socket_timeout) == ("redis://h/0", 2)
    with pytest.raises(ConfigError, match=r"state\.redis\.ulr.*did you mean 'url'"):
        parse_options(RedisOptions, {"ulr": "x"}, "state.redis")


def test_secrets_do_not_show():
    config = load_config(overrides=["state.redis.url=redis://:canary@h/0"])
    assert "canary" not in f"{config}{config!r}"
    overrides = ["high-availability.url=redis://:canary@h/0", "high-availability.dir=s3://b/ha?key=canary"]
    high_availability = load_config(overrides=overrides).high_availability
    assert "canary" not in f"{high_availability}"
    assert "redis://:***@h/0" in f"{high_availability}"
    with pytest.raises(ConfigError) as raised:
        load_config(overrides=["redis://:canary@h/0"])
    assert "canary" not in str(raised.value)
