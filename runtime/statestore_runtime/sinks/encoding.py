"""Events as the bytes of a file: JSON lines and CSV, plain or compressed.

An encoder makes one file. It gives its bytes away as they come, and keeps nothing but what a format can write only later.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec
import zstandard

Encoder = Callable[[list[Any]], bytes]
"""Makes the bytes of a batch."""

encode_json_lines: Encoder = msgspec.json.Encoder().encode_lines


class OtherSchemaError(Exception):
    """A batch does not fit into this file, but may into another one."""


class FileEncoder(ABC):
    """Makes the bytes of one file from batches of events.

    Attributes
    ----------
    waiting_bytes : int
        About how much of what was encoded has not been given away.
    """

    waiting_bytes = 0

    @abstractmethod
    def encode(self, batch: list[Any]) -> bytes:
        """The next bytes.

        Raises
        ------
        TypeError, ValueError, OverflowError
            An event can't be encoded; nothing of the batch counts.
        OtherSchemaError
            It needs another file.
        """

    def finish(self) -> bytes:
        """The last bytes."""
        return b""


class LinesEncoder(FileEncoder):
    """What a function makes of each batch."""

    def __init__(self, encode: Encoder):
        self._encode = encode

    def encode(self, batch: list[Any]) -> bytes:
        """See `FileEncoder.encode`."""
        return self._encode(batch)


class CsvEncoder(FileEncoder):
    """Lines of comma-separated values below a header; None is an empty field. All events of a file are of one kind."""

    def __init__(self) -> None:
        self._type: type | None = None
        self._names: tuple[str, ...] | None = None

    def encode(self, batch: list[Any]) -> bytes:
        """See `FileEncoder.encode`; the first bytes have the header, of anything but plain tuples."""
        if self._type is not None:
            return self._rows(batch)
        self._type, self._names = type(batch[0]), names_of(batch[0])
        try:
            rows = self._rows(batch)
        except BaseException:
            self._type = None
            raise
        return rows if self._names is None else self._lines([self._names]) + rows

    def _rows(self, batch: list[Any]) -> bytes:
        kind = self._type
        assert kind is not None
        for event in batch:
            if type(event) is not kind:
                raise TypeError(f"it is {type(event).__name__}, those before are {kind.__name__}")
        if issubclass(kind, msgspec.Struct):
            return self._lines([msgspec.structs.astuple(event) for event in batch])
        if issubclass(kind, tuple):
            return self._lines(batch)
        names = self._names or ()
        if not issubclass(kind, dict):
            return self._lines([tuple(getattr(event, name) for name in names) for event in batch])
        for event in batch:
            if event.keys() != set(names):
                raise ValueError(f"its fields are {', '.join(event)}, those before have {', '.join(names)}")
        return self._lines([tuple(event[name] for name in names) for event in batch])

    @staticmethod
    def _lines(rows: list[tuple[Any, ...]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def names_of(event: Any) -> tuple[str, ...] | None:
    """Names of an event's fields, None for a plain tuple. Raises TypeError for what is no record."""
    if isinstance(event, msgspec.Struct):
        return event.__struct_encode_fields__
    if dataclasses.is_dataclass(event):
        return tuple(field.name for field in dataclasses.fields(event))
    if isinstance(event, dict):
        return tuple(event)
    if isinstance(event, tuple):
        return getattr(event, "_fields", None)
    raise TypeError(f"{type(event).__name__} is no Struct, dataclass, dict or tuple")


class CompressingEncoder(FileEncoder):
    """Compresses what another encoder makes.

    Parameters
    ----------
    method
        "gz" or "zst".
    """

    def __init__(self, inner: FileEncoder, method: str):
        self._inner = inner
        self._compressor: Any = (
            zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
            if method == "gz"
            else zstandard.ZstdCompressor().compressobj()
        )

    def encode(self, batch: list[Any]) -> bytes:
        """See `FileEncoder.encode`."""
        data: bytes = self._compressor.compress(self._inner.encode(batch))
        return data

    def finish(self) -> bytes:
        """What the compressor has kept."""
        data: bytes = self._compressor.compress(self._inner.finish()) + self._compressor.flush()
        return data
