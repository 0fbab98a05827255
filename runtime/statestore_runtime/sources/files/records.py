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
from typing import Any

import msgspec

from statestore_runtime.sources.base import DECODE_ERRORS

BadRecordHandler = Callable[[int, str, str], None]
"""Takes the number of the record (of its first line, or its row), its text, and the problem."""

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


class JsonLinesReader(LineReader):
    """One JSON value a line; blank lines are passed over."""

    def __init__(
        self,
        stream: io.BufferedReader,
        on_bad_record: BadRecordHandler,
        decoder: msgspec.json.Decoder[Any],
        *,
        can_seek: bool,
        is_growing: bool = False,
    ):
        super().__init__(stream, on_bad_record, can_seek=can_seek, is_growing=is_growing)
        self._decoder = decoder

    def read(self, count: int) -> list[Any] | None:
        """See `RecordReader.read`."""
        lines = self._take(count)
        if not lines:
            return None
        if self.offset == 0:
            self._drop_byte_order_mark(lines)
        size = sum(map(len, lines))
        try:
            events = self._decode_together(lines)
        except DECODE_ERRORS:
            events = self._decode_singly(lines)
        self.offset += size
        self.line += len(lines)
        return events

    def _decode_together(self, lines: list[bytes]) -> list[Any]:
        """Values of lines with one each. Raises one of DECODE_ERRORS when there is another."""
        data = b"".join(lines)
        # Within a value no closing brace is followed by an opening one: so each line has a value, and as many as lines are one each.
        if data.count(b"}\n{") + data.count(b"}\r\n{") == len(lines) - 1:
            events = self._decoder.decode_lines(data)
            if len(events) == len(lines):
                return events
        return list(map(self._decoder.decode, lines))

    def _drop_byte_order_mark(self, lines: list[bytes]) -> None:
        if lines[0].startswith(codecs.BOM_UTF8):
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            self.offset = len(codecs.BOM_UTF8)

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
