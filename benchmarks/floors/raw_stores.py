"""Stores that applications use directly: one value after another, and a thousand at a time. None of them syncs anything to the disk.

Keys and values are bytes already where the store wants them so.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.timing import COLD_OPERATIONS, Keys, Timed, batches, for_each, timed, value


class RawStore(Protocol):
    """What is timed."""

    def get(self, key: str) -> object: ...
    def put(self, key: str) -> object: ...
    def get_many(self, keys: Sequence[str]) -> object: ...
    def put_many(self, keys: Sequence[str]) -> object: ...
    def flush(self) -> object: ...
    def close(self) -> object: ...


class RocksDict:
    """RocksDB with its own log off: write batches and multi-gets."""

    def __init__(self, folder: str, redis_url: str):
        from rocksdict import Options, Rdict, WriteBatch, WriteOptions

        self._batch, self._value = WriteBatch, value(2)
        self._options: Any = WriteOptions()
        self._options.disable_wal = True
        self._database = Rdict(folder, options=Options(raw_mode=True))
        self.close = self._database.close

    def get(self, key: str) -> object:
        return self._database[key.encode()]

    def put(self, key: str) -> None:
        self._database.put(key.encode(), self._value, write_opt=self._options)

    def get_many(self, keys: Sequence[str]) -> object:
        return self._database[[key.encode() for key in keys]]

    def put_many(self, keys: Sequence[str]) -> None:
        batch = self._batch(raw_mode=True)
        for key in keys:
            batch.put(key.encode(), self._value)
        self._database.write(batch, self._options)

    def flush(self) -> None:
        self._database.flush()


class Redis:
    """Pipelines of GET and SET."""

    def __init__(self, folder: str, redis_url: str):
        import redis

        self._client, self._value = redis.Redis.from_url(redis_url), value(2)
        self.get, self.close = self._client.get, self._client.close

    def put(self, key: str) -> object:
        return self._client.set(key, self._value)

    def get_many(self, keys: Sequence[str]) -> object:
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.get(key)
        return pipeline.execute()

    def put_many(self, keys: Sequence[str]) -> object:
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.set(key, self._value)
        return pipeline.execute()

    def flush(self) -> object:
        return None


class RedisMany(Redis):
    """MGET and MSET: a command for all, of which the server takes the keys wherever they lie."""

    def get_many(self, keys: Sequence[str]) -> object:
        return self._client.mget(keys)

    def put_many(self, keys: Sequence[str]) -> object:
        return self._client.mset(dict.fromkeys(keys, self._value))


class SQLite:
    """A table, a transaction for each batch."""

    PUT = "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    GET = "SELECT value FROM entries WHERE key = ?"

    def __init__(self, folder: str, redis_url: str):
        Path(folder).mkdir(exist_ok=True)
        self._connection, self._value = sqlite3.connect(f"{folder}/entries.db"), value(2)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self.flush, self.close = self._connection.commit, self._connection.close

    def get(self, key: str) -> object:
        return self._connection.execute(self.GET, (key,)).fetchone()

    def put(self, key: str) -> object:
        return self._connection.execute(self.PUT, (key, self._value))

    def get_many(self, keys: Sequence[str]) -> object:
        marks = ",".join("?" * len(keys))
        return self._connection.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", keys).fetchall()

    def put_many(self, keys: Sequence[str]) -> None:
        self._connection.executemany(self.PUT, [(key, self._value) for key in keys])
        self._connection.commit()


class LMDB:
    """A memory map, a transaction for each batch."""

    def __init__(self, folder: str, redis_url: str):
        import lmdb

        self._environment, self._value = lmdb.open(folder, map_size=16 << 30, sync=False, metasync=False), value(2)
        self.close = self._environment.close

    def get(self, key: str) -> object:
        with self._environment.begin() as transaction:
            return transaction.get(key.encode())

    def put(self, key: str) -> object:
        with self._environment.begin(write=True) as transaction:
            return transaction.put(key.encode(), self._value)

    def get_many(self, keys: Sequence[str]) -> object:
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            return cursor.getmulti([key.encode() for key in keys])

    def put_many(self, keys: Sequence[str]) -> object:
        with self._environment.begin(write=True) as transaction, transaction.cursor() as cursor:
            return cursor.putmulti([(key.encode(), self._value) for key in keys])

    def flush(self) -> object:
        return None


STORES: dict[str, Callable[[str, str], RawStore]] = {
    "raw rocksdict": RocksDict,
    "raw redis": Redis,
    "redis MGET": RedisMany,
    "sqlite": SQLite,
    "lmdb": LMDB,
}


def value_operations(name: str, count: int, folder: str, redis_url: str) -> dict[str, Timed]:
    """Timings by operation, named as ours are."""
    everything = Keys(count)
    place = f"{folder}/raw"
    store = STORES[name](place, redis_url)
    for part in batches(everything.all):
        store.put_many(part)
    store.flush()
    store.close()
    store = STORES[name](place, redis_url)
    keys = everything.all

    def get() -> None:
        for part in batches(keys):
            store.get_many(part)

    def put() -> None:
        for part in batches(keys):
            store.put_many(part)
        store.flush()

    results = {
        "valueUpdate cold": for_each(everything.sample(everything.all, COLD_OPERATIONS), store.put),
        "valueGet cold": for_each(everything.sample(everything.all, COLD_OPERATIONS), store.get),
        "valueGet cold, in batches": timed(count, get),
        "valueUpdate cold, in batches": timed(count, put),
    }
    store.close()
    return results
