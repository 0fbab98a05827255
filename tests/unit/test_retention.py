"""What stays and what goes: nothing that a retained or pinned checkpoint names is ever removed, whoever does what in between."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from statestore.checkpoint.retention import Broom, collect, prune, survey, sweep
from statestore.checkpoint.storage import CheckpointStorage
from statestore.errors import (
    CheckpointNotFoundError,
    CorruptionError,
    FencedError,
    UnavailableError,
    UsageError,
)
from statestore.io import MemoryStorage, open_storage
from statestore.testing.clock import FakeClock
from tests.conftest import SOAK_EXAMPLES
from tests.unit.checkpoints import naming

HOUR = 3600.0


class Crashed(BaseException):
    """The process died."""


class FaultyStorage(MemoryStorage):
    """Fails one of the next operations, before or after it has done its work."""

    def __init__(self, clock):
        super().__init__("mem", clock)
        self.left, self.is_after = 0, False

    def _call(self, method, *arguments):
        self.left -= 1
        if self.left == 0 and not self.is_after:
            raise UnavailableError("storage", arguments[0], "no answer")
        result = getattr(MemoryStorage, method)(self, *arguments)
        if self.left == 0:
            raise UnavailableError("storage", arguments[0], "the reply was lost")
        return result

    def read(self, *arguments):
        return self._call("read", *arguments)

    def write(self, *arguments):
        return self._call("write", *arguments)

    def create(self, *arguments):
        return self._call("create", *arguments)

    def delete(self, *arguments):
        return self._call("delete", *arguments)


class Worker:
    """An attempt as a store is: it builds on a checkpoint, and completes the number after the newest it knows."""

    def __init__(self, checkpoints, number, inherited, newest):
        self.checkpoints, self.attempt = checkpoints, number
        self.files, self.newest, self.has_completed = inherited, newest, False
        self.uploads = 0

    def upload(self):
        self.uploads += 1
        path = f"shared/delta-{self.attempt}-{self.uploads}-abc.log"
        self.checkpoints.storage.write(f"job/{path}", b"")
        self.files = [*self.files, path]

    def complete(self, drop):
        if not self.files:
            self.upload()
        if not self.has_completed and not all(self.checkpoints.storage.exists(f"job/{path}") for path in self.files):
            self.files = []
            self.upload()
        files = self.files[drop:] or self.files[-1:]
        self.checkpoints.complete(naming(self.newest + 1, files, attempt=self.attempt))
        self.files, self.newest, self.has_completed = files, self.newest + 1, True


INTERLUDES = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["pin", "pin", "unpin", "take over", "complete", "upload", "die", "wait"]),
        st.integers(0, 3),
    ),
    max_size=3,
)
"""What happens between two steps of a collection: before which step, what, and to which checkpoint or worker."""


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.storage = FaultyStorage(self.clock)
        self.workers, self.pinned = [], set()

    def fresh(self):
        return CheckpointStorage(self.storage, "job")

    def attempting(self, function, *arguments, **named):
        """Do what may be refused, fail or die, which must not matter."""
        try:
            function(*arguments, **named)
        except (UnavailableError, FencedError, FileExistsError, CheckpointNotFoundError, UsageError, Crashed):
            return

    @initialize(count=st.integers(2, 5))
    def begin(self, count):
        self.open(0)
        for _ in range(count):
            self.workers[0].upload()
            self.workers[0].complete(1)

    def open(self, which):
        checkpoints = self.fresh()
        attempt = checkpoints.claim_attempt()
        known = checkpoints.restorable()
        restored = known[which % len(known)] if known else None
        inherited = [file.path for file in checkpoints.load(restored).files()] if restored else []
        self.workers.append(Worker(checkpoints, attempt, inherited, checkpoints.latest() or 0))

    def one_of(self, items, which):
        """Small numbers choose the oldest."""
        return items[which % len(items)]

    @rule(which=st.integers(0, 3))
    def open_another(self, which):
        self.attempting(self.open, which)

    @rule(which=st.integers(0, 3))
    def upload(self, which):
        self.attempting(self.one_of(self.workers[::-1], which).upload)

    @rule(which=st.integers(0, 1), drop=st.integers(0, 2), count=st.integers(1, 3))
    def complete(self, which, drop, count):
        worker = self.one_of(self.workers[::-1], which)
        for _ in range(count):
            self.attempting(worker.upload)
            self.attempting(worker.complete, drop)

    @rule(which=st.integers(0, 3))
    def pin(self, which):
        self.attempting(self.pinning, which)

    def pinning(self, which):
        number = self.one_of(self.fresh().retained(), which)
        self.fresh().pin(number)
        self.pinned.add(number)

    @rule(which=st.integers(0, 3))
    def unpin(self, which):
        self.attempting(self.unpinning, which)

    def unpinning(self, which):
        if self.pinned:
            number = self.one_of(sorted(self.pinned), which)
            self.pinned.discard(number)
            self.fresh().unpin(number)

    @rule(operations=st.integers(1, 12), is_after=st.booleans())
    def fail_soon(self, operations, is_after):
        self.storage.left, self.storage.is_after = operations, is_after

    @rule(seconds=st.sampled_from([HOUR / 2, 2 * HOUR]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    def interlude(self, what, which):
        match what:
            case "pin":
                self.pinning(which)
            case "unpin":
                self.unpinning(which)
            case "take over":
                self.open(which)
                self.workers[-1].upload()
                self.workers[-1].complete(0)
            case "complete":
                self.one_of(self.workers[::-1], which).complete(0)
            case "upload":
                self.one_of(self.workers, which).upload()
            case "wait":
                self.clock.advance(HOUR / 2)
            case "die":
                raise Crashed

    def interrupted(self, check, interludes):
        counter = itertools.count()

        def may_go_on():
            step = next(counter)
            for _, what, which in [item for item in interludes if item[0] == step]:
                try:
                    self.interlude(what, which)
                except (UnavailableError, FencedError, FileExistsError, CheckpointNotFoundError, UsageError):
                    continue
            check()

        return may_go_on

    @rule(which=st.integers(0, 1), keep=st.integers(1, 3), is_sweep=st.booleans(), interludes=INTERLUDES)
    def collect(self, which, keep, is_sweep, interludes):
        worker = self.one_of(self.workers[::-1], which)
        if worker.has_completed:  # only then a store collects
            self.attempting(self.collecting, worker, keep, is_sweep, interludes)

    def collecting(self, worker, keep, is_sweep, interludes):
        checkpoints = worker.checkpoints
        check = self.interrupted(lambda: checkpoints.check_owner(worker.attempt), interludes)
        broom = Broom(checkpoints, check)
        listed = self.storage.list("job") if is_sweep else []
        found = collect(checkpoints, keep, broom, listed)
        if is_sweep:
            sweep(checkpoints, found, listed, checkpoints.time() - HOUR, broom)

    @rule(keep=st.integers(1, 3), is_dry=st.booleans(), interludes=INTERLUDES)
    def prune(self, keep, is_dry, interludes):
        before = dict(self.storage.objects)
        self.attempting(self.pruning, keep, is_dry, interludes)
        if is_dry:
            assert self.storage.objects == before

    def pruning(self, keep, is_dry, interludes):
        checkpoints = self.fresh()
        attempt, check = checkpoints.newest_attempt(), checkpoints.check_owner
        may_go_on = self.interrupted(lambda: check(attempt), interludes)
        checkpoints.check_owner = lambda attempt: may_go_on()
        prune(checkpoints, keep=keep, orphan_age_seconds=HOUR, clock=self.clock, dry_run=is_dry)

    @invariant()
    def what_is_retained_or_pinned_is_whole(self):
        left, self.storage.left = self.storage.left, 0
        checkpoints = self.fresh()
        for number in {*checkpoints.retained(), *self.pinned}:
            for file in checkpoints.load(number).files():
                assert self.storage.exists(f"job/{file.path}"), (number, file.path)
        self.storage.left = left

    def teardown(self):
        """In the end nothing is left that nobody needs."""
        self.storage.left = 0
        checkpoints = self.fresh()
        if not checkpoints.retained():
            return
        for number in checkpoints.pins.numbers():
            if not self.storage.exists(checkpoints.manifest_name(number)):
                checkpoints.unpin(number)
        self.clock.advance(2 * HOUR)
        for _ in range(2):
            prune(checkpoints, keep=1, orphan_age_seconds=HOUR, clock=self.clock, force=True)
        kept = {checkpoints.latest(), *checkpoints.pins.numbers()}
        assert set(survey(checkpoints, 1, self.storage.list("job")).manifests) == kept
        newest = checkpoints.load(checkpoints.latest()).attempt
        named = {f"job/{file.path}" for number in kept for file in checkpoints.load(number).files()}
        present = {name for name in self.storage.list("job/shared") if int(name.split("-")[1]) < newest}
        assert present <= named
        assert not [name for name in self.storage.list("job") if name.endswith("_removing")]


Machine.TestCase.settings = settings(
    max_examples=SOAK_EXAMPLES or 120,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_nothing_needed_is_removed = Machine.TestCase


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def checkpoints(clock):
    """Five checkpoints of one attempt: n names the files n - 1 and n."""
    made = CheckpointStorage(MemoryStorage("mem", clock), "job")
    attempt = made.claim_attempt()
    complete(made, attempt, range(1, 6))
    return made


def complete(checkpoints, attempt, numbers):
    for number in numbers:
        newest = checkpoints.latest()
        before = [file.path for file in checkpoints.load(newest).files()][-1:] if newest else []
        paths = [*before, f"shared/delta-{attempt}-{number}-ab.log"]
        checkpoints.storage.write(f"job/{paths[-1]}", b"")
        checkpoints.complete(naming(number, paths, attempt=attempt))


def files(checkpoints):
    return [int(name.split("-")[2]) for name in checkpoints.storage.list("job/shared")]


def pruned(checkpoints, clock, *, keep=2, age=HOUR, **named):
    return prune(checkpoints, keep=keep, orphan_age_seconds=age, clock=clock, **named)


def test_the_newest_and_the_pinned_stay(checkpoints, clock):
    checkpoints.pin(1)
    checkpoints.pin(3)
    checkpoints.unpin(1)
    report = pruned(checkpoints, clock)
    assert [(kept.checkpoint, kept.why) for kept in report.kept] == [
        (3, "pinned"),
        (4, "among the newest 2"),
        (5, "among the newest 2"),
    ]
    assert report.removed_checkpoints == [1, 2]
    assert files(checkpoints) == [2, 3, 4, 5]
    complete(checkpoints, 1, range(6, 9))
    assert pruned(checkpoints, clock).removed_checkpoints == [4, 5, 6]
    assert (checkpoints.retained(), checkpoints.restorable()) == ([7, 8], [3, 7, 8])
    assert files(checkpoints) == [2, 3, 6, 7, 8]
    checkpoints.unpin(3)  # beyond the gap it is found by a listing, and like any other then
    assert pruned(checkpoints, clock).removed_checkpoints == [3]
    assert files(checkpoints) == [6, 7, 8]


def test_a_dry_run_says_what_a_real_one_does(checkpoints, clock):
    before = dict(checkpoints.storage.objects)
    would = pruned(checkpoints, clock, dry_run=True)
    assert checkpoints.storage.objects == before
    did = pruned(checkpoints, clock)
    assert (would.removed, would.kept, would.removed_checkpoints) == (did.removed, did.kept, did.removed_checkpoints)
    assert [item.name for item in did.removed] == [
        "job/chk-1/_metadata",
        "job/chk-2/_metadata",
        "job/shared/delta-1-1-ab.log",
        "job/chk-3/_metadata",
        "job/shared/delta-1-2-ab.log",
    ]
    assert did.bytes == sum(len(before[item.name]) for item in did.removed)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_an_unreadable_manifest_removes_nothing(checkpoints, clock, number):
    checkpoints.pin(3)
    checkpoints.storage.write(f"job/chk-{number}/_metadata", b"{}")
    before = dict(checkpoints.storage.objects)
    with pytest.raises(CorruptionError, match=f"chk-{number}.*nothing is removed"):
        pruned(checkpoints, clock, keep=1)
    assert checkpoints.storage.objects.keys() == before.keys()


def test_pins_that_can_not_be_read_remove_nothing(checkpoints, clock):
    checkpoints.pin(1)
    good = checkpoints.storage.read("job/pins/1")
    for position in range(len(good)):
        checkpoints.storage.write("job/pins/1", good[:position] + b"?" + good[position + 1 :])
        with pytest.raises(CorruptionError, match="pins/1"):
            pruned(checkpoints, clock)
    assert files(checkpoints) == [1, 2, 3, 4, 5]


def test_a_pinned_checkpoint_that_is_gone_removes_nothing_until_it_is_unpinned(checkpoints, clock):
    checkpoints.pin(1)
    checkpoints.storage.delete("job/chk-1/_metadata")
    with pytest.raises(CheckpointNotFoundError, match="unpin it"):
        pruned(checkpoints, clock)
    checkpoints.unpin(1)
    assert pruned(checkpoints, clock).removed_checkpoints == [2, 3]


def test_what_can_not_be_pinned(checkpoints):
    with pytest.raises(CheckpointNotFoundError, match="chk-9"):
        checkpoints.pin(9)
    checkpoints.storage.write("job/chk-2/_removing", b"")
    with pytest.raises(UnavailableError, match="being removed"):
        checkpoints.pin(2)
    with pytest.raises(UsageError, match="not pinned"):
        checkpoints.unpin(2)


@pytest.mark.parametrize("path", ["chk-5/_metadata", "attempts/1", "_latest", "elsewhere/file"])
def test_a_manifest_that_names_what_is_no_file_of_a_checkpoint_removes_nothing(checkpoints, clock, path):
    checkpoints.complete(naming(6, [path]))
    before = dict(checkpoints.storage.objects)
    with pytest.raises(CorruptionError, match="no file of a checkpoint"):
        pruned(checkpoints, clock, keep=1)
    assert checkpoints.storage.objects.keys() == before.keys()


def orphans(checkpoints):
    """Leftovers of attempt 1, and attempt 2, which goes on."""
    for name in ("shared/base-1-7-0-ab.seg", "shared/delta-1-9-ab.log", "chk-0/_removing", "readme.txt"):
        checkpoints.storage.write(f"job/{name}", b"x")
    attempt = checkpoints.claim_attempt()
    checkpoints.storage.write("job/shared/base-2-7-0-ab.seg", b"x")
    return attempt


def test_orphans_go_at_their_age_once_a_newer_attempt_has_completed(checkpoints, clock):
    attempt = orphans(checkpoints)
    clock.advance(2 * HOUR)
    # Attempt 1 might still complete a checkpoint with its files.
    assert [item.name for item in pruned(checkpoints, clock, keep=5, dry_run=True).removed] == ["job/chk-0/_removing"]
    complete(checkpoints, attempt, [6])
    assert pruned(checkpoints, clock, keep=9, age=3 * HOUR).removed == []
    assert pruned(checkpoints, clock, keep=9, age=0).removed == []
    removed = {item.name: item.why for item in pruned(checkpoints, clock, keep=9).removed}
    assert removed == {
        "job/attempts/1": "attempt 1 is over",
        "job/chk-0/_removing": "checkpoint 0 is gone",
        "job/shared/base-1-7-0-ab.seg": "no checkpoint names it, and attempt 1 is over",
        "job/shared/delta-1-9-ab.log": "no checkpoint names it, and attempt 1 is over",
    }
    assert checkpoints.storage.exists("job/readme.txt")
    assert checkpoints.claim_attempt() == 3


@pytest.mark.parametrize("skew", [-100 * HOUR, 100 * HOUR])
def test_a_clock_that_is_wrong_makes_nothing_older(checkpoints, clock, skew):
    complete(checkpoints, orphans(checkpoints), [6])
    wrong = FakeClock(clock.time() + skew)
    assert pruned(checkpoints, wrong, keep=9).removed == []


def test_a_stale_listing_decides_nothing(checkpoints, clock):
    """It names what is gone, and lacks what is there."""
    attempt = orphans(checkpoints)
    complete(checkpoints, attempt, [6])
    clock.advance(2 * HOUR)
    stale = [*checkpoints.storage.list("job")[::2], "job/chk-1/_metadata", "job/shared/delta-1-99-ab.log"]
    pruned(checkpoints, clock, keep=3)
    complete(checkpoints, attempt, [7])
    checkpoints.storage.list = lambda folder="": stale
    pruned(checkpoints, clock, keep=3)
    assert checkpoints.retained() == [5, 6, 7]
    for number in (5, 6, 7):
        assert all(checkpoints.storage.exists(f"job/{file.path}") for file in checkpoints.load(number).files())


def test_an_attempt_that_has_completed_nothing_may_go_on_from_any_checkpoint(checkpoints, clock):
    checkpoints.claim_attempt()
    report = pruned(checkpoints, clock)
    assert (len(report.kept), report.removed) == (5, [])
    assert "attempt 2 has completed no checkpoint yet" in report.kept[0].why
    assert len(pruned(checkpoints, clock, force=True).kept) == 2


def test_an_old_leader_removes_nothing(checkpoints):
    broom = Broom(checkpoints, lambda: checkpoints.check_owner(1))
    checkpoints.claim_attempt()
    before = dict(checkpoints.storage.objects)
    with pytest.raises(FencedError):
        collect(checkpoints, 1, broom)
    assert checkpoints.storage.objects == before


@pytest.mark.parametrize("step", range(8))
def test_a_leader_that_is_replaced_while_it_collects_removes_nothing_more(checkpoints, step):
    storage, steps, removed_after = checkpoints.storage, itertools.count(), []
    delete, write = storage.delete, storage.write

    def replace_at_its_step():
        if next(steps) == step:
            storage.delete, storage.write = removed_after.append, write
            checkpoints.claim_attempt()

    def deleting(name):
        delete(name)
        replace_at_its_step()

    def writing(name, data):
        write(name, data)
        replace_at_its_step()

    storage.delete, storage.write = deleting, writing
    with pytest.raises(FencedError):
        collect(checkpoints, 1, Broom(checkpoints, lambda: checkpoints.check_owner(1)))
    assert [name for name in removed_after if not name.endswith("_removing")] == []


def test_prune_stops_when_the_job_starts_anew(checkpoints, clock):
    delete = checkpoints.storage.delete

    def delete_and_start(name):
        delete(name)
        checkpoints.storage.delete = delete
        checkpoints.claim_attempt()

    checkpoints.storage.delete = delete_and_start
    with pytest.raises(FencedError):
        pruned(checkpoints, clock, keep=1)
    assert checkpoints.retained() == [2, 3, 4, 5]


@pytest.mark.parametrize("step", range(14))
def test_an_interrupted_removal_is_finished_by_the_next(checkpoints, step):
    """Died before the n-th write or removal; what is left is whole at any time, and goes in the end."""
    storage, left = checkpoints.storage, [step]

    def dying(original):
        def call(*arguments):
            if left[0] == 0:
                raise Crashed
            left[0] -= 1
            return original(*arguments)

        return call

    originals = storage.delete, storage.write
    storage.delete, storage.write = map(dying, originals)
    try:
        collect(checkpoints, 2, Broom(checkpoints, lambda: None))
    except Crashed:
        pass
    storage.delete, storage.write = originals
    for number in checkpoints.retained():
        assert all(storage.exists(f"job/{file.path}") for file in checkpoints.load(number).files())
    collect(checkpoints, 2, Broom(checkpoints, lambda: None))
    assert (checkpoints.retained(), files(checkpoints)) == ([4, 5], [3, 4, 5])
    assert not [name for name in storage.list() if "_removing" in name]


def test_pins_of_two_at_a_time(checkpoints):
    others = CheckpointStorage(checkpoints.storage, "job")
    assert (checkpoints.pins.numbers(), others.pins.numbers()) == (frozenset(), frozenset())
    checkpoints.pin(1)
    others.pins._change({2})  # it does not know of the first: its number is taken
    others.pin(2)
    assert checkpoints.pins.numbers() == {1, 2}
    checkpoints.pin(2)
    assert checkpoints.pins.version() == 2


@pytest.mark.parametrize("kind", ["local", "fsspec"])
def test_prune_in_real_places(tmp_path, kind):
    url = str(tmp_path) if kind == "local" else "memory://retention/place"
    checkpoints = CheckpointStorage(open_storage(url), "job")
    complete(checkpoints, checkpoints.claim_attempt(), range(1, 6))
    complete(checkpoints, orphans(checkpoints), [6])
    report = prune(checkpoints, keep=2, orphan_age_seconds=1e-9, clock=FakeClock())
    assert report.removed_checkpoints == [1, 2, 3, 4]
    assert sorted(files(checkpoints)) == [4, 5, 6, 7]
    if kind == "local":
        prune(checkpoints, keep=2, orphan_age_seconds=1e-9, clock=FakeClock())  # folders are as old as the last removal
        folders = {path.name for path in (tmp_path / "job").iterdir()}
        assert {"chk-5", "chk-6"} == {name for name in folders if name.startswith("chk-")}
