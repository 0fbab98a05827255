"""Lines from a network connection."""

from __future__ import annotations

import socket
from typing import Any

import msgspec

from statestore.errors import UnavailableError, UsageError
from statestore_runtime.sources.base import (
    DECODE_ERRORS,
    DEFAULT_BATCH_SIZE,
    FixedSplitsSource,
    OnError,
    SourceContext,
    SplitReader,
    checked_batch_size,
)

CONNECT_SECONDS = 5.0
LINE_MAX_BYTES = 16 << 20

_RECEIVE_BYTES = 64 * 1024


class SocketSource(FixedSplitsSource):
    """Lines that come over a TCP connection, such as from `nc -lk 9999`. For demonstrations only: it can't be read again.

    What came since a checkpoint, and what comes while the job is not connected, is gone after a failure. So the source refuses to go on
    from a checkpoint unless it is told that lines may be lost.

    Parameters
    ----------
    host, port
        Where something listens that sends lines.
    type
        What a line, which is JSON then, is decoded into. Without it a line is a str.
    allow_loss
        Whether the job may go on from a checkpoint though lines that came after it are lost.
    batch_size
        Lines that are processed between two looks at the clock.
    on_error
        What happens to a line that can't be read: "fail", "skip" or "dead-letter". Default: `source.on-error` of the configuration.
    rate_limit
        Events per second.

    Raises
    ------
    UsageError, ConfigError
        An argument can't be served.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        type: Any = None,
        allow_loss: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_error: OnError | None = None,
        rate_limit: float | None = None,
    ):
        super().__init__()
        self._address, self._allow_loss = (host, port), allow_loss
        self._decoder = None if type is None else msgspec.json.Decoder(type)
        self._batch_size = checked_batch_size(batch_size)
        self._set_options(on_error, rate_limit)

    @property
    def name(self) -> str:
        """The address."""
        return f"socket {self._address[0]}:{self._address[1]}"

    def read_part(self, part: int, position: Any | None, context: SourceContext) -> SplitReader:
        """Connect. Raises UsageError when lines may have been lost, UnavailableError when nothing listens."""
        if position is not None and not self._allow_loss:
            raise UsageError(
                f"{self.name} can't be read again: what came after line {position} is lost; "
                "start over with --restore none, or give SocketSource allow_loss=True"
            )
        return _SocketReader(self.name, self._address, position or 0, self._decoder, context, self._batch_size)


class _SocketReader(SplitReader):
    def __init__(
        self,
        name: str,
        address: tuple[str, int],
        lines_read: int,
        decoder: msgspec.json.Decoder[Any] | None,
        context: SourceContext,
        batch_size: int,
    ):
        self._name, self._lines_read, self._decoder = name, lines_read, decoder
        self._context, self._batch_size = context, batch_size
        self._lines: list[bytes] = []
        self._rest = b""
        self._is_open = True
        try:
            self._socket = socket.create_connection(address, CONNECT_SECONDS)
        except OSError as error:
            raise self._unavailable(error) from error
        self._socket.setblocking(False)

    def next_batch(self) -> list[Any] | None:
        """Up to `batch_size` lines; the connection's end is the end."""
        if len(self._lines) < self._batch_size and self._is_open:
            self._receive()
        if not self._lines:
            return [] if self._is_open else None
        lines = self._lines[: self._batch_size]
        del self._lines[: self._batch_size]
        events = self._decoded(lines)
        self._lines_read += len(lines)
        return events

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._unavailable(error) from error
        self._is_open = bool(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += lines
        if not self._is_open and self._rest:  # the last line may have no newline
            self._lines.append(self._rest)
            self._rest = b""
        if len(self._rest) > LINE_MAX_BYTES:
            raise UnavailableError("source", self._name, f"no line ends within {LINE_MAX_BYTES} bytes")

    def _decoded(self, lines: list[bytes]) -> list[Any]:
        events: list[Any] = []
        for number, line in enumerate(lines, self._lines_read + 1):
            try:
                if self._decoder is None:
                    events.append(line.decode().removesuffix("\r"))
                elif line.strip():
                    events.append(self._decoder.decode(line))
            except DECODE_ERRORS as error:
                text = line.decode(errors="backslashreplace").removesuffix("\r")
                self._context.bad_record(self._name, "line", number, text, str(error))
        return events

    def _unavailable(self, error: OSError) -> UnavailableError:
        return UnavailableError("source", self._name, error.strerror or error)

    def position(self) -> int:
        """Number of lines read."""
        return self._lines_read

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
