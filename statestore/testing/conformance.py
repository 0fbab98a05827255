"""The conformance suite that every backend passes.

A test file for a backend is a subclass and one fixture:

    import pytest
    from statestore.backend import BackendContext
    from statestore.testing.conformance import BackendConformance

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        def open_backend(self, tmp_path):
            opened = []

            def open_backend(attempt=1, job="job", **options):
                context = BackendContext(job, str(tmp_path / "state"), self.max_parallelism, attempt, options)
                opened.append(MyBackend.open(context))
                return opened[-1]

            yield open_backend
            for backend in opened:
                backend.close()

`open_backend` opens the same place each time it is called within a test. The suite closes a backend before it opens the place again,
except where it tests fencing. A fixture `stored_folder` that returns the folder with the backend's files lets it test damage, too.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from statestore.backend import Backend, SupportsBulkLoad, SupportsNativeCheckpoint
from statestore.errors import ClosedError, ConfigError, CorruptionError, FencedError, StateStoreError
from statestore.keys import EntryKeys, group_of_entry, group_start, prefix_end
from statestore.types import Attempt, Epoch

OpenBackend = Callable[..., Backend]


class BackendConformance:
    """Subclass it, give it the fixture `open_backend`, and set what your backend promises."""

    max_parallelism = 8
    fenced = True
    """Whether the backend refuses the writes of an older attempt once a newer one has opened the place."""

    history_batches = 40
    """Length of random and of concurrent histories; less will do where each batch takes long, as over a network."""

    @pytest.fixture
    def open_backend(self) -> OpenBackend:
        """Open the backend under test."""
        raise AssertionError("the subclass gives this fixture")

    @pytest.fixture
    def stored_folder(self) -> Path | None:
        """Local folder with the files of the place that `open_backend` opens; None when there is none to be damaged."""
        return None

    @pytest.fixture
    def backend(self, open_backend: OpenBackend) -> Backend:
        """An opened, empty backend."""
        return open_backend()

    def key(self, name: str, sub_key: bytes = b"", state: int = 1) -> bytes:
        """Entry key for a test."""
        return EntryKeys(state, self.max_parallelism).of(name.encode(), sub_key)

    def content(self, backend: Backend) -> dict[bytes, bytes]:
        """Everything in a backend, checked to be in order."""
        entries = list(backend.scan(b"", None))
        assert entries == sorted(entries)
        assert len(dict(entries)) == len(entries)
        return dict(entries)

    # Values

    def test_a_new_backend_is_empty(self, backend: Backend) -> None:
        """Nothing is there, and the marker is 0."""
        assert backend.applied_epoch() == 0
        assert self.content(backend) == {}
        assert backend.get_many([self.key("a")]) == [None]
        assert backend.get_many([]) == []

    def test_get_many_keeps_the_order_of_the_keys(self, backend: Backend) -> None:
        """Also with duplicates and missing keys."""
        a, b, c = self.key("a"), self.key("b"), self.key("c")
        backend.apply({a: b"1", b: b"2"}, Epoch(1))
        assert backend.get_many([b, c, a, b]) == [b"2", None, b"1", b"2"]

    def test_a_batch_overwrites_and_deletes(self, backend: Backend) -> None:
        """Deleting what is not there is no error."""
        a, b, c = self.key("a"), self.key("b"), self.key("c")
        backend.apply({a: b"1", b: b"2"}, Epoch(1))
        backend.apply({a: b"3", b: None, c: None}, Epoch(2))
        assert backend.get_many([a, b, c]) == [b"3", None, None]
        assert self.content(backend) == {a: b"3"}

    @pytest.mark.parametrize("value", [b"", b"\0", b"\xff" * 10, b"x" * (1 << 20)], ids=["empty", "nul", "ff", "1MiB"])
    def test_values_are_any_bytes(self, backend: Backend, value: bytes) -> None:
        """An empty value is not a missing one."""
        backend.apply({self.key("a"): value}, Epoch(1))
        assert backend.get_many([self.key("a")]) == [value]
        assert self.content(backend) == {self.key("a"): value}

    def test_keys_are_any_bytes(self, backend: Backend) -> None:
        """Zero and 255 bytes, empty and long keys, at both ends of the key groups and state ids."""
        keys = EntryKeys(0xFFFE, self.max_parallelism)
        names = [b"", b"\0", b"\xff", b"\xff\xff", b"\0\xff", b"\r\n", "é€".encode(), b"k" * 300]
        batch: dict[bytes, bytes | None] = {keys.of(name, sub): name for name in names for sub in (b"", b"\0\xff")}
        backend.apply(batch, Epoch(1))
        assert self.content(backend) == batch
        assert backend.get_many(list(batch)) == list(batch.values())

    # Marker

    def test_the_marker_follows_apply(self, backend: Backend) -> None:
        """An empty batch moves it too, and `persist` returns it or an earlier one."""
        backend.apply({self.key("a"): b"1"}, Epoch(7))
        assert backend.applied_epoch() == 7
        backend.apply({}, Epoch(9))
        assert backend.applied_epoch() == 9
        assert backend.persist() == 9

    def test_applying_again_changes_nothing(self, backend: Backend) -> None:
        """Recovery may repeat a batch."""
        batch = {self.key("a"): b"1", self.key("b"): None, self.key("m", b"\0x"): b"2"}
        backend.apply(batch, Epoch(1))
        before = self.content(backend)
        backend.apply(batch, Epoch(1))
        assert self.content(backend) == before
        assert backend.applied_epoch() == 1

    def test_the_marker_is_not_an_entry(self, backend: Backend) -> None:
        """A scan of everything shows entries only."""
        backend.apply({}, Epoch(3))
        assert self.content(backend) == {}

    # Scans

    def test_scan_bounds(self, backend: Backend) -> None:
        """Start is included, stop is not."""
        keys = sorted(self.key(f"k{n}") for n in range(50))
        backend.apply({key: key for key in keys}, Epoch(1))
        assert [key for key, _ in backend.scan(keys[10], keys[20])] == keys[10:20]
        assert [key for key, _ in backend.scan(keys[10], None)] == keys[10:]
        assert [key for key, _ in backend.scan(keys[10] + b"\0", keys[20] + b"\0")] == keys[11:21]
        assert list(backend.scan(keys[20], keys[10])) == []

    def test_scan_of_one_key_group(self, backend: Backend) -> None:
        """Groups do not mix."""
        keys = [self.key(f"k{n}") for n in range(200)]
        backend.apply(dict.fromkeys(keys, b"v"), Epoch(1))
        for group in range(self.max_parallelism):
            found = [key for key, _ in backend.scan(group_start(group), group_start(group + 1))]
            assert found == sorted(key for key in keys if group_of_entry(key) == group)

    def test_scan_of_one_collection(self, backend: Backend) -> None:
        """Only the sub-keys with the prefix, after changes and deletions too."""
        subs = [b"\0" + bytes([n]) for n in range(0, 256, 5)]
        batch: dict[bytes, bytes | None] = {self.key(name, sub): sub for name in ("a", "b", "ab") for sub in subs}
        batch[self.key("a")] = b"head"
        batch[self.key("a", b"\1x")] = b"other"
        backend.apply(batch, Epoch(1))
        backend.apply({self.key("a", subs[3]): None, self.key("a", b"\0new"): b"n"}, Epoch(2))
        prefix = self.key("a", b"\0")
        found = [key[len(prefix) - 1 :] for key, _ in backend.scan(prefix, prefix_end(prefix))]
        assert found == sorted([*subs[:3], *subs[4:], b"\0new"])

    def test_scan_while_batches_are_applied(self, backend: Backend) -> None:
        """What the batches do not touch is seen exactly once; nothing is torn."""
        fixed = {self.key(f"fixed{n}"): b"f" for n in range(500)}
        changing = [self.key(f"changing{n}") for n in range(100)]
        backend.apply({**fixed, **dict.fromkeys(changing, b"0")}, Epoch(1))
        written = threading.Event()

        def write() -> None:
            try:
                for epoch in range(2, self.history_batches):
                    gone = changing[epoch % 100]
                    backend.apply({**dict.fromkeys(changing, b"%d" % epoch), gone: None}, Epoch(epoch))
                    backend.persist()
            finally:
                written.set()

        def read() -> int:
            rounds = 0
            while not written.is_set() or rounds == 0:
                entries = list(backend.scan(b"", None))
                keys = [key for key, _ in entries]
                assert keys == sorted(set(keys))
                assert fixed.items() <= dict(entries).items()
                assert {value for key, value in entries if key not in fixed} <= {
                    b"%d" % n for n in range(self.history_batches)
                }
                assert backend.get_many(list(fixed)) == list(fixed.values())
                rounds += 1
            return rounds

        with ThreadPoolExecutor(3) as pool:
            tasks: list[Future[object]] = [pool.submit(task) for task in (write, read, read)]
            for task in tasks:
                task.result()

    def test_a_scan_goes_on_over_batches(self, backend: Backend) -> None:
        """Also in one thread: what was applied since a scan began makes it neither repeat nor skip the rest."""
        keys = sorted(self.key(f"k{n}") for n in range(3000))
        backend.apply(dict.fromkeys(keys, b"old"), Epoch(1))
        scan = backend.scan(b"", None)
        seen = [next(scan) for _ in range(10)]
        backend.apply({**dict.fromkeys(keys[::3], b"new"), **dict.fromkeys(keys[1::3])}, Epoch(2))
        seen += scan
        found = dict(seen)
        assert [key for key, _ in seen] == sorted(found)
        assert all(found[key] == b"old" for key in keys[2::3])
        assert all(found.get(key, b"old") in (b"old", b"new") for key in keys)

    def test_a_scan_that_is_given_up_is_in_nobodys_way(self, open_backend: OpenBackend) -> None:
        """Neither of batches nor of closing."""
        backend = open_backend()
        backend.apply({self.key(f"k{n}"): b"v" for n in range(3000)}, Epoch(1))
        scan = backend.scan(b"", None)
        assert next(scan)[1] == b"v"
        backend.apply({self.key("k1"): None}, Epoch(2))
        del scan
        assert backend.persist() == 2
        backend.close()
        again = open_backend(attempt=2)
        assert len(self.content(again)) == (2999 if again.durable else 0)

    def test_large_batches_and_reads(self, backend: Backend) -> None:
        """As many entries as the engine gives at once."""
        batch: dict[bytes, bytes | None] = {self.key(f"key-{n}"): b"%d" % n for n in range(50_000)}
        backend.apply(batch, Epoch(1))
        assert backend.get_many(list(batch)) == list(batch.values())
        assert self.content(backend) == batch

    # Clearing

    def test_clear_of_some_groups(self, backend: Backend) -> None:
        """The others stay, the marker is 0."""
        keys = [self.key(f"k{n}", sub) for n in range(100) for sub in (b"", b"\0s")]
        backend.apply(dict.fromkeys(keys, b"v"), Epoch(5))
        backend.clear(range(2, 5))
        assert backend.applied_epoch() == 0
        assert set(self.content(backend)) == {key for key in keys if group_of_entry(key) not in range(2, 5)}

    def test_clear_of_everything(self, backend: Backend) -> None:
        """And the place can be filled again."""
        backend.apply({self.key("a"): b"1", self.key("a", b"\0s"): b"2"}, Epoch(5))
        backend.clear(range(self.max_parallelism))
        assert self.content(backend) == {}
        prefix = self.key("a", b"\0")
        assert list(backend.scan(prefix, prefix_end(prefix))) == []
        backend.apply({self.key("b"): b"2"}, Epoch(1))
        assert self.content(backend) == {self.key("b"): b"2"}
        assert backend.applied_epoch() == 1

    # Filling at once, where the backend offers it

    def test_a_bulk_load_is_what_batches_would_have_made(self, open_backend: OpenBackend) -> None:
        """With the marker at 0 until the next batch, after which both survive; nothing of before the clearing comes back."""
        backend = open_backend()
        if not isinstance(backend, SupportsBulkLoad):
            return
        backend.apply({self.key("gone"): b"1", self.key("gone", b"\0s"): b"2"}, Epoch(3))
        backend.clear(range(self.max_parallelism))
        entries = {self.key(f"k{n}", sub): b"%d" % n * (n % 50) for n in range(2000) for sub in (b"", b"\0a", b"\0b")}
        backend.bulk_load(iter(sorted(entries.items())))
        assert backend.applied_epoch() == 0
        assert self.content(backend) == entries
        assert backend.get_many(list(entries)) == list(entries.values())
        prefix = self.key("k7", b"\0")
        assert [key for key, _ in backend.scan(prefix, prefix_end(prefix))] == [prefix + b"a", prefix + b"b"]
        backend.apply({self.key("k7"): None, self.key("k7", b"\0a"): None, self.key("new"): b"n"}, Epoch(9))
        backend.persist()
        backend.close()
        again = open_backend(attempt=2)
        expected = {**entries, self.key("new"): b"n"}
        del expected[self.key("k7")], expected[self.key("k7", b"\0a")]
        assert self.content(again) == (expected if again.durable else {})
        assert again.applied_epoch() == (9 if again.durable else 0)

    def test_a_bulk_load_of_nothing(self, backend: Backend) -> None:
        """Is an empty backend."""
        if not isinstance(backend, SupportsBulkLoad):
            return
        backend.clear(range(self.max_parallelism))
        backend.bulk_load(iter(()))
        assert self.content(backend) == {}
        assert backend.applied_epoch() == 0

    def test_a_bulk_load_that_fails_can_be_done_again(self, open_backend: OpenBackend) -> None:
        """What the entries raise comes through, and the place is not taken for whole, also by another opening."""
        backend = open_backend()
        if not isinstance(backend, SupportsBulkLoad):
            return
        entries = sorted((self.key(f"k{n}"), b"v%d" % n) for n in range(3000))

        def broken() -> Iterator[tuple[bytes, bytes]]:
            yield from entries[:2000]
            raise CorruptionError("x", "the source is damaged")

        backend.apply({self.key("old"): b"1"}, Epoch(3))
        backend.clear(range(self.max_parallelism))
        with pytest.raises(CorruptionError, match="the source is damaged"):
            backend.bulk_load(broken())
        assert backend.applied_epoch() == 0
        backend.close()
        again = open_backend(attempt=2)
        assert again.applied_epoch() == 0
        again.clear(range(self.max_parallelism))
        assert isinstance(again, SupportsBulkLoad)
        again.bulk_load(iter(entries))
        assert self.content(again) == dict(entries)

    def test_a_bulk_load_of_an_older_attempt_is_fenced(self, open_backend: OpenBackend) -> None:
        """What a zombie loads does not get into the owner's state."""
        if not (self.fenced and type(open_backend()).durable):
            return
        zombie = open_backend(attempt=Attempt(2))
        if not isinstance(zombie, SupportsBulkLoad):
            return
        zombie.clear(range(self.max_parallelism))
        owner = open_backend(attempt=Attempt(3))
        owner.clear(range(self.max_parallelism))
        with pytest.raises(FencedError):
            zombie.bulk_load(iter([(self.key("a"), b"zombie")]))
        assert self.content(owner) == {}

    # Life

    def test_persisted_entries_are_there_after_reopening(self, open_backend: OpenBackend) -> None:
        """With their marker; a backend that is not durable is empty."""
        backend = open_backend()
        batch = {self.key(f"k{n}"): b"v%d" % n for n in range(1000)}
        backend.apply(batch, Epoch(1))
        backend.apply({self.key("k1"): None}, Epoch(2))
        backend.persist()
        backend.close()
        again = open_backend(attempt=2)
        expected = {key: value for key, value in batch.items() if key != self.key("k1")} if backend.durable else {}
        assert self.content(again) == expected
        assert again.applied_epoch() == (2 if backend.durable else 0)

    def test_what_was_not_persisted_is_there_whole_or_not_at_all(self, open_backend: OpenBackend) -> None:
        """Entries and marker go together."""
        backend = open_backend()
        states: list[dict[bytes, bytes]] = [{}]
        for epoch in range(1, 6):
            states.append({self.key(f"k{n}"): b"%d" % epoch for n in range(100 * epoch)})
            backend.apply(states[-1], Epoch(epoch))
            persisted = backend.persist() if epoch == 3 else 0
        assert persisted in (0, 3)
        backend.close()
        again = open_backend(attempt=2)
        assert self.content(again) == states[again.applied_epoch()]
        assert again.applied_epoch() >= 3 or not again.durable

    def test_options_are_checked(self, open_backend: OpenBackend) -> None:
        """An unknown one is an error that names it."""
        with pytest.raises(ConfigError, match="no-such-option"):
            open_backend(**{"no-such-option": 1})

    def test_damage_is_never_silent(
        self, open_backend: OpenBackend, stored_folder: Path | None, tmp_path: Path
    ) -> None:
        """A flipped bit anywhere: an error, or a place that is set aside and empty, or nothing that was needed."""
        if stored_folder is None:
            return
        batch = {self.key(f"key-{n}"): b"value %d" % n * 5 for n in range(2000)}
        backend = open_backend()
        backend.apply(batch, Epoch(7))
        backend.persist()
        backend.close()
        pristine, rng = tmp_path / "pristine", random.Random(1)
        shutil.copytree(stored_folder, pristine)
        files = sorted(path.relative_to(pristine) for path in pristine.rglob("*") if path.is_file())
        outcomes = set()
        for number in range(40):
            shutil.rmtree(stored_folder, ignore_errors=True)
            shutil.copytree(pristine, stored_folder)
            file = stored_folder / files[number % len(files)]
            data = bytearray(file.read_bytes())
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                file.write_bytes(data)
            outcomes.add(self._outcome(open_backend, batch))
        assert outcomes <= {"noticed", "set aside", "whole"}
        assert outcomes & {"noticed", "set aside"}

    def _outcome(self, open_backend: OpenBackend, batch: dict[bytes, bytes]) -> str:
        try:
            backend = open_backend(attempt=2)
        except StateStoreError:
            return "noticed"
        try:
            found, epoch = self.content(backend), backend.applied_epoch()
            read = backend.get_many(list(batch))
        except CorruptionError:
            return "noticed"
        finally:
            backend.close()
        if (found, epoch) == ({}, 0):
            return "set aside"
        return "whole" if (found, epoch) == (batch, 7) and read == list(batch.values()) else "silently different"

    def test_clear_survives_reopening(self, open_backend: OpenBackend) -> None:
        """A place being restored must not look as if it were whole."""
        backend = open_backend()
        backend.apply({self.key("a"): b"1"}, Epoch(4))
        backend.persist()
        backend.clear(range(self.max_parallelism))
        backend.close()
        assert open_backend(attempt=2).applied_epoch() == 0

    def test_closing_twice_and_use_after_it(self, backend: Backend) -> None:
        """The second close does nothing, any use raises ClosedError."""
        backend.close()
        backend.close()
        for use in (
            lambda: backend.get_many([self.key("a")]),
            lambda: backend.apply({}, Epoch(1)),
            lambda: list(backend.scan(b"", None)),
            backend.applied_epoch,
            backend.persist,
            lambda: backend.clear(range(1)),
        ):
            with pytest.raises(ClosedError):
                use()

    def test_an_older_attempt_is_fenced(self, open_backend: OpenBackend) -> None:
        """A zombie can neither write nor open the place again."""
        if not (self.fenced and type(open_backend()).durable):
            return
        zombie = open_backend(attempt=Attempt(2))
        zombie.apply({self.key("a"): b"old"}, Epoch(1))
        owner = open_backend(attempt=Attempt(3))
        owner.apply({self.key("a"): b"new"}, Epoch(2))
        with pytest.raises(FencedError):
            zombie.apply({self.key("a"): b"zombie", self.key("b"): b"zombie"}, Epoch(2))
        with pytest.raises(FencedError):
            zombie.clear(range(self.max_parallelism))
        with pytest.raises(FencedError):
            open_backend(attempt=Attempt(2))
        assert self.content(owner) == {self.key("a"): b"new"}
        assert owner.applied_epoch() == 2

    def test_a_native_copy_is_restored(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        """It stays what it was when it was made, and becomes the backend, to be worked on and opened again."""
        backend = open_backend()
        if not isinstance(backend, SupportsNativeCheckpoint):
            return
        before: dict[bytes, bytes | None] = {self.key(f"k{n}"): b"%d" % n for n in range(1000)}
        backend.apply(before, Epoch(3))
        folder = tmp_path / "copy"
        copy = backend.native_checkpoint(str(folder))
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert copy.epoch == 3
        assert copy.immutable <= files.keys()
        for epoch in range(4, 8):
            backend.apply({self.key(f"k{n}"): b"x" for n in range(500, 1500)}, Epoch(epoch))
            backend.persist()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        backend.verify_native(str(folder), sorted(copy.immutable))
        backend.restore_native(str(folder))
        assert (backend.applied_epoch(), self.content(backend)) == (3, before)
        backend.apply({self.key("k0"): None}, Epoch(4))
        backend.persist()
        backend.close()
        assert self.content(open_backend(attempt=2)) == {key: value for key, value in before.items() if value != b"0"}

    def test_damage_of_a_native_copy_is_noticed(self, open_backend: OpenBackend, tmp_path: Path) -> None:
        """Wherever it is, unless all entries can be read without what is damaged."""
        backend = open_backend()
        if not isinstance(backend, SupportsNativeCheckpoint):
            return
        batch: dict[bytes, bytes | None] = {self.key(f"k{n}"): bytes([n % 251]) * 50 for n in range(1000)}
        backend.apply(batch, Epoch(3))
        copy = backend.native_checkpoint(str(tmp_path / "copy"))
        noticed, tried = 0, 0
        for name in copy.immutable:
            data = (tmp_path / "copy" / name).read_bytes()
            for position in range(0, len(data), max(1, len(data) // 20)):
                damaged = tmp_path / f"damaged-{tried}"
                shutil.copytree(tmp_path / "copy", damaged)
                (damaged / name).write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
                tried += 1
                try:
                    backend.verify_native(str(damaged), [name])
                except CorruptionError:
                    noticed += 1
                else:
                    backend.restore_native(str(damaged))
                    assert self.content(backend) == batch
                    assert backend.get_many([*batch, self.key("none")]) == [*batch.values(), None]
        assert noticed > 0.7 * tried

    @pytest.mark.parametrize("seed", range(3))
    def test_random_histories_match_a_dict(self, open_backend: OpenBackend, seed: int) -> None:
        """Batches, reads, scans and reopenings against an independent oracle."""
        rng = random.Random(seed)
        names = [self.key(f"k{n}", sub) for n in range(60) for sub in (b"", b"\0a", b"\0b")]
        model: dict[bytes, bytes] = {}
        backend, attempt = open_backend(), 1
        for epoch in range(1, self.history_batches):
            batch: dict[bytes, bytes | None] = {}
            for key in rng.sample(names, rng.randrange(0, 60)):
                batch[key] = None if rng.random() < 0.3 else rng.randbytes(rng.randrange(0, 200))
            backend.apply(batch, Epoch(epoch))
            for key, value in batch.items():
                if value is None:
                    model.pop(key, None)
                else:
                    model[key] = value
            if rng.random() < 0.1 and backend.durable:
                backend.persist()
                backend.close()
                attempt += 1
                backend = open_backend(attempt=attempt)
            wanted = rng.sample(names, 20)
            assert backend.get_many(wanted) == [model.get(key) for key in wanted]
            start, stop = sorted(rng.sample(names, 2))
            expected = sorted((key, value) for key, value in model.items() if start <= key < stop)
            assert list(backend.scan(start, stop)) == expected
        assert self.content(backend) == model
        assert backend.applied_epoch() == self.history_batches - 1
