"""Encryption of what a storage holds, see `sealing` for the bytes.

Invariants:
- names, and sizes as far as they follow from the content, are the only thing that shows;
- sizes, offsets and hashes everywhere else in the engine are those of the content: nothing above this file knows whether it is encrypted;
- an object whose key is not there, and one that is not encrypted where keys are required, raise `EncryptionKeyError`: they are never taken
  for damage.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from statestore.errors import CorruptionError, EncryptionKeyError
from statestore.io.base import Appender, AppendStorage, Storage
from statestore.io.keyring import Keyring
from statestore.io.sealing import (
    APPENDED,
    CHUNK_BYTES,
    FRAME_MAX_BYTES,
    HEADER_BYTES,
    MAGIC,
    WHOLE,
    Header,
    chunk_offset,
    content_size,
    decode_header,
    open_chunks,
    open_frames,
    seal,
    seal_frame,
)

logger = logging.getLogger("statestore.io")

CIPHERS_MAX = 4096


class EncryptedStorage(Storage):
    """Objects encrypted with the newest of some keys; without keys, objects as they are.

    A read of a range costs one request for the chunks that hold it, and at the first of an object's one more for its header.
    """

    def __init__(self, inner: Storage, keys: Keyring):
        self.inner, self.keys, self.url = inner, keys, inner.url
        self._ciphers: dict[str, Any] = {}  # of objects that were read before; one that was replaced since has another

    def link(self, name: str, path: Path) -> bool:
        """Only what is not encrypted can be linked."""
        return not self.keys and self.inner.link(name, path)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read the chunks that hold the range, check and decrypt them.

        Raises
        ------
        EncryptionKeyError
            The key is missing, or the object is not encrypted.
        CorruptionError
            The object is not what was written.
        """
        if not self.keys:
            return self._read_without_keys(name, start, length)
        if start == 0:
            return self._read_from_beginning(name, length)
        if (cipher := self._ciphers.get(name)) is not None:
            try:
                return self._read_chunks(cipher, name, start, length)
            except CorruptionError:  # or it is another object by now
                self._ciphers.pop(name, None)
        header = self._stored_header(name)
        if header is None:
            return self.inner.read(name, start, length)
        return self._read_chunks(self._cipher(header, name), name, start, length)

    def _read_without_keys(self, name: str, start: int, length: int | None) -> bytes:
        data = self.inner.read(name, start, length)
        if start == 0 and data.startswith(MAGIC):
            self._stored_header(name)
        return data

    def _read_from_beginning(self, name: str, length: int | None) -> bytes:
        """Read header and chunks in one request."""
        wanted = None if length is None else chunk_offset(max(1, -(-length // CHUNK_BYTES))) + 1
        data = self.inner.read(name, 0, wanted)
        header = self._header(name, data)
        if header is None:
            return data[:length]
        stored = memoryview(data)[HEADER_BYTES:]
        return self._open(self._cipher(header, name), stored, 0, wanted and wanted - HEADER_BYTES, name)[:length]

    def _read_chunks(self, cipher: Any, name: str, start: int, length: int | None) -> bytes:
        first = start // CHUNK_BYTES
        last = first if length is None else max(first, (start + length - 1) // CHUNK_BYTES)
        wanted = None if length is None else chunk_offset(last + 1) + 1 - chunk_offset(first)
        data = self.inner.read(name, chunk_offset(first), wanted)
        if not data and first:
            return b""  # behind the end
        begin = start - first * CHUNK_BYTES
        content = self._open(cipher, memoryview(data), first, wanted, name)
        return content[begin : None if length is None else begin + length]

    def _open(self, cipher: Any, stored: memoryview, first: int, wanted: int | None, name: str) -> bytes:
        """Content of whole chunks. `wanted` is one byte more than they have: that tells whether they reach to the object's end."""
        to_the_end = wanted is None or len(stored) < wanted
        return open_chunks(
            cipher, stored if to_the_end else stored[:-1], first, to_the_end=to_the_end, file=self._file(name)
        )

    def _header(self, name: str, data: bytes) -> Header | None:
        """Header in an object's first bytes; None where it is not encrypted and need not be."""
        header = decode_header(data, self._file(name))
        if header is not None and header.key_id not in self.keys.ids:
            raise self.keys.missing(header.key_id, self._file(name))
        if header is not None or self.keys.allow_plaintext:
            return header
        if MAGIC.startswith(data):
            raise CorruptionError(self._file(name), "it is empty where an encrypted object should be", offset=0)
        hint = "set encryption.allow-plaintext = true as long as what was written without a key is needed"
        raise EncryptionKeyError(self._file(name), "is not encrypted, though a key is configured", None, hint)

    def _cipher(self, header: Header, name: str) -> Any:
        cipher = header.cipher(self.keys, name)
        if header.kind == WHOLE:
            if len(self._ciphers) >= CIPHERS_MAX:
                self._ciphers.clear()
            self._ciphers[name] = cipher
        return cipher

    def write(self, name: str, data: bytes) -> None:
        """Encrypt, and write."""
        self.inner.write(name, self._sealed(name, data))

    def create(self, name: str, data: bytes) -> None:
        """Encrypt, and create."""
        self.inner.create(name, self._sealed(name, data))

    def _sealed(self, name: str, data: bytes) -> bytes:
        if not self.keys:
            return data
        header = Header.new(WHOLE, self.keys)
        return seal(header, header.cipher(self.keys, name), data)

    def delete(self, name: str) -> None:
        """Delete."""
        self._ciphers.pop(name, None)
        self.inner.delete(name)

    def size(self, name: str) -> int:
        """Size of the content, computed from that of the object; only where objects may be unencrypted is the header read."""
        stored = self.inner.size(name)
        if not self.keys or (self.keys.allow_plaintext and self._stored_header(name) is None):
            return stored
        return content_size(stored)

    def key_id(self, name: str) -> str | None:
        """Which key an object is encrypted with, None for none; needs no key. Raises FileNotFoundError, CorruptionError."""
        header = decode_header(self.inner.read(name, 0, HEADER_BYTES), self._file(name))
        return None if header is None else header.key_id

    def _stored_header(self, name: str) -> Header | None:
        return self._header(name, self.inner.read(name, 0, HEADER_BYTES))

    def modified(self, name: str) -> float:
        """When the object was written."""
        return self.inner.modified(name)

    def tidy(self, folder: str, before: float) -> int:
        """Tidy."""
        return self.inner.tidy(folder, before)

    def list(self, folder: str = "") -> list[str]:
        """List."""
        return self.inner.list(folder)

    def exists(self, name: str) -> bool:
        """Whether the object is there, whatever it is encrypted with."""
        return self.inner.exists(name)

    def _file(self, name: str) -> str:
        return f"{self.url}/{name}"


class EncryptedAppender:
    """Appender whose every write is a frame of its own."""

    def __init__(self, inner: Appender, header: Header, cipher: Any):
        self._inner, self._cipher, self._number = inner, cipher, 0
        inner.write(header.encode())

    def write(self, data: bytes) -> None:
        """Encrypt and append `data`."""
        view = memoryview(data)
        while view:
            content, view = view[:FRAME_MAX_BYTES], view[FRAME_MAX_BYTES:]
            self._number += 1  # before it is written: the number is never used again, whatever became of it
            self._inner.write(seal_frame(self._cipher, self._number - 1, content))

    def sync(self) -> None:
        """Sync."""
        self._inner.sync()

    def close(self) -> None:
        """Close."""
        self._inner.close()


class EncryptedAppendStorage(EncryptedStorage, AppendStorage):
    """Encrypted objects that can grow. Those that were appended are read as a whole, whatever range is asked for."""

    inner: AppendStorage

    def __init__(self, inner: AppendStorage, keys: Keyring):
        super().__init__(inner, keys)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read; of an appended object, what is whole: an interrupted write at its end is left out, and logged."""
        if not self.keys:
            return super().read(name, start, length)
        data = self.inner.read(name)
        if _ends_within_header(data):
            content = b""
        elif (header := self._header(name, data)) is None:
            content = data
        elif header.kind == APPENDED:
            content = b"".join(part for part, _ in self._frames(header, name, data))
        else:
            return super().read(name, start, length)
        return content[start : None if length is None else start + length]

    def _frames(self, header: Header, name: str, data: bytes) -> list[tuple[bytes, int]]:
        frames = list(open_frames(self._cipher(header, name), data, self._file(name)))
        end = frames[-1][1] if frames else HEADER_BYTES
        if end < len(data):
            torn = len(data) - end
            logger.warning("%s: left out an unfinished write of %d bytes at byte %d", self._file(name), torn, end)
        return frames

    def size(self, name: str) -> int:
        """Size of the content; of an appended object, by reading it."""
        return len(self.read(name)) if self.keys else self.inner.size(name)

    def appender(self, name: str) -> Appender:
        """Create the object and append to it."""
        appender = self.inner.appender(name)
        if not self.keys:
            return appender
        header = Header.new(APPENDED, self.keys)
        return EncryptedAppender(appender, header, header.cipher(self.keys, name))

    def truncate(self, name: str, size: int) -> None:
        """Cut behind a frame, or where the cut is within one, write what remains anew: a frame's number is not used twice."""
        data = self.inner.read(name) if self.keys else b""
        header = None if not self.keys or _ends_within_header(data) else self._header(name, data)
        if header is None:
            self.inner.truncate(name, size)
            return
        if header.kind == APPENDED:
            kept, end = 0, HEADER_BYTES
            for content, frame_end in self._frames(header, name, data):
                if kept + len(content) > size:
                    break
                kept, end = kept + len(content), frame_end
            if kept == size:
                self.inner.truncate(name, end)
                return
        self.write(name, self.read(name)[:size])


def _ends_within_header(data: bytes) -> bool:
    """Whether an appended object was not even begun."""
    return not data.strip(b"\0") or (len(data) < HEADER_BYTES and data.startswith(MAGIC[: len(data)]))
