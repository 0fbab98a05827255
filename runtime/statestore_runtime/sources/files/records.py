"""Records of an open file, and the JSON lines among them.

A reader takes up to n records' lines at once and converts them together, which costs a fraction of doing it one by one. Only when that
fails does it go through them singly, to find the bad ones and their line numbers.
"""

from __future__ import annotations

import codecs
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from statestore_runtime.sources.base import DECODE_ERRORS

BadRecordHandler = Callable[[int, str, str], None]
"""Takes the number of the record (of its first line, or its row), its text, and the problem."""

TOGETHER_MIN_LINES = 64
TOGETHER_MAX_BYTES = 256 << 10
"""Of lines that are read as one piece."""

Place = dict[str, Any]
"""Where a reader is in a file: JSON-able."""


class RecordReader(ABC):
    """Reads events from an open file."""

    @abstractmethod
    def read(self, count: int) -> list[Any] | None:
        """Events of the next `count` records, fewer when some are bad; None at the end. Raises what the bad record handler does."""

    @abstractmethod
    def place(self) -> Place:
        """Where it is, after the events returned so far."""

    @abstractmethod
    def go_to(self, place: Place) -> None:
        """Go to a place that an earlier reader of the same file came to."""


class LineReader(RecordReader):
    """Reads records made of lines; `offset` and `line` are those after the events returned so far.

    Parameters
    ----------
    stream
        The file's bytes, unpacked.
    on_bad_record
        Takes what can't be read.
    can_seek
        Whether the stream can jump.
    is_growing
        Whether more may be appended: then what is not complete waits for it.
    """

    def __init__(
        self, stream: io.BufferedReader, on_bad_record: BadRecordHandler, *, can_seek: bool, is_growing: bool = False
    ):
        self._stream, self._can_seek, self._is_growing = stream, can_seek, is_growing
        self._on_bad_record = on_bad_record
        self.offset = 0
        self.line = 0

    def place(self) -> Place:
        """Byte offset in the unpacked file, and number of lines before it."""
        return {"offset": self.offset, "line": self.line}

    def go_to(self, place: Place) -> None:
        """See `RecordReader.go_to`."""
        offset = place["offset"]
        if offset <= self.offset:  # such as before a header that was not there yet
            return
        if self._can_seek:
            self._stream.seek(offset)
        else:
            left = offset - self.offset
            while left > 0 and (data := self._stream.read(min(left, 1 << 20))):
                left -= len(data)
        self.offset, self.line = offset, place["line"]

    def _take(self, count: int) -> list[bytes]:
        """Up to `count` lines, without a last one that is still being written."""
        lines = list(islice(self._stream, count))
        if self._is_growing and lines and not lines[-1].endswith(b"\n"):
            self._stream.seek(-len(lines.pop()), os.SEEK_CUR)
        return lines

    def _bad(self, line: int, data: bytes, problem: str) -> None:
        self._on_bad_record(line, data.decode(errors="backslashreplace").rstrip("\r\n"), problem)


class LineDecoder(Protocol):
    """What decodes lines of JSON, such as a msgspec.json.Decoder. Its errors are DECODE_ERRORS."""

    def decode(self, data: bytes, /) -> Any:
        """Value of one line."""
        ...

    def decode_lines(self, data: bytes, /) -> list[Any]:
        """Values of lines."""
        ...


class JsonLinesReader(LineReader):
    """One JSON value a line; blank lines are passed over."""

    def __init__(
        self,
        stream: io.BufferedReader,
        on_bad_record: BadRecordHandler,
        decoder: LineDecoder,
        *,
        can_seek: bool,
        is_growing: bool = False,
    ):
        super().__init__(stream, on_bad_record, can_seek=can_seek, is_growing=is_growing)
        self._decoder = decoder
        self._line_bytes = 0  # mean length, of the lines last read
        self._ahead = b""  # whole lines, read and not handed out

    def read(self, count: int) -> list[Any] | None:
        """See `RecordReader.read`."""
        data = self._take_together(count)
        if not data:
            return None
        if self.offset == 0 and data.startswith(codecs.BOM_UTF8):
            data = data.removeprefix(codecs.BOM_UTF8)
            self.offset = len(codecs.BOM_UTF8)
        number = data.count(b"\n") + (not data.endswith(b"\n"))
        try:
            events = self._decode_together(data, number)
        except DECODE_ERRORS:
            events = self._decode_singly(_lines(data))
        self._line_bytes = len(data) // number
        self.offset += len(data)
        self.line += number
        return events

    def _take_together(self, count: int) -> bytes:
        """Up to `count` lines: about as many bytes, and the rest of the last line, is faster than line by line."""
        if not self._line_bytes or count < TOGETHER_MIN_LINES:
            return b"".join(self._take(count))
        wanted = min(count * 31 // 32 * self._line_bytes, TOGETHER_MAX_BYTES)  # seldom more than `count` lines
        data = self._ahead + self._stream.read(max(0, wanted - len(self._ahead))) + self._stream.readline()
        self._ahead = b""
        if self._is_growing and not data.endswith(b"\n"):  # what is not complete may yet change
            complete = data.rfind(b"\n") + 1
            self._stream.seek(complete - len(data), os.SEEK_CUR)
            data = data[:complete]
        if data.count(b"\n") > count:
            self._ahead = data.split(b"\n", count)[count]
            data = data[: len(data) - len(self._ahead)]
        return data

    def _decode_together(self, data: bytes, number: int) -> list[Any]:
        """Values of `number` lines with one each. Raises one of DECODE_ERRORS when there is another."""
        # Within a value no closing brace is followed by an opening one: so each line has a value, and as many as lines are one each.
        if data.count(b"}\n{") + data.count(b"}\r\n{") == number - 1:
            events = self._decoder.decode_lines(data)
            if len(events) == number:
                return events
        return list(map(self._decoder.decode, _lines(data)))

    def _decode_singly(self, lines: list[bytes]) -> list[Any]:
        events = []
        for number, line in enumerate(lines, self.line + 1):
            if not line.strip():
                continue
            try:
                events.append(self._decoder.decode(line))
            except DECODE_ERRORS as error:
                self._bad(number, line, str(error))
        return events


def _lines(data: bytes) -> list[bytes]:
    return io.BytesIO(data).readlines()
