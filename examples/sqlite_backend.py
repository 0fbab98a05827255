"""A backend for statestore that keeps the state in an SQLite database: the example of docs/write-a-backend.md.

Entries and marker are rows of one database, so one transaction changes them together. SQLite orders BLOBs by their bytes, as `scan` must.
Its pages have no checksums: the file is checked when it is opened, which reads all of it, and every row carries a checksum.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from statestore import (
    Attempt,
    ClosedError,
    ConfigError,
    CorruptionError,
    Epoch,
    FencedError,
    StateStoreError,
    UnavailableError,
)
from statestore.backend import Backend, BackendContext, Batch
from statestore.config import Section, parse_options
from statestore.keys import group_start
from statestore.units import Duration, Size

KEYS_PER_QUERY = 500

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owner (id INTEGER PRIMARY KEY, attempt INTEGER, opening BLOB, epoch INTEGER, crc INTEGER);
"""


class SQLiteOptions(Section, frozen=True, kw_only=True):
    """`[state.sqlite]`."""

    dir: str | None = None
    """Folder for the databases of several jobs; default: the job's local folder."""
    cache: Size = 16 << 20
    """Memory for pages, for each connection."""
    lock_timeout: Duration = 10.0
    """How long to wait for another process that writes."""


class SQLiteBackend(Backend):
    """State in an SQLite database on the local disk."""

    durable = True

    def __init__(self, file: Path, context: BackendContext, options: SQLiteOptions):
        self._file, self._attempt, self._options = file, context.attempt, options
        self._opening = secrets.token_bytes(
            8
        )  # tells apart openings that have the same attempt: the later one owns the state
        self._closed = False
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        with self._errors():
            file.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
        try:
            with self._errors():
                self._check()
                self._take_over()
        except BaseException:
            self._writer.close()
            raise

    @classmethod
    def open(cls, context: BackendContext) -> SQLiteBackend:
        """Open the database and take it over from older attempts."""
        options = parse_options(SQLiteOptions, context.options, "state.sqlite")
        folder = options.dir or context.directory
        if folder is None:
            raise ConfigError("the sqlite backend needs a place", key="state.sqlite.dir", hint="give a folder")
        groups = context.key_groups
        part = "" if len(groups) == context.max_parallelism else f".{groups.start}-{groups.stop - 1}"
        return cls(Path(folder, f"{context.job}{part}.db"), context, options)

    @classmethod
    def options_from_url(cls, url: str) -> dict[str, Any]:
        """`sqlite+file:///folder` names the folder."""
        return {"dir": urlsplit(url).path}

    # Opening

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._file, timeout=self._options.lock_timeout, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = bytes  # there is no text in it; if there seems to be, it is damage
        connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
        connection.execute("PRAGMA synchronous = FULL")  # a transaction is on the disk when it has ended
        connection.execute(f"PRAGMA cache_size = -{self._options.cache // 1024}")
        return connection

    def _check(self) -> None:
        (found,) = self._writer.execute("PRAGMA integrity_check(1)").fetchone()
        if found != b"ok":
            raise sqlite3.DatabaseError(found.decode(errors="replace"))
        self._writer.executescript(SCHEMA)

    def _take_over(self) -> None:
        with self._transaction():
            found, _, self._epoch = self._read_owner()
            if found > self._attempt:
                raise FencedError(str(self._file), self._attempt, found)
            self._write_owner(self._epoch)

    def _read_owner(self) -> tuple[Attempt, bytes, Epoch]:
        row = self._writer.execute("SELECT attempt, opening, epoch, crc FROM owner").fetchone()
        if row is None:
            return Attempt(0), b"", Epoch(0)
        if _crc(*row[:3]) != row[3]:
            raise CorruptionError(str(self._file), "the marker does not match its checksum")
        return row[:3]

    def _write_owner(self, epoch: Epoch) -> None:
        row = (self._attempt, self._opening, epoch)
        self._writer.execute("INSERT OR REPLACE INTO owner VALUES (0, ?, ?, ?, ?)", (*row, _crc(*row)))

    def _check_owner(self) -> None:
        attempt, opening, _ = self._read_owner()
        if opening != self._opening:
            raise FencedError(str(self._file), self._attempt, attempt)

    # Reading

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Ask for some hundred keys at a time."""
        found: dict[bytes, bytes] = {}
        with self._reading() as connection, self._errors():
            for first in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[first : first + KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                rows = connection.execute(f"SELECT key, value, crc FROM entries WHERE key IN ({marks})", some)
                found.update(self._checked(row) for row in rows)
        return [found.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Read the database as it is now; a connection of its own keeps it so while batches are applied."""
        query = "SELECT key, value, crc FROM entries WHERE key >= ? AND (? IS NULL OR key < ?) ORDER BY key"
        with self._reading() as connection:
            with self._errors():
                cursor = connection.execute(query, (start, stop, stop))
            try:
                while True:
                    with self._errors():
                        rows = cursor.fetchmany(1000)
                    if not rows:
                        return
                    yield from map(self._checked, rows)
            finally:
                cursor.close()

    def _checked(self, row: tuple[bytes, bytes, int]) -> tuple[bytes, bytes]:
        key, value, crc = row
        if _crc(key, value) != crc:
            raise CorruptionError(str(self._file), f"the entry {key.hex()} does not match its checksum")
        return key, value

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile: reads may come from several threads."""
        self._check_open()
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            with self._errors():
                connection = self._connect()
        try:
            yield connection
        finally:
            self._idle.put(connection)
            if self._closed:
                self._close_idle()

    def applied_epoch(self) -> Epoch:
        """The marker."""
        self._check_open()
        return self._epoch

    # Writing

    def apply(self, batch: Batch, epoch: Epoch) -> None:
        """Write entries and marker in one transaction."""
        self._check_open()
        puts = [(key, value, _crc(key, value)) for key, value in batch.items() if value is not None]
        with self._errors(), self._transaction():
            self._check_owner()
            self._writer.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", puts)
            gone = ((key,) for key, value in batch.items() if value is None)
            self._writer.executemany("DELETE FROM entries WHERE key = ?", gone)
            self._write_owner(epoch)
        self._epoch = epoch

    def persist(self) -> Epoch:
        """Every transaction is on the disk when it has ended."""
        self._check_open()
        return self._epoch

    def clear(self, key_groups: range) -> None:
        """Marker and entries go together."""
        self._check_open()
        with self._errors(), self._transaction():
            self._check_owner()
            self._write_owner(Epoch(0))
            bounds = (group_start(key_groups.start), group_start(key_groups.stop))
            self._writer.execute("DELETE FROM entries WHERE key >= ? AND key < ?", bounds)
        self._epoch = Epoch(0)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block's changes, or none."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the connections; one that a scan still uses, when the scan ends."""
        if not self._closed:
            self._closed = True
            self._close_idle()
            self._writer.close()

    def _close_idle(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the sqlite backend is closed")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Make SQLite's errors ours."""
        try:
            yield
        except StateStoreError:
            raise
        except (sqlite3.OperationalError, OSError) as error:
            raise UnavailableError("sqlite", str(self._file), error) from error
        except sqlite3.DatabaseError as error:
            hint = "delete it to have it rebuilt from the checkpoint"
            raise CorruptionError(str(self._file), str(error), hint=hint) from error


def _crc(*fields: object) -> int:
    """Checksum of what is in a row, whatever that is by now."""
    return zlib.crc32(repr(fields).encode())
