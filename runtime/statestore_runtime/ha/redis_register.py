"""A register in a Redis server: one key, compared and set by one script."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import redis as driver

from statestore.errors import ConfigError, StateStoreError, UnavailableError
from statestore.io import redacted

# ARGV: expected value, empty for none; new value. That the new value is there already means that the answer to the same call was lost.
_REPLACE = """
local held = redis.call('GET', KEYS[1]) or ''
if held == ARGV[2] then return 1 end
if held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


def connect(url: str, timeout_seconds: float, key: str) -> Any:
    """Client of a server that throws nothing away.

    Parameters
    ----------
    timeout_seconds
        For each answer.
    key
        The setting that the URL comes from.

    Raises
    ------
    ConfigError
        The URL is none, or the server evicts keys when its memory is full.
    UnavailableError
        It does not answer.
    """
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigError(f"'{redacted(url)}' is no Redis URL", key=key, hint="use redis://host:6379/0 or rediss://")
    try:
        client = driver.Redis.from_url(url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds)
    except ValueError as error:
        raise ConfigError(str(error).replace(url, redacted(url)), key=key) from None
    try:
        with _Translated(redacted(url)):
            policy = _eviction_policy(client)
        if policy != "noeviction":
            problem = f"the server at {redacted(url)} has maxmemory-policy {policy}, which would throw the lease away"
            raise ConfigError(problem, key=key, hint="set maxmemory-policy noeviction on the server")
    except BaseException:
        client.close()
        raise
    return client


def _eviction_policy(client: Any) -> str:
    try:
        return str(client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction"))
    except driver.ResponseError:  # a managed server that hides its settings
        return "noeviction"


class RedisRegister:
    """A value in a Redis server; see `Register` for what it promises.

    What the server has acknowledged it may lose with its memory, unless it has an append-only file that is synced always.

    Parameters
    ----------
    client
        From `connect`.
    name
        The key.
    place
        The server, without secrets.
    """

    def __init__(self, client: Any, name: str, place: str):
        self._client, self._name, self._place = client, name, place
        self.where = f"{place} {name}"

    def read(self) -> bytes | None:
        """Get the key."""
        with _Translated(self._place):
            value: bytes | None = self._client.get(self._name)
            return value

    def replace(self, expected: bytes | None, value: bytes) -> bool:
        """Run the script. The driver may send it again after a lost connection: that finds the new value there."""
        with _Translated(self._place):
            return bool(self._client.eval(_REPLACE, 1, self._name, expected or b"", value))


class _Translated:
    """`with` block that turns the driver's exceptions into ours."""

    def __init__(self, place: str):
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, driver.RedisError | OSError) and not isinstance(error, StateStoreError):
            hint = "is the server running, and is high-availability.url right?"
            raise UnavailableError("redis", self._place, error, hint=hint) from error
