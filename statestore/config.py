"""Configuration: a file, environment variables and `-D key=value`, checked key by key.

Precedence: `-D` over environment over file over the job's own defaults. Names follow Flink, whose dotted names are accepted as aliases. An
unknown key or a bad value is a `ConfigError` that names key, value, place and the nearest valid key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from statestore.errors import ConfigError, did_you_mean
from statestore.io import redacted
from statestore.keys import DEFAULT_MAX_PARALLELISM, MAX_PARALLELISM_LIMIT
from statestore.ttl import TimeDomain, UpdatePolicy
from statestore.units import Duration, Size, parse_duration, parse_size

T = TypeVar("T", bound="Section")

ENVIRONMENT_PREFIX = "STATESTORE__"


class Section(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A table of the configuration."""


class StateConfig(Section, frozen=True, kw_only=True):
    """`[state]`."""

    backend: str = "rocksdb"
    dir: str = ".statestore"
    """Local folder for logs and local state."""
    cache_size: Size = 256 << 20
    """Memory for decoded objects."""
    pending_size: Size = 64 << 20
    """Memory for what is committed and waits to be applied to the backend."""
    max_parallelism: int = DEFAULT_MAX_PARALLELISM
    ttl: Duration = 0.0
    """How long values live after the last touch, where a state declares nothing else; 0 is for ever."""
    ttl_update: UpdatePolicy = "on-create-and-write"
    """What counts as a touch."""
    ttl_time: TimeDomain = "processing-time"
    """Which clock."""
    allow_pickle: bool = False
    """Whether states may be declared with codec="pickle", whose values run code when they are read."""
    backends: dict[str, dict[str, Any]] = {}
    """The backends' own tables, `[state.<backend>]`, which each backend checks."""


class CheckpointingConfig(Section, frozen=True, kw_only=True):
    """`[checkpointing]`."""

    interval: Duration = 10.0
    mode: Literal["exactly-once", "at-least-once"] = "exactly-once"
    min_pause: Duration = 0.0
    """Least time from the end of a checkpoint to the beginning of the next."""
    timeout: Duration = 600.0
    tolerable_failed: int = 0
    """How many checkpoints in a row may fail before the job does."""
    num_retained: int = 3
    on_failure: bool = True
    """Whether what was processed before a job failed, or was told to stop, is made durable first."""
    orphan_age: Duration = 3600.0
    """How long files stay that no checkpoint names and none will; 0 is for ever."""
    dir: str | None = None
    base_ratio: float = 1.0
    """A new base is made when the deltas since the last exceed this share of its size."""
    base_min_size: Size = 64 << 20
    """And this size, or are so many that they would be packed: reading fewer is quick, and a base takes time from processing."""
    base_max_deltas: int = 64
    """A new base is made when there are more deltas than this."""
    base_max_age: Duration = 0.0
    """And when the last is older than this; 0 is never."""
    base_rate: Size = 0
    """Bytes a second at which bases and packed deltas are stored; 0 is as fast as it goes."""
    base_format: Literal["auto", "native", "portable"] = "auto"
    """Whether a base consists of the backend's own files; auto: where it can."""
    pack_deltas: int = 16
    """More small deltas in a row than this are merged into one."""
    inline_threshold: Size = 20 << 10
    """Files up to this size are kept in the manifest."""


class RecoveryConfig(Section, frozen=True, kw_only=True):
    """`[state-recovery]`."""

    lazy: bool = False
    """Whether a store that is restored from a checkpoint opens at once, and reads from the checkpoint what it has not copied yet."""
    parallelism: int = 4
    """How many files of a checkpoint are read at a time."""
    claim_mode: Literal["no-claim", "claim"] = "no-claim"
    """Whether a checkpoint or savepoint of elsewhere, once restored, belongs to this job, which then removes it in time."""


class RestartConfig(Section, frozen=True, kw_only=True):
    """`[restart]`."""

    type: Literal["none", "fixed-delay", "failure-rate", "exponential-delay"] = "exponential-delay"
    attempts: int = 1
    """fixed-delay: restarts without a checkpoint completed in between."""
    delay: Duration = 1.0
    """fixed-delay and failure-rate: from a failure to the restart."""
    max_failures_per_interval: int = 1
    """failure-rate: more than this many within `failure-rate-interval` fail the job."""
    failure_rate_interval: Duration = 60.0
    initial_backoff: Duration = 1.0
    """exponential-delay: the first delay; each is `backoff-multiplier` times the one before."""
    backoff_multiplier: float = 1.5
    max_backoff: Duration = 60.0
    reset_backoff_threshold: Duration = 3600.0
    """A job that has run for as long as this begins with the first delay again."""
    jitter_factor: float = 0.1
    """Share of a delay by which chance makes it longer or shorter."""
    attempts_before_reset_backoff: int | None = None
    """Restarts before that; without it, for ever."""


class HeartbeatConfig(Section, frozen=True, kw_only=True):
    """`[heartbeat]`."""

    interval: Duration = 10.0
    timeout: Duration = 50.0


class JobConfig(Section, frozen=True, kw_only=True):
    """`[job]`."""

    parallelism: int = 1
    """Number of workers."""
    on_error: Literal["fail", "skip", "dead-letter"] = "fail"
    """What happens to an event on which a function of the job fails."""
    restore_timeout: Duration = 600.0
    """How long a deployment may take without any progress until it begins to read."""
    stop_timeout: Duration = 30.0
    """How long workers may take to stop until they are killed."""


class HighAvailabilityConfig(Section, frozen=True, kw_only=True):
    """`[high-availability]`: several JobManagers of a job, one of which leads."""

    type: Literal["none", "file", "redis"] = "none"
    """Where the leader's lease is kept; none: there is only one JobManager."""
    dir: str | None = None
    """Path or fsspec URL for type = file, in a folder for each job; default `<state.dir>/<job>/ha`."""
    url: str | None = None
    """The server for type = redis."""
    lease_duration: Duration = 15.0
    """How long a leader that is not heard of counts as alive."""
    renew_interval: Duration = 5.0
    """How often the leader renews its lease; at most 0.4 of the lease's duration."""

    def __repr__(self) -> str:
        return f"HighAvailabilityConfig(type={self.type!r}, dir={redacted(self.dir or '')!r}, url={redacted(self.url or '')!r})"


class SourceConfig(Section, frozen=True, kw_only=True):
    """`[source]`."""

    on_error: Literal["fail", "skip", "dead-letter"] = "fail"
    """What happens to a record that can't be read."""
    dead_letter_dir: str | None = None
    """Where such records go with dead-letter; default `<state.dir>/<job>/dead-letter`."""


class EncryptionConfig(Section, frozen=True, kw_only=True):
    """`[encryption]`: where the keys are; without one, nothing is encrypted."""

    key_file: str | None = None
    """File of the key that everything is written with."""
    key_env: str | None = None
    """Environment variable that holds it, instead of a file."""
    previous_key_files: tuple[str, ...] = ()
    """Files of keys that are only read with."""
    previous_key_envs: tuple[str, ...] = ()
    allow_plaintext: bool = False
    """Whether what was written without a key may still be read."""


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration."""

    state: StateConfig = StateConfig()
    checkpointing: CheckpointingConfig = CheckpointingConfig()
    state_recovery: RecoveryConfig = RecoveryConfig()
    restart: RestartConfig = RestartConfig()
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    job: JobConfig = JobConfig()
    high_availability: HighAvailabilityConfig = HighAvailabilityConfig()
    source: SourceConfig = SourceConfig()
    encryption: EncryptionConfig = EncryptionConfig()

    def __repr__(self) -> str:
        return f"Config(state.backend={self.state.backend!r}, state.dir={self.state.dir!r})"


_ALIASES = {
    "execution.checkpointing.interval": "checkpointing.interval",
    "execution.checkpointing.mode": "checkpointing.mode",
    "execution.checkpointing.min-pause": "checkpointing.min-pause",
    "execution.checkpointing.timeout": "checkpointing.timeout",
    "execution.checkpointing.tolerable-failed-checkpoints": "checkpointing.tolerable-failed",
    "execution.checkpointing.num-retained": "checkpointing.num-retained",
    "execution.checkpointing.dir": "checkpointing.dir",
    "execution.checkpointing.data-inline-threshold": "checkpointing.inline-threshold",
    "state.checkpoints.dir": "checkpointing.dir",
    "state.checkpoints.num-retained": "checkpointing.num-retained",
    "execution.state-recovery.claim-mode": "state-recovery.claim-mode",
    "state.backend.type": "state.backend",
    "restart-strategy.type": "restart.type",
    "restart-strategy.fixed-delay.attempts": "restart.attempts",
    "restart-strategy.fixed-delay.delay": "restart.delay",
    "restart-strategy.failure-rate.delay": "restart.delay",
    "restart-strategy.failure-rate.max-failures-per-interval": "restart.max-failures-per-interval",
    "restart-strategy.failure-rate.failure-rate-interval": "restart.failure-rate-interval",
    "restart-strategy.exponential-delay.initial-backoff": "restart.initial-backoff",
    "restart-strategy.exponential-delay.backoff-multiplier": "restart.backoff-multiplier",
    "restart-strategy.exponential-delay.max-backoff": "restart.max-backoff",
    "restart-strategy.exponential-delay.reset-backoff-threshold": "restart.reset-backoff-threshold",
    "restart-strategy.exponential-delay.jitter-factor": "restart.jitter-factor",
    "restart-strategy.exponential-delay.attempts-before-reset-backoff": "restart.attempts-before-reset-backoff",
    "parallelism.default": "job.parallelism",
    "pipeline.max-parallelism": "state.max-parallelism",
    "high-availability.storageDir": "high-availability.dir",
    "high-availability.storage-dir": "high-availability.dir",
    "high-availability.kubernetes.leader-election.lease-duration": "high-availability.lease-duration",
    "high-availability.kubernetes.leader-election.retry-period": "high-availability.renew-interval",
}

# The short names, where a plain number of a duration is milliseconds.
_SHORT_ALIASES = {
    "state-backend": "state.backend",
    "state-timeout": "state.ttl",
    "checkpointing-mode": "checkpointing.mode",
    "checkpoint-interval": "checkpointing.interval",
    "min-pause-between-checkpoints": "checkpointing.min-pause",
    "checkpoint-dir": "checkpointing.dir",
}

_SECTIONS: dict[str, type[Section]] = {
    "state": StateConfig,
    "checkpointing": CheckpointingConfig,
    "state-recovery": RecoveryConfig,
    "restart": RestartConfig,
    "heartbeat": HeartbeatConfig,
    "job": JobConfig,
    "high-availability": HighAvailabilityConfig,
    "source": SourceConfig,
    "encryption": EncryptionConfig,
}

_AT_LEAST = {
    "max_parallelism": 1,
    "num_retained": 1,
    "tolerable_failed": 0,
    "attempts": 0,
    "parallelism": 1,
    "base_max_deltas": 1,
    "pack_deltas": 1,
    "max_failures_per_interval": 0,
    "backoff_multiplier": 1,
    "jitter_factor": 0,
    "attempts_before_reset_backoff": 0,
}


def load_config(
    *,
    file: str | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Configuration from all its sources.

    Parameters
    ----------
    file
        A TOML file.
    overrides
        `key=value` each, as given with `-D`.
    environ
        Environment; `STATESTORE__CHECKPOINTING__MIN_PAUSE` stands for `checkpointing.min-pause`.
    defaults
        The job's own settings by dotted key.

    Raises
    ------
    ConfigError
        A key is unknown, a value is bad, or the file can't be read.
    """
    settings: dict[str, tuple[Any, str]] = {}
    layers = [_from_mapping(defaults or {}, "the job's defaults")]
    if file is not None:
        layers.append(_from_file(file))
    layers += [_from_environment(environ or {}), _from_overrides(overrides)]
    for layer in layers:
        settings.update(layer)
    sections: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    backends: dict[str, dict[str, Any]] = {}
    for key, (value, place) in settings.items():
        section, _, name = key.partition(".")
        if section == "state" and "." in name:
            backend, _, option = name.partition(".")
            backends.setdefault(backend, {})[option] = value
            continue
        fields = _fields(_SECTIONS[section])
        sections[section][fields[name][0]] = _converted(fields[name][1], value, key, place)
    state = {**sections.pop("state"), "backends": backends}
    made: dict[str, Any] = {name.replace("-", "_"): _SECTIONS[name](**values) for name, values in sections.items()}
    config = Config(state=StateConfig(**state), **made)
    if config.state.max_parallelism > MAX_PARALLELISM_LIMIT:
        raise ConfigError(
            f"{config.state.max_parallelism} is over the limit {MAX_PARALLELISM_LIMIT}", key="state.max-parallelism"
        )
    return config


def parse_options(struct_type: type[T], table: Mapping[str, Any], place: str) -> T:
    """A backend's own table as its options.

    Parameters
    ----------
    struct_type
        A `Section`; its fields may be `Size` or `Duration`.
    place
        The table's name, e.g. `state.redis`, for messages.

    Raises
    ------
    ConfigError
        A key is unknown or a value is bad.
    """
    fields = _fields(struct_type)
    values = {}
    for name, value in table.items():
        if name not in fields:
            raise ConfigError("unknown key", key=f"{place}.{name}", hint=did_you_mean(name, fields))
        field, declared = fields[name]
        values[field] = _converted(declared, value, f"{place}.{name}", "")
    return struct_type(**values)


def _fields(struct_type: type[Section]) -> dict[str, tuple[str, Any]]:
    """Attribute name and type of each key of a table."""
    hints = get_type_hints(struct_type, include_extras=True)
    pairs = zip(struct_type.__struct_encode_fields__, struct_type.__struct_fields__, strict=True)
    return {key: (field, hints[field]) for key, field in pairs if field != "backends"}


def _converted(declared: Any, value: Any, key: str, place: str) -> Any:
    try:
        return _convert(declared, value, key)
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigError(str(error), key=key, place=place or None) from error


def _convert(declared: Any, value: Any, key: str) -> Any:
    if declared == Duration:
        return parse_duration(value)
    if declared == Size:
        return parse_size(value)
    if get_origin(declared) is Literal:
        choice = str(value).lower().replace("_", "-")
        if choice not in get_args(declared):
            raise ValueError(f"{value!r} is not one of {', '.join(get_args(declared))}")
        return choice
    if declared in (str, str | None) and not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    if declared == tuple[str, ...] and isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    try:
        converted = msgspec.convert(value, declared, strict=False)
    except msgspec.ValidationError:
        what = {int: "a number", float: "a number", bool: "true or false"}
        raise ValueError(f"{value!r} is not {what.get(declared, declared)}") from None
    least = _AT_LEAST.get(key.rpartition(".")[2].replace("-", "_"))
    if least is not None and converted is not None and converted < least:
        raise ValueError(f"{value!r} is less than {least}")
    return converted


def _known_key(key: str, value: Any, place: str) -> tuple[str, Any]:
    """The key's own name and its value, whatever alias was used."""
    if key in _SHORT_ALIASES:
        key = _SHORT_ALIASES[key]
        if key in ("state.ttl", "checkpointing.interval", "checkpointing.min-pause"):
            try:
                value = f"{parse_duration(value, plain_unit='ms')}s"
            except ValueError as error:
                raise ConfigError(str(error), key=key, place=place) from error
    key = _ALIASES.get(key, key)
    section, _, name = key.partition(".")
    if section in _SECTIONS and (name in _fields(_SECTIONS[section]) or (section == "state" and "." in name)):
        return key, value
    known = [f"{section}.{name}" for section, type_ in _SECTIONS.items() for name in _fields(type_)]
    raise ConfigError("unknown key", key=key, place=place, hint=did_you_mean(key, known))


def _from_mapping(values: Mapping[str, Any], place: str) -> dict[str, tuple[Any, str]]:
    found = {}
    for key, value in values.items():
        name, value = _known_key(key, value, place)
        found[name] = (value, place)
    return found


def _from_file(file: str) -> dict[str, tuple[Any, str]]:
    try:
        document = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("there is no such file", place=file) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"the file can't be read: {error}", place=file) from error
    return _from_mapping(_flattened(document), file)


def _flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found = {}
    for variable, value in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".").replace("_", "-")
            place = f"environment {variable}"
            name, converted = _known_key(key, value, place)
            found[name] = (converted, place)
    return found


def _from_overrides(overrides: Sequence[str]) -> dict[str, tuple[Any, str]]:
    found = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{redacted(override)}' is not key=value", place="-D")
        name, converted = _known_key(key.strip(), value, "-D")
        found[name] = (converted, "-D")
    return found
