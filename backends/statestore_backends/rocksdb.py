"""RocksDB backend, through rocksdict.

RocksDB's own log is off: the engine's log is the one log. After a crash the database is as of its last flush, its marker (written in the
same batch as the data) says which epoch that is, and the engine replays the rest. rocksdict runs in raw mode: it would otherwise unpickle
what it reads.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    ReadOptions,
    SstFileWriter,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from statestore.backend import Backend, BackendContext, Batch, NativeCheckpoint
from statestore.clock import Clock, SystemClock
from statestore.config import Section, parse_options
from statestore.errors import ClosedError, ConfigError, CorruptionError, StateStoreError, UnavailableError
from statestore.io import sync_folder
from statestore.keys import group_start
from statestore.types import Epoch
from statestore.units import Duration, Size

logger = logging.getLogger("statestore.backends.rocksdb")

MARKER_KEY = b"\xff\xff" + b"statestore.applied-epoch"
"""Above all entry keys, since key groups stay below 32768."""

LOADING = "loading"
"""Folder in the database's own for files that are about to be moved in."""

LOADED_FILE_BYTES = 64 << 20

_TABLE_SUFFIX = ".sst"
_END_OF_ENTRIES = b"\xff\xff"
_REBUILD = "delete the folder to have it rebuilt from the checkpoint"
_DAMAGE = (
    "corruption",
    "checksum",
    "no such file",
    "not an sstable",
    "bad table magic",
    "current file",
    "does not exist",
)


MEMORY_MIN_BYTES = 8 << 20
KEYS_PER_READ = 256
METADATA_BLOCK_BYTES = 64 << 10
METRICS = {
    "estimate-num-keys": "rocksdb_estimate_num_keys",
    "total-sst-files-size": "rocksdb_total_sst_files_size_bytes",
    "cur-size-all-mem-tables": "rocksdb_cur_size_all_mem_tables_bytes",
    "block-cache-usage": "rocksdb_block_cache_usage_bytes",
    "num-running-compactions": "rocksdb_num_running_compactions",
    "background-errors": "rocksdb_background_errors",
}
"""Properties of RocksDB, and what they are called as metrics."""


class RocksDBOptions(Section, frozen=True, kw_only=True):
    """`[state.rocksdb]`."""

    memory: Size = 128 << 20
    """For data, index and filter blocks and write buffers together; write buffers take up to half of it."""
    max_open_files: int = 512
    lock_timeout: Duration = 10.0
    """How long to wait for another process that holds the database."""


class RocksDBBackend(Backend):
    """State in a RocksDB database in the job's local folder."""

    durable = True

    def __init__(self, path: Path, options: RocksDBOptions, clock: Clock):
        self._path, self._options = path, _database_options(options)
        self._lock_timeout, self._clock = options.lock_timeout, clock
        write: Any = WriteOptions()
        write.disable_wal = True  # there is one log, the store's; the type stub takes this attribute for a method
        self._write = write
        self._write_bytes = options.memory // 32
        self._db: Any
        self._db, self._epoch = _open_or_set_aside(path, self._options, options.lock_timeout, clock)

    @classmethod
    def open(cls, context: BackendContext) -> RocksDBBackend:
        """Open the database; one that can't be opened is set aside, and the engine rebuilds it."""
        options = parse_options(RocksDBOptions, context.options, "state.rocksdb")
        if context.directory is None:
            raise ConfigError("the rocksdb backend needs a local folder", key="state.dir")
        if options.memory < MEMORY_MIN_BYTES:
            raise ConfigError(f"{options.memory} bytes are less than 8mb", key="state.rocksdb.memory")
        return cls(Path(context.directory), options, SystemClock())

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Multi-gets of some hundred keys: each holds the blocks it reads until its end, whatever the cache's capacity."""
        database = self._database()
        ordered = sorted(keys)  # so that hardly any block is read twice
        found: list[bytes | None] = []
        with _translated(self._path):
            for first in range(0, len(keys), KEYS_PER_READ):
                found += database.get(ordered[first : first + KEYS_PER_READ])
        values = dict(zip(ordered, found, strict=True))
        return list(map(values.__getitem__, keys))

    def apply(self, batch: Batch, epoch: Epoch) -> None:
        """Write the batch and the marker; so much that it would not fit the write buffers in several writes, the marker in the last."""
        writes, size = WriteBatch(raw_mode=True), 0
        for key, value in batch.items():
            if value is None:
                writes.delete(key)
            else:
                writes.put(key, value)
                size += len(value)
            size += len(key)
            if size >= self._write_bytes:
                self._commit(writes)
                writes, size = WriteBatch(raw_mode=True), 0
        writes.put(MARKER_KEY, epoch.to_bytes(8, "big"))
        self._commit(writes)
        self._epoch = epoch

    def _commit(self, writes: WriteBatch) -> None:
        database = self._database()
        with _translated(self._path):
            database.write(writes, self._write)

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over the database as it is now."""
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(_END_OF_ENTRIES if stop is None else min(stop, _END_OF_ENTRIES))
        with _translated(self._path):
            iterator = self._database().iter(bounds)
            iterator.seek(start)
        while iterator.valid():
            yield iterator.key(), iterator.value()
            iterator.next()
        with _translated(self._path):
            iterator.status()  # an iterator that meets damage just stops; only this tells

    def bulk_load(self, entries: Iterator[tuple[bytes, bytes]]) -> None:
        """Write sorted files beside the database and move them in: they pass neither write buffers nor compaction."""
        database = self._database()
        folder = self._path / LOADING
        try:
            folder.mkdir(exist_ok=True)
            files = list(self._written(entries, folder))
            if files:
                moved = IngestExternalFileOptions()
                moved.set_move_files(True)
                with _translated(self._path):
                    database.ingest_external_file(files, moved)
        except OSError as error:
            if isinstance(error, StateStoreError):
                raise
            raise UnavailableError("rocksdb", str(self._path), error.strerror or error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _written(self, entries: Iterator[tuple[bytes, bytes]], folder: Path) -> Iterator[str]:
        for number in count():
            first = next(entries, None)
            if first is None:
                return
            file = str(folder / f"{number:06}.sst")
            size = 0
            with _translated(self._path):
                writer = SstFileWriter(self._options)
                writer.open(file)
                for key, value in chain([first], entries):
                    writer[key] = value
                    size += len(key) + len(value)
                    if size >= LOADED_FILE_BYTES:
                        break
                writer.finish()
            yield file

    def applied_epoch(self) -> Epoch:
        """The marker."""
        self._database()
        return self._epoch

    def persist(self) -> Epoch:
        """Flush the write buffers to disk."""
        database, epoch = self._database(), self._epoch
        with _translated(self._path):
            database.flush(True)
        return epoch

    def clear(self, key_groups: range) -> None:
        """Set the marker to 0, durably, then delete the groups' range."""
        database = self._database()
        self.apply({}, Epoch(0))
        self.persist()
        with _translated(self._path):
            if key_groups:
                database.delete_range(
                    group_start(key_groups.start), group_start(key_groups.stop), write_opt=self._write
                )

    def native_checkpoint(self, folder: str) -> NativeCheckpoint:
        """Flush the write buffers, and hard-link the tables; the few other files are copied."""
        database, epoch = self._database(), self._epoch
        with _translated(self._path):
            database.flush(True)
            Checkpoint(database).create_checkpoint(folder)
            entries = database.property_int_value("rocksdb.estimate-num-keys") or 0
        tables = frozenset(path.name for path in Path(folder).glob(f"*{_TABLE_SUFFIX}"))
        return NativeCheckpoint(epoch, entries, tables)

    def verify_native(self, folder: str, names: Sequence[str]) -> None:
        """Let RocksDB build a database of these tables alone: it reads each of them for that, and leaves out what it can't use.

        That is damaged tables, and undamaged ones that were bulk-loaded: so what is left out is read where it is. The filters of
        tables are not read; RocksDB goes on without one that is damaged.
        """
        scratch = Path(f"{folder}.verified")
        scratch.mkdir()
        try:
            for name in names:
                _link(Path(folder, name), scratch / name)
            with _translated(self._path):
                Rdict.repair(str(scratch), Options(raw_mode=True))
                good = _tables(_read_only(scratch))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for name in names:
            if name not in good:
                self._read_table(Path(folder), name)

    def _read_table(self, folder: Path, name: str) -> None:
        """Read all entries in the range of one table of a copy."""
        try:
            copy = _read_only(folder)
            first, last = _tables(copy)[name]
            bounds = ReadOptions()
            bounds.set_iterate_upper_bound(last + b"\0")
            entries = copy.iter(bounds)
            entries.seek(first)
            while entries.valid():
                entries.next()
            entries.status()
        except Exception as error:
            raise CorruptionError(str(self._path / name), "the table can't be read whole", hint=_REBUILD) from error

    def restore_native(self, folder: str) -> None:
        """Put the copy in the place of the database's folder."""
        self.close()
        try:
            shutil.rmtree(self._path)
            Path(folder).rename(self._path)
            sync_folder(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            raise UnavailableError("rocksdb", str(self._path), error.strerror) from error
        self._db, self._epoch = _open_or_set_aside(self._path, self._options, self._lock_timeout, self._clock)

    def metrics(self) -> dict[str, int]:
        """RocksDB's own figures."""
        database = self._database()
        return {name: database.property_int_value(f"rocksdb.{key}") or 0 for key, name in METRICS.items()}

    def close(self) -> None:
        """Close the database; what was not persisted comes back from the log."""
        if self._db is not None:
            database, self._db = self._db, None
            try:
                database.close()
            except Exception as error:  # it was damaged, or its folder is gone: whoever opens it next will see
                logger.warning("rocksdb at %s was not closed in order: %s", self._path, error)

    def _database(self) -> Any:
        if self._db is None:
            raise ClosedError("the rocksdb backend is closed")
        return self._db


class _translated:
    """`with` block that turns rocksdict's exceptions into ours."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, StateStoreError):
            raise _ours(error, self._path) from error


def _ours(error: Exception, path: Path) -> StateStoreError:
    text = str(error)
    if any(word in text.lower() for word in _DAMAGE):
        return CorruptionError(str(path), text, hint=_REBUILD)
    return UnavailableError("rocksdb", str(path), text)


def _read_only(path: Path) -> Any:
    return Rdict(str(path), Options(raw_mode=True), access_type=AccessType.read_only())


def _tables(database: Any) -> dict[str, tuple[bytes, bytes]]:
    """First and last key of each table."""
    return {table["name"].lstrip("/"): (table["start_key"], table["end_key"]) for table in database.live_files()}


def _link(file: Path, name: Path) -> None:
    """Give `file` another name, or where a file has only one, copy it."""
    try:
        name.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, name)


def _database_options(options: RocksDBOptions) -> Options:
    # Write buffers are charged to the cache, so that its capacity bounds both; the rest is room for what it may exceed it by.
    cache = Cache(options.memory - options.memory // 8)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(10, False)
    # Index and filters in blocks that are cached one by one: as a whole, those of large tables would push everything else out.
    table.set_cache_index_and_filter_blocks(True)
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(METADATA_BLOCK_BYTES)
    table.set_pin_top_level_index_and_filter(True)
    database = Options(raw_mode=True)
    database.create_if_missing(True)
    database.set_block_based_table_factory(table)
    buffers = WriteBufferManager.new_write_buffer_manager_with_cache(options.memory // 2, False, cache)
    database.set_write_buffer_manager(buffers)
    database.set_write_buffer_size(options.memory // 8)
    database.set_max_write_buffer_number(3)
    database.set_max_open_files(options.max_open_files)
    database.set_compression_type(DBCompressionType.lz4())
    database.set_keep_log_file_num(2)
    return database


def _open_or_set_aside(path: Path, options: Options, lock_timeout: float, clock: Clock) -> tuple[Any, Epoch]:
    """The database and its marker; in place of a damaged one, an empty one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError("rocksdb", str(path), error.strerror) from error
    deadline = clock.monotonic() + lock_timeout
    while True:
        try:
            return _opened(path, options)
        except Exception as error:
            if f"{path}/LOCK" in str(error):
                if clock.monotonic() >= deadline:
                    hint = "stop the process that uses it"
                    raise UnavailableError("rocksdb", str(path), "another process holds the lock", hint=hint) from error
                gc.collect()  # a database object that was dropped, not closed, holds the lock until it is collected
                clock.sleep(0.05)
                continue
            ours = _ours(error, path)
            if not isinstance(ours, CorruptionError):
                raise ours from error
            _set_aside(path, ours)


def _opened(path: Path, options: Options) -> tuple[Any, Epoch]:
    database = Rdict(str(path), options)
    try:
        marker = database.get(MARKER_KEY)
    except BaseException:
        database.close()
        raise
    return database, Epoch(int.from_bytes(marker, "big")) if marker else Epoch(0)


def _set_aside(path: Path, error: CorruptionError) -> None:
    """Keep a damaged database for inspection; only the first one is kept, so that disks do not fill."""
    aside = path.with_name(path.name + ".damaged")
    logger.error("%s; kept as %s, the state has to be restored", error, aside)
    if aside.exists():
        Rdict.destroy(str(path), Options(raw_mode=True))
    else:
        path.rename(aside)
    path.mkdir(parents=True, exist_ok=True)
