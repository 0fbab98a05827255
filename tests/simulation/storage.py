"""What survives all processes of a simulated job: its checkpoints, and the output that everybody sees."""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from statestore.checkpoint.manifest import Manifest
from statestore.checkpoint.snapshot import CheckpointInfo
from statestore.errors import FencedError, StateStoreError, UnavailableError
from statestore.types import CheckpointId
from tests.simulation.world import World

WHERE = "simulated:checkpoints"
WELL, STRAGGLING = (0.0, 0.05), (0.0, 8.0)


class Storage:
    """Checkpoint storage that takes its time, fails before or after it has done what it was told to, or never answers.

    Each call is several steps, and anything may come between them: what is looked at may be different when it is acted upon.
    """

    def __init__(self, world: World):
        self._world = world
        self.attempt = 0
        self.manifests: dict[int, Manifest] = {}
        self.written: list[tuple[int, int]] = []
        """Numbers and attempts of all manifests, in the order in which they came."""
        self.be_well()

    def be_well(self) -> None:
        """No disturbance from now on; what is on its way stays so."""
        self.is_down = False
        self.delay_seconds = WELL
        self.failing = self.ambiguous = self.hanging = self.straggling = 0.0

    @property
    def newest(self) -> Manifest | None:
        return self.manifests[max(self.manifests)] if self.manifests else None

    def check(self) -> None:
        """Raise UnavailableError while it is down."""
        if self.is_down or self._world.chance(self.failing):
            raise UnavailableError("checkpoints", WHERE, "down")

    def claim(self, process, above, answer) -> None:
        """Give `answer` an attempt, or an error, or nothing."""

        def effect():
            self.check()
            self.attempt = max(self.attempt, above) + 1
            return self.attempt

        self._call(process, [effect], answer)

    def commit(self, process, manifest, answer) -> None:
        """Write a manifest as `CheckpointStorage.complete_next` does; `answer` gets it with its number, or an error, or nothing."""
        number = int(manifest.checkpoint_id)

        def look():
            self.check()
            if self.attempt > manifest.attempt:
                raise FencedError(WHERE, manifest.attempt, self.attempt)

        def create():
            nonlocal number
            self.check()
            while (existing := self.manifests.get(number)) is not None:
                if existing.attempt > manifest.attempt:
                    raise FencedError(WHERE, manifest.attempt, existing.attempt)
                if existing.attempt < manifest.attempt:
                    raise UnavailableError("checkpoint", WHERE, "an older attempt has completed it meanwhile")
                number += 1  # ours, of which we were told that it had failed
                look()
            return self.write(replace(manifest, checkpoint_id=CheckpointId(number)))

        self._call(process, [look, create], answer)

    def write(self, manifest):
        """Set a manifest, at once."""
        number = int(manifest.checkpoint_id)
        self._world.note("storage", f"checkpoint {number} of attempt {manifest.attempt}")
        self.written.append((number, int(manifest.attempt)))
        self.manifests[number] = manifest
        return manifest

    def _call(self, process, steps, answer) -> None:
        """Do the steps one after the other, whether or not the process that asked lives still: a thread of it is at it, or a server."""
        world = self._world
        span = STRAGGLING if world.chance(self.straggling) else self.delay_seconds
        is_ambiguous, hangs_at = world.chance(self.ambiguous), world.chance(self.hanging) and world.random.randrange(3)

        def step(index, outcome):
            if hangs_at is not False and index == hangs_at:
                return
            if index == len(steps):
                if is_ambiguous:
                    outcome = UnavailableError("checkpoints", WHERE, "the reply was lost")
                world.schedule(world.between(span), lambda: answer(outcome), process)
                return
            try:
                outcome = steps[index]()
            except StateStoreError as error:
                world.schedule(world.between(span), partial(answer, error), process)
                return
            world.schedule(world.between(span), partial(step, index + 1, outcome))

        world.schedule(world.between(span), lambda: step(0, None))


def info_of(manifest: Manifest, seconds: float) -> CheckpointInfo:
    """What a JobManager is told of a complete checkpoint."""
    return CheckpointInfo(
        checkpoint_id=manifest.checkpoint_id,
        epoch=manifest.checkpoint_id,
        uploaded_bytes=0,
        total_bytes=0,
        seconds=seconds,
        path=f"chk-{manifest.checkpoint_id}",
        manifest=manifest,
    )


class Output:
    """Where all sinks write: transactions of events, which only the newest attempt may commit, each once however often it is told to.

    Attributes
    ----------
    visible : list
        Events, in the order in which they became visible.
    """

    def __init__(self, owner: int):
        self.owner = owner
        self.visible: list[tuple[str, int]] = []
        self._seen: set[tuple[str, int]] = set()
        self._committed: set[str] = set()

    def open(self, attempt: int) -> None:
        """Be the owner. Raises FencedError when a newer attempt is."""
        if attempt < self.owner:
            raise FencedError("output", attempt, self.owner)
        self.owner = attempt

    def commit(self, attempt: int, transaction: dict) -> None:
        """Make a transaction visible. Raises FencedError for an attempt that is not the owner."""
        if attempt != self.owner:
            raise FencedError("output", attempt, self.owner)
        if transaction["id"] in self._committed:
            return
        self._committed.add(transaction["id"])
        for event in map(tuple, transaction["events"]):
            assert event not in self._seen, f"{event} is visible twice"
            self._seen.add(event)
            self.visible.append(event)
