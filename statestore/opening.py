"""Opening a store from a URL or a configuration: where its parts lie, and in which order they are claimed.

<state.dir>/<job>/lock            held while the store is open
<state.dir>/<job>/log/            the write-ahead log
<state.dir>/<job>/<backend>/      what the backend keeps on the local disk, if anything
<state.dir>/<job>/tmp/            temporary files, gone when the store is closed or opened again
<state.dir>/checkpoints/<job>/    checkpoints, unless checkpointing.dir says otherwise
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from statestore.backend import Backend, BackendContext, SupportsNativeCheckpoint, backend_class
from statestore.checkpoint.renewal import RenewalSettings
from statestore.checkpoint.storage import CheckpointStorage, checked_job_name
from statestore.clock import Clock, SystemClock
from statestore.config import Config
from statestore.errors import ConfigError, FencedError, UsageError
from statestore.io import (
    AppendStorage,
    EncryptedAppendStorage,
    FolderLock,
    Keyring,
    LocalStorage,
    MemoryStorage,
    OpenStorage,
    Storage,
    load_keyring,
    open_storage,
    redacted,
    remove_folder,
)
from statestore.keys import MAX_PARALLELISM_LIMIT
from statestore.progress import OnRestoreProgress
from statestore.store import StateStore, StoreSettings
from statestore.ttl import TimeToLive
from statestore.types import Attempt
from statestore.wal.log import Log


def open(
    target: str | Config,
    *,
    checkpoint_dir: str | None = None,
    max_parallelism: int | None = None,
    key_type: Any = str,
    restore: str | None = None,
    job: str = "store",
    dir: str | os.PathLike[str] | None = None,
    allow_pickle: bool | None = None,
    claim_mode: Literal["no-claim", "claim"] | None = None,
    clock: Clock | None = None,
    lazy: bool | None = None,
    on_restore_progress: OnRestoreProgress | None = None,
) -> StateStore:
    """Open a keyed-state store in this program.

    Parameters
    ----------
    target
        `memory://`, `rocksdb:///path`, `file:///path`, `filesystem+s3://bucket/prefix`, `redis://host:6379/0`, or a `Config`.
    checkpoint_dir
        Path or fsspec URL for checkpoints; default `checkpoints` in the local folder.
    max_parallelism
        Number of key groups, fixed for the life of the state; default 128.
    key_type
        Type of the keys: str, int, bytes, bool, a tuple of these, or a frozen msgspec.Struct.
    restore
        None: go on with the local state, or start empty where there is neither local state nor a checkpoint.
        "latest": local state or the newest checkpoint, whichever is further on. The path of a checkpoint or savepoint: exactly that,
        giving up what came after. "none": start empty.
    job
        Name of the store below the checkpoint directory and in a shared backend.
    dir
        Local folder for the log and for what the backend keeps locally; default: the URL's path, or `.statestore/<job>`. A `memory://`
        store without it keeps everything in memory and forgets it when the process ends.
    allow_pickle
        Whether states may be declared with codec="pickle": reading them runs what code whoever can write the state puts there.
    claim_mode
        "claim": what is restored from elsewhere belongs to this store, which removes it once it needs it no more; see
        `state-recovery.claim-mode`, the default.
    lazy
        Whether a store that is restored from a checkpoint opens at once, while its backend is filled in the background:
        see `StateStore.hydration`. Default: as `state-recovery.lazy` says.
    on_restore_progress
        Called now and then, in this thread, with a `RestoreProgress` while a checkpoint is loaded before the store opens.

    Raises
    ------
    ConfigError, UsageError
        An argument can't be served.
    UnavailableError
        The backend or a folder can't be reached, written or locked.
    CheckpointNotFoundError, CorruptionError, IncompatibleStateError
        The state can't be restored.
    """
    config, root = resolved(target, checkpoint_dir=checkpoint_dir, max_parallelism=max_parallelism, job=job, dir=dir)
    if allow_pickle is not None:
        config = msgspec.structs.replace(config, state=msgspec.structs.replace(config.state, allow_pickle=allow_pickle))
    given = {"claim_mode": claim_mode, "lazy": lazy}
    recovery = {name: value for name, value in given.items() if value is not None}
    config = msgspec.structs.replace(config, state_recovery=msgspec.structs.replace(config.state_recovery, **recovery))
    return open_store(
        config,
        job,
        restore=restore,
        key_type=key_type,
        clock=clock,
        auto_complete=True,
        on_restore_progress=on_restore_progress,
        root=root,
    )


def resolved(
    target: str | Config,
    *,
    checkpoint_dir: str | None = None,
    max_parallelism: int | None = None,
    job: str = "store",
    dir: str | os.PathLike[str] | None = None,
) -> tuple[Config, str | None]:
    """Configuration and local folder (None: everything in memory) of a store that is named as for `open`. Raises as `open` does."""
    config, root = (target, None) if isinstance(target, Config) else _config_of(target)
    if checkpoint_dir is not None:
        config = msgspec.structs.replace(
            config, checkpointing=msgspec.structs.replace(config.checkpointing, dir=checkpoint_dir)
        )
    if max_parallelism is not None:
        if not 1 <= max_parallelism <= MAX_PARALLELISM_LIMIT:
            raise UsageError(f"max_parallelism is {max_parallelism}, it must be from 1 to {MAX_PARALLELISM_LIMIT}")
        config = msgspec.structs.replace(
            config, state=msgspec.structs.replace(config.state, max_parallelism=max_parallelism)
        )
    ephemeral = isinstance(target, str) and config.state.backend == "memory" and dir is None and root is None
    return config, None if ephemeral else str(dir or root or Path(config.state.dir, job))


def _config_of(url: str) -> tuple[Config, str | None]:
    """Configuration that a URL stands for, and the local folder in it."""
    parts = urlsplit(url)
    if not parts.scheme:
        raise UsageError(
            f"'{redacted(url)}' is no state URL: expected for example rocksdb:///path, memory:// or redis://host:6379/0"
        )
    name = parts.scheme.split("+")[0]
    config = Config()
    if parts.path.strip("/") and not parts.netloc and "+" not in parts.scheme:
        return msgspec.structs.replace(config, state=msgspec.structs.replace(config.state, backend=name)), parts.path
    options = backend_class(name).options_from_url(url)
    state = msgspec.structs.replace(config.state, backend=name, backends={name: options})
    return msgspec.structs.replace(config, state=state), None


def open_store(
    config: Config,
    job: str,
    *,
    restore: str | None,
    run: str = "",
    key_type: Any = str,
    clock: Clock | None = None,
    auto_complete: bool = False,
    on_restore_progress: OnRestoreProgress | None = None,
    root: str | None = "",
    key_groups: range | None = None,
    attempt: Attempt | None = None,
) -> StateStore:
    """Open the store of a job, or of one of its workers.

    Parameters
    ----------
    restore
        None: start empty, unless the job's last run did not finish, which raises UsageError. "latest": the newest checkpoint.
        A checkpoint's path: that one. "none": start empty.
    run
        Names the run; a newest checkpoint made in the same run is restored whatever `restore` says.
    auto_complete
        Whether a commit counts on its own (embedded), or only with a complete checkpoint (job).
    on_restore_progress
        As in `statestore.open`.
    root
        Local folder; "" is `<state.dir>/<job>`, and below it `<first>-<last>` for a part of the key groups; None keeps everything in
        memory.
    key_groups
        Those that the store keeps, by default all: one of `split_key_groups`. A checkpoint can be restored whatever ranges it was made
        with. See `statestore.checkpoint.parts.complete_parts` for a checkpoint of all of a job's stores.
    attempt
        Shared by the stores of one job; by default a new one, which fences all that were opened before. See
        `CheckpointStorage.claim_attempt`.
    """
    parts = claim_parts(config, job, root=root, clock=clock, key_groups=key_groups, attempt=attempt)
    try:
        store = StateStore(
            job=job,
            backend=parts.backend,
            backend_name=config.state.backend,
            log=parts.log,
            checkpoints=parts.checkpoints,
            attempt=parts.attempt,
            max_parallelism=config.state.max_parallelism,
            key_groups=parts.key_groups,
            settings=_settings(config),
            clock=parts.clock,
            place=parts.place,
            folder=parts.folder,
            lock=parts.lock,
            key_type=key_type,
            auto_complete=auto_complete,
            run=run,
        )
    except BaseException:
        parts.release()
        raise
    try:
        recovery = config.state_recovery
        store.recover(restore, lazy=recovery.lazy, parallelism=recovery.parallelism, on_progress=on_restore_progress)
    except BaseException:
        store.release()
        raise
    return store


@dataclass(frozen=True, slots=True)
class Parts:
    """What a store is made of, claimed by one attempt."""

    checkpoints: CheckpointStorage
    attempt: Attempt
    backend: Backend
    log: Log
    key_groups: range
    lock: FolderLock | None
    clock: Clock
    place: str
    """Where the state is, without secrets."""
    folder: str | None
    """Where temporary files go; None: where the machine keeps such."""

    def release(self) -> None:
        """Let go of everything; idempotent."""
        self.log.close()
        self.backend.close()
        if self.lock is not None:
            self.lock.release()


def claim_parts(
    config: Config,
    job: str,
    *,
    root: str | None,
    clock: Clock | None,
    key_groups: range | None = None,
    attempt: Attempt | None = None,
) -> Parts:
    """Lock and open what a store is made of; the arguments are those of `open_store`."""
    checked_job_name(job)
    if root:
        config = _with_checkpoints_in(config, str(Path(root, "checkpoints")))
    if root == "":
        config = _with_checkpoints_in(config, checkpoint_dir(config))
        root = str(Path(config.state.dir, job))
        if key_groups is not None and len(key_groups) < config.state.max_parallelism:
            root = str(Path(root, f"{key_groups.start}-{key_groups.stop - 1}"))
    own = _checked_range(key_groups, config.state.max_parallelism)
    backend_type = backend_class(config.state.backend)
    if config.checkpointing.base_format == "native" and not issubclass(backend_type, SupportsNativeCheckpoint):
        raise ConfigError(f"backend '{config.state.backend}' has no native bases", key="checkpointing.base-format")
    clock = clock or SystemClock()
    keys = keyring(config)
    opener = partial(open_storage, keys=keys)
    lock = FolderLock(root, clock) if root is not None else None
    temporary = str(Path(root, "tmp")) if root is not None else None
    try:
        if temporary is not None:
            remove_folder(temporary)
        checkpoints = CheckpointStorage(_checkpoint_storage(config, opener), job, opener)
        folder = str(Path(root, config.state.backend)) if root is not None else None
        options = config.state.backends.get(config.state.backend, {})
        is_shared, attempt = attempt is not None, attempt or checkpoints.claim_attempt()
        context = BackendContext(job, folder, config.state.max_parallelism, attempt, options, own, opener)
        try:
            backend = backend_type.open(context)
        except FencedError as error:
            if is_shared or error.owner is None or checkpoints.has_attempt(error.owner):
                raise
            # Its owner was counted elsewhere: the checkpoints were removed, or lie in another place. `restore` decides about the state.
            attempt = checkpoints.claim_attempt(above=error.owner)
            backend = backend_type.open(replace(context, attempt=attempt))
        log = Log(log_storage(root, keys), job, config.state.max_parallelism, clock, own)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    place = _place(options, folder if backend.durable else None)
    return Parts(checkpoints, attempt, backend, log, own, lock, clock, place, temporary)


def _checked_range(key_groups: range | None, max_parallelism: int) -> range:
    if key_groups is None:
        return range(max_parallelism)
    if key_groups.step != 1 or not 0 <= key_groups.start < key_groups.stop <= max_parallelism:
        raise UsageError(f"key_groups is {key_groups}, it must be a part of range({max_parallelism})")
    return key_groups


def open_checkpoints(config: Config, job: str) -> CheckpointStorage:
    """Where the checkpoints of a job are. Raises UnavailableError and ConfigError."""
    opener = partial(open_storage, keys=keyring(config))
    return CheckpointStorage(opener(checkpoint_dir(config)), job, opener)


def checkpoint_dir(config: Config) -> str:
    """Path or URL of the folder where jobs keep their checkpoints."""
    return config.checkpointing.dir or str(Path(config.state.dir, "checkpoints"))


def _with_checkpoints_in(config: Config, dir: str) -> Config:
    if config.checkpointing.dir is not None:
        return config
    return msgspec.structs.replace(config, checkpointing=msgspec.structs.replace(config.checkpointing, dir=dir))


def log_storage(root: str | None, keys: Keyring) -> AppendStorage:
    """Where the log of a store in this local folder is."""
    return (
        MemoryStorage("memory:log") if root is None else EncryptedAppendStorage(LocalStorage(Path(root, "log")), keys)
    )


def keyring(config: Config) -> Keyring:
    """Keys of `[encryption]`, read from their files and from the environment. Raises ConfigError."""
    return load_keyring(**msgspec.structs.asdict(config.encryption), environ=os.environ)


def _checkpoint_storage(config: Config, opener: OpenStorage) -> Storage:
    dir = config.checkpointing.dir
    return MemoryStorage("memory:checkpoints") if dir is None else opener(dir)


def _place(options: Any, folder: str | None) -> str:
    url = options.get("url") or options.get("dir")
    return redacted(str(url)) if url else folder or "this process's memory"


def _settings(config: Config) -> StoreSettings:
    return StoreSettings(
        cache_bytes=config.state.cache_size,
        pending_bytes=config.state.pending_size,
        num_retained=config.checkpointing.num_retained,
        claims=config.state_recovery.claim_mode == "claim",
        orphan_age=config.checkpointing.orphan_age,
        ttl=TimeToLive(config.state.ttl, config.state.ttl_update, config.state.ttl_time),
        allow_pickle=config.state.allow_pickle,
        renewal=RenewalSettings(
            base_ratio=config.checkpointing.base_ratio,
            base_min_bytes=config.checkpointing.base_min_size,
            base_max_deltas=config.checkpointing.base_max_deltas,
            base_max_age_seconds=config.checkpointing.base_max_age,
            base_bytes_per_second=config.checkpointing.base_rate,
            native=config.checkpointing.base_format != "portable",
            pack_deltas=config.checkpointing.pack_deltas,
            inline_bytes=config.checkpointing.inline_threshold,
        ),
    )
