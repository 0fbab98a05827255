"""Redis Streams as a source."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from statestore.errors import ConfigError, UnavailableError, UsageError
from statestore.io import redacted
from statestore_runtime.sources.base import (
    DECODE_ERRORS,
    DEFAULT_BATCH_SIZE,
    OnError,
    Source,
    SourceContext,
    SplitReader,
    checked_batch_size,
)

if TYPE_CHECKING:
    import redis

BEGINNING = "0-0"
"""An id before all others."""

TIMEOUT_SECONDS = 5.0

Entry = tuple[bytes, dict[bytes, bytes]]


class RedisStreamSource(Source):
    """Entries of Redis Streams, each stream a split.

    The position is the id of the last entry that was read, and it is in the checkpoint: no consumer group is used, nothing is acknowledged
    or removed. Entries that were trimmed away before they were read end the job with an error that names stream and ids. How many there
    were is known from Redis 7 on; an older server is not believed when the entry at the position is gone.

    Parameters
    ----------
    url
        `redis://host:6379/0`, `rediss://` or `unix://`.
    streams
        A stream's key, or several.
    type
        What an entry is decoded into: the JSON in `field`, or without `field` all fields, whose texts are converted to the fields of a
        msgspec.Struct, dataclass or TypedDict. Without a type an entry is what JSON gives, or a dict of text.
    field
        Name of the field that holds JSON.
    start
        "earliest" or "latest": where reading begins when there is no position.
    bounded
        Whether a stream ends at the entry that was its last when reading began; otherwise it never does.
    batch_size
        Entries that are processed between two looks at the clock.
    block_seconds
        How long the server may wait for an entry when there is none. Other splits of the worker wait too, so this is for a worker that has
        nothing else to read.
    on_error
        What happens to an entry that can't be read: "fail", "skip" or "dead-letter". Default: `source.on-error` of the configuration.
    rate_limit
        Events per second and worker.

    Raises
    ------
    UsageError, ConfigError
        An argument can't be served.
    """

    def __init__(
        self,
        url: str,
        streams: str | Sequence[str],
        *,
        type: Any = None,
        field: str | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        bounded: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
        block_seconds: float = 0.0,
        on_error: OnError | None = None,
        rate_limit: float | None = None,
    ):
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError(
                f"'{redacted(url)}' is no Redis URL", key="source", hint="use redis://host:6379/0 or rediss://"
            )
        if start not in ("earliest", "latest"):
            raise UsageError(f"start is '{start}', it must be 'earliest' or 'latest'")
        if block_seconds < 0:
            raise UsageError(f"block_seconds is {block_seconds}, it must be at least 0")
        self._streams = [streams] if isinstance(streams, str) else list(streams)
        if not self._streams or len(set(self._streams)) != len(self._streams):
            raise UsageError(f"streams are {self._streams}: give at least one, and each once")
        self._url, self._start, self._is_bounded = url, start, bounded
        self._decode = EntryDecoder(type, field)
        self._batch_size, self._block_seconds = checked_batch_size(batch_size), block_seconds
        self._set_options(on_error, rate_limit)
        self._shared_client: redis.Redis | None = None

    @property
    def name(self) -> str:
        """The streams."""
        return f"redis stream {', '.join(self._streams)}"

    def discover(self, known: Collection[str]) -> list[str]:
        """The streams that were named."""
        return [stream for stream in self._streams if stream not in known]

    def read(self, split: str, position: Any | None, context: SourceContext) -> SplitReader:
        """Go to a position, or where `start` says.

        Raises
        ------
        UsageError
            The stream was made anew since the position was taken.
        ConfigError
            A bounded stream is not there, or the key is no stream.
        UnavailableError
            The server does not answer.
        """
        reader = _StreamReader(
            _Stream(self._client(), split, redacted(self._url)),
            self._decode,
            context,
            self._batch_size,
            self._block_seconds,
        )
        reader.begin(position, self._start, is_bounded=self._is_bounded)
        return reader

    def _client(self) -> redis.Redis:
        if self._shared_client is None:
            import redis
            from redis.backoff import ExponentialBackoff
            from redis.retry import Retry

            self._shared_client = redis.Redis.from_url(
                self._url,
                socket_timeout=TIMEOUT_SECONDS + self._block_seconds,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),  # all that is asked can be asked again
            )
        return self._shared_client

    def close(self) -> None:
        """Close the connections."""
        if self._shared_client is not None:
            self._shared_client.close()
            self._shared_client = None


class EntryDecoder:
    """Makes an event of an entry's fields."""

    def __init__(self, declared: Any, field: str | None):
        self._declared, self._field = declared, None if field is None else field.encode()
        self._decoder = msgspec.json.Decoder(Any if declared is None else declared)

    def decode(self, fields: Mapping[bytes, bytes]) -> Any:
        """Raises MsgspecError, UnicodeDecodeError, KeyError or RecursionError when it can't be made."""
        if self._field is not None:
            return self._decoder.decode(fields[self._field])
        texts = {name.decode(): value.decode() for name, value in fields.items()}
        return texts if self._declared is None else msgspec.convert(texts, self._declared, strict=False)

    def text(self, fields: Mapping[bytes, bytes]) -> str:
        """What a message shows of an entry."""
        shown = {_readable(name): _readable(value) for name, value in fields.items()}
        return msgspec.json.encode(shown).decode()

    def problem(self, error: Exception) -> str:
        """What is wrong with an entry that could not be made into an event."""
        return f"it has no field '{_readable(self._field or b'')}'" if isinstance(error, KeyError) else str(error)


class _Info(msgspec.Struct):
    """What the server tells about a stream."""

    first_id: str | None
    last_id: str
    """The last that was ever given out, also when its entry is gone."""
    length: int
    added: int | None
    """Entries that were ever added; None: the server does not count."""


class _Stream:
    """The commands, with the driver's errors made ours."""

    def __init__(self, client: redis.Redis, key: str, place: str):
        self._client, self.key, self._place = client, key, place

    def range(self, first: str, last: str, count: int) -> list[Entry]:
        """Entries from `first` to `last`, both included."""
        return self._run(lambda: self._client.xrange(self.key, first, last, count))  # type: ignore[no-any-return]

    def info(self) -> _Info | None:
        """None when there is no such key."""
        return self.info_and_range(BEGINNING, BEGINNING, 1)[0]

    def info_and_range(self, first: str, last: str, count: int) -> tuple[_Info | None, list[Entry]]:
        """Both of one instant."""
        import redis

        def ask() -> tuple[_Info | None, list[Entry]]:
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.xinfo_stream(self.key)
                pipeline.xrange(self.key, first, last, count)
                answer, entries = pipeline.execute(raise_on_error=False)
            if isinstance(entries, redis.RedisError):
                raise entries
            if isinstance(answer, redis.ResponseError):  # the other command had none, so this is for want of the key
                return None, []
            first_entry = answer["first-entry"]
            first_id = first_entry[0].decode() if first_entry else None
            return (
                _Info(first_id, answer["last-generated-id"].decode(), answer["length"], answer.get("entries-added")),
                entries,
            )

        return self._run(ask)  # type: ignore[no-any-return]

    def wait(self, last: str, seconds: float) -> None:
        """Until there is an entry after `last`, or the time is over."""
        milliseconds = max(1, round(seconds * 1000))  # 0 would mean for ever
        self._run(lambda: self._client.xread({self.key: last}, count=1, block=milliseconds))

    def _run(self, command: Any) -> Any:
        import redis

        try:
            return command()
        except redis.ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise ConfigError(f"the key '{self.key}' at {self._place} is no stream", key="source") from error
            raise UnavailableError("redis", self._place, error) from error
        except redis.RedisError as error:
            raise UnavailableError("redis", self._place, error) from error


class _StreamReader(SplitReader):
    """Reads one stream.

    `index` is the number of entries that were added before and up to the position, as the server counts them. It tells how many were
    trimmed away unread: all that were ever added, without those before and those that are still there.
    """

    def __init__(
        self, stream: _Stream, decoder: EntryDecoder, context: SourceContext, batch_size: int, block_seconds: float
    ):
        self._stream, self._decoder, self._context = stream, decoder, context
        self._batch_size, self._block_seconds = batch_size, block_seconds
        self._last = BEGINNING
        self._end: str | None = None
        self._index: int | None = None
        self._is_index_exact = True

    def begin(self, position: dict[str, Any] | None, start: str, *, is_bounded: bool) -> None:
        info = self._stream.info()
        if position is not None:
            self._last, self._index, end = position["id"], position["index"], position["end"]
            self._end = end if is_bounded else None
            self._is_index_exact = False
            if info is None and self._last != BEGINNING:
                raise self._gone()
            if info is not None:
                self._check_same(info)
        elif info is None:
            self._index = 0
        elif start == "latest":
            self._last, self._index = info.last_id, info.added
        else:
            self._index = None if info.added is None else info.added - info.length
        if is_bounded and self._end is None:
            if info is None:
                raise ConfigError(f"there is no stream '{self._stream.key}'", key="source")
            self._end = info.last_id

    def next_batch(self) -> list[Any] | None:
        """Events of up to `batch_size` entries."""
        entries = self._next_entries()
        if not entries and self._end is not None:
            return None
        if not entries and self._block_seconds:
            self._stream.wait(self._last, self._block_seconds)
            entries = self._next_entries()
        events = self._decoded(entries)
        if entries:
            self._last = entries[-1][0].decode()
            self._is_index_exact = False
            if self._index is not None:
                self._index += len(entries)
        return events

    def _next_entries(self) -> list[Entry]:
        """Those after the position; that nothing between was trimmed away is certain when the entry at the position is still there."""
        end, count = self._end or "+", self._batch_size
        if self._end is not None and _number(self._last) >= _number(self._end):
            return []
        entries = self._stream.range(self._last, end, count + 1)
        if entries and entries[0][0].decode() == self._last:
            del entries[0]
            if not entries and not self._is_index_exact:
                self._correct_index()
            return entries
        info, entries = self._stream.info_and_range(self._last, end, count)
        if info is not None:
            self._check_same(info)
            self._check_nothing_lost(info)
        elif self._last != BEGINNING:
            raise self._gone()
        return entries

    def _correct_index(self) -> None:
        """At the stream's end the server's count is that of the position; ours lacks entries that were deleted singly."""
        info = self._stream.info()
        if info is not None and info.last_id == self._last:
            self._index, self._is_index_exact = info.added, True

    def _check_same(self, info: _Info) -> None:
        is_behind = info.added is not None and self._index is not None and info.added < self._index
        if is_behind or _number(info.last_id) < _number(self._last):
            raise UsageError(
                f"redis stream '{self._stream.key}' was made anew: its last id is {info.last_id}, "
                f"the position is id {self._last}: start over with --restore none"
            )

    def _check_nothing_lost(self, info: _Info) -> None:
        if info.first_id is not None and _number(info.first_id) <= _number(self._last):
            return  # the entry at the position was deleted, but the stream was not trimmed beyond it
        if info.last_id == self._last or (self._last == BEGINNING and info.added is None):
            return
        next_id = f"id {info.first_id}" if info.first_id else "the end"
        between = f"after id {self._last} and before {next_id}"
        if info.added is not None and self._index is not None:
            lost = info.added - self._index - info.length
            if lost == 0:
                return
            problem = f"{lost} entries {between} are gone"
        else:
            problem = f"entries {between} may be gone"
        raise UsageError(
            f"redis stream '{self._stream.key}' was trimmed before it was read: {problem}; "
            "keep more of it (XADD MAXLEN, XTRIM), or start over with --restore none"
        )

    def _gone(self) -> UsageError:
        return UsageError(
            f"redis stream '{self._stream.key}' is not there any more, the position is id {self._last}: "
            "put it back, or start over with --restore none"
        )

    def _decoded(self, entries: list[Entry]) -> list[Any]:
        events = []
        for entry_id, fields in entries:
            try:
                events.append(self._decoder.decode(fields))
            except (*DECODE_ERRORS, KeyError) as error:
                problem, text = self._decoder.problem(error), self._decoder.text(fields)
                self._context.bad_record(f"redis stream {self._stream.key}", "id", entry_id.decode(), text, problem)
        return events

    def position(self) -> dict[str, Any]:
        """Id of the last entry that was read, with where the stream ends for this source."""
        return {"id": self._last, "index": self._index, "end": self._end}


def _number(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


def _readable(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
