"""Where a state is that is to be migrated, and how it is opened for that: as its own store would, and then read as it stands."""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from statestore.backend import backend_names
from statestore.checkpoint.locating import locate_checkpoint
from statestore.checkpoint.manifest import Manifest, Part
from statestore.checkpoint.storage import METADATA, CheckpointStorage
from statestore.clock import Clock
from statestore.config import Config, EncryptionConfig
from statestore.copying import Source, source_of
from statestore.errors import CheckpointNotFoundError, UsageError
from statestore.io import OpenStorage, local_path, open_storage, redacted
from statestore.opening import Parts, claim_parts, keyring, log_storage, resolved
from statestore.recovery import Loader, Recovered, Recovery
from statestore.types import CheckpointId
from statestore.wal.log import stored_header


@dataclass(frozen=True, slots=True)
class Place:
    """Where a state is, or is to be.

    Parameters
    ----------
    url
        A state's URL as `statestore.open` takes it, a `Config`, or the path of a checkpoint or savepoint.
    job, dir, checkpoint_dir
        Of a state, as `statestore.open` takes them.
    """

    url: str | Config
    job: str = "store"
    dir: str | None = None
    checkpoint_dir: str | None = None
    encryption: EncryptionConfig = field(default_factory=EncryptionConfig)
    """Keys of what a URL or path names; a `Config` has its own."""

    @property
    def is_state(self) -> bool:
        """Whether it is a store's state, rather than a checkpoint or savepoint."""
        return isinstance(self.url, Config) or urlsplit(self.url).scheme.split("+")[0] in backend_names()

    def resolved(self) -> tuple[Config, str | None]:
        """Configuration and local folder of the state; see `statestore.opening.resolved`."""
        config, root = resolved(self.url, checkpoint_dir=self.checkpoint_dir, job=self.job, dir=self.dir)
        if not isinstance(self.url, Config):
            config = msgspec.structs.replace(config, encryption=self.encryption)
        return config, root

    @property
    def open_storage(self) -> OpenStorage:
        """Opens a checkpoint's or savepoint's place."""
        return partial(open_storage, keys=keyring(Config(encryption=self.encryption)))

    def __str__(self) -> str:
        return "the configured state" if isinstance(self.url, Config) else redacted(self.url)


def open_source(place: Place, stack: ExitStack, clock: Clock) -> tuple[Source, set[str]]:
    """The state to be copied, and names for where it is; all is let go of with `stack`.

    Raises
    ------
    CheckpointNotFoundError
        There is none.
    UnavailableError
        It can't be reached, or another process has it open.
    UsageError
        Nothing is ever kept there.
    """
    if isinstance(place.url, str) and (not place.is_state or _is_snapshot(place.url)):
        checkpoints, number = locate_checkpoint(place.url, open_storage=place.open_storage)
        return source_of(checkpoints, checkpoints.load(number)), {checkpoints.path_of(number)}
    config, root = place.resolved()
    if root is None:
        raise UsageError("a memory:// store keeps nothing: migrate a checkpoint or savepoint of it")
    if not Path(root).is_dir():
        hint = f"its log would be in {root}: say where it is (--dir)"
        raise CheckpointNotFoundError(str(place), "there is no such state", hint=hint)
    config = with_parallelism(config, stored_parallelism(config, root, place.job))
    parts = claim_parts(config, place.job, root=root, clock=clock)
    stack.callback(parts.release)
    parallelism = config.state_recovery.parallelism
    loader = Loader(parts.backend, parts.key_groups, clock, lazy=False, parallelism=parallelism, on_progress=None)
    recovered = Recovery(
        parts.backend,
        parts.log,
        parts.checkpoints,
        loader,
        max_parallelism=config.state.max_parallelism,
        key_groups=parts.key_groups,
        restore="latest",
        run="",
        tail_counts=True,
    ).run()
    # The log's hash tells histories apart that have come to the same epoch.
    identity = digest(config.state.backend, parts.place, place.job, str(recovered.epoch), recovered.log_sha256)
    manifest = _manifest(recovered, parts, config, place.job, clock)
    return Source(identity, manifest, lambda start: parts.backend.scan(start, None)), names_of(
        parts, config, root, place
    )


def _is_snapshot(url: str) -> bool:
    """Whether a URL that could be a state's is the path of a checkpoint or savepoint."""
    folder = local_path(url)
    return folder is not None and (bool(re.search(r"/chk-[0-9]+/?$", folder)) or Path(folder, METADATA).is_file())


def _manifest(recovered: Recovered, parts: Parts, config: Config, job: str, clock: Clock) -> Manifest:
    """All that is known of a state besides its entries."""
    part = Part(
        first_key_group=0,
        last_key_group=config.state.max_parallelism - 1,
        epoch=recovered.epoch,
        base=None,
        deltas=[],
        log_sequence=recovered.log_sequence,
        log_sha256=recovered.log_sha256,
        uploaded_bytes=0,
    )
    return Manifest(
        job=job,
        checkpoint_id=recovered.checkpoint.checkpoint_id if recovered.checkpoint else CheckpointId(0),
        attempt=parts.attempt,
        created=clock.time(),
        kind="checkpoint",
        run="",
        max_parallelism=config.state.max_parallelism,
        states=recovered.states,
        parts=[part],
        meta=recovered.meta,
        times=recovered.times,
    )


def names_of(parts: Parts, config: Config, root: str, place: Place) -> set[str]:
    """What two places that must not be one have in common if they are."""
    return {str(Path(root).resolve()), f"{config.state.backend} {parts.place} {place.job}"}


def with_parallelism(config: Config, max_parallelism: int | None) -> Config:
    """The configuration with another number of key groups; None changes nothing."""
    if max_parallelism is None:
        return config
    return msgspec.structs.replace(config, state=msgspec.structs.replace(config.state, max_parallelism=max_parallelism))


def stored_parallelism(config: Config, root: str, job: str) -> int | None:
    """With how many key groups a state was made, by its log or its newest checkpoint; None when there is neither."""
    header = stored_header(log_storage(root, keyring(config))) if Path(root).is_dir() else None
    if header is not None:
        return header.max_parallelism
    folder = config.checkpointing.dir or str(Path(root, "checkpoints"))
    local = local_path(folder)
    if local is not None and not Path(local).is_dir():
        return None
    checkpoints = CheckpointStorage(open_storage(folder, keyring(config)), job)
    newest = checkpoints.latest()
    return None if newest is None else checkpoints.load(newest).max_parallelism


def digest(*parts: str) -> str:
    """One name for several."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
