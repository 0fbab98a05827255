"""Byte grammar of encrypted objects.

Invariants:
- every object has a key of its own, derived from the configured key, a random salt, and the object's kind and name; so no nonce comes twice
  under a key, and an object that is put in the place of another does not open;
- a chunk's nonce is its number and whether it is the last, so chunks can't be moved, left out, or added, and an object can't be cut short;
- an appended object ends with its last whole frame: what follows is an interrupted write, if it is cut off or nothing but zeros from
  some point on, and otherwise damage;
- no byte of content is returned before its tag was checked.

Grammar (integers little-endian, in nonces big-endian; crc is CRC-32C):

    object = header · chunk+        kind 1, written whole: chunks of CHUNK_BYTES of content, the last may be less, an empty one is alone
           | header · frame*        kind 2, appended
    header = "SSTSEAL" · version u8 · kind u8 · key id 8 bytes · salt 32 bytes · crc of header u32
    chunk  = AES-256-GCM of the content, with a tag of 16 bytes
    frame  = length of content u32 · crc of these 4 bytes u32 · chunk
    nonce  = number u88 · 1 for the last chunk of an object of kind 1, otherwise 0
    key    = HKDF-SHA-256 of the configured key, the salt, and as info: header without crc · last part of the object's name
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c

from statestore.errors import CorruptionError
from statestore.io.base import ends_in_zeros
from statestore.io.keyring import ID_BYTES, Keyring

MAGIC = b"SSTSEAL"
VERSION = 1
WHOLE, APPENDED = 1, 2
CHUNK_BYTES = 64 << 10
FRAME_MAX_BYTES = 64 << 20
TAG_BYTES = 16
SALT_BYTES = 32

_header = struct.Struct(f"<{len(MAGIC)}sBB{ID_BYTES}s{SALT_BYTES}s")
_u32 = struct.Struct("<I")
HEADER_BYTES = _header.size + _u32.size
FRAME_HEAD_BYTES = 2 * _u32.size
STORED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Header:
    """First thing in an encrypted object."""

    kind: int
    key_id: str
    salt: bytes

    @classmethod
    def new(cls, kind: int, keys: Keyring) -> Header:
        """Of an object that is about to be written."""
        return cls(kind, keys.ids[0], secrets.token_bytes(SALT_BYTES))

    def encode(self) -> bytes:
        """Its bytes."""
        return self._checked + _u32.pack(google_crc32c.value(self._checked))

    @property
    def _checked(self) -> bytes:
        return _header.pack(MAGIC, VERSION, self.kind, bytes.fromhex(self.key_id), self.salt)

    def cipher(self, keys: Keyring, name: str) -> Any:
        """What encrypts and opens this object, called `name`; its key is among `keys`."""
        return keys.cipher(self.key_id, self.salt, self._checked + name.rpartition("/")[2].encode())


def decode_header(data: bytes, file: str) -> Header | None:
    """Header that `data` begins with; None when it is not an encrypted object's.

    Raises
    ------
    CorruptionError
        It is one, and damaged.
    """
    if not data.startswith(MAGIC):
        if len(data) >= HEADER_BYTES and _crc_matches(MAGIC + data[len(MAGIC) : HEADER_BYTES]):
            raise CorruptionError(file, "the first bytes of an encrypted object are damaged", offset=0)
        return None
    if len(data) < HEADER_BYTES:
        raise CorruptionError(file, "it ends within the header of an encrypted object", offset=len(data))
    if not _crc_matches(data):
        raise CorruptionError(file, "the header of an encrypted object does not match its checksum", offset=len(MAGIC))
    _, version, kind, key_id, salt = _header.unpack_from(data)
    if version != VERSION or kind not in (WHOLE, APPENDED):
        raise CorruptionError(file, f"encryption format {version}.{kind} is not supported", offset=len(MAGIC))
    return Header(kind, key_id.hex(), salt)


def _crc_matches(data: bytes) -> bool:
    (crc,) = _u32.unpack_from(data, _header.size)
    return bool(google_crc32c.value(data[: _header.size]) == crc)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


# Written whole


def seal(header: Header, cipher: Any, content: bytes) -> bytes:
    """Bytes of an object of kind 1."""
    view, parts = memoryview(content), [header.encode()]
    count = max(1, -(-len(content) // CHUNK_BYTES))
    for number in range(count):
        chunk = view[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        parts.append(cipher.encrypt(_nonce(number, number == count - 1), chunk, None))
    return b"".join(parts)


def content_size(stored: int) -> int:
    """How much content an object of kind 1 has that takes `stored` bytes."""
    chunks, rest = divmod(max(0, stored - HEADER_BYTES), STORED_CHUNK_BYTES)
    return chunks * CHUNK_BYTES + max(0, rest - TAG_BYTES)


def chunk_offset(number: int) -> int:
    """Where a chunk begins in an object of kind 1."""
    return HEADER_BYTES + number * STORED_CHUNK_BYTES


def open_chunks(cipher: Any, data: memoryview, first: int, *, to_the_end: bool, file: str) -> bytes:
    """Content of the chunks in `data`, the first of which is number `first`.

    Parameters
    ----------
    to_the_end
        Whether the object ends where `data` does.

    Raises
    ------
    CorruptionError
        A chunk is not what was written there.
    """
    from cryptography.exceptions import InvalidTag

    parts = []
    count = max(1, -(-len(data) // STORED_CHUNK_BYTES))
    for index in range(count):
        chunk = data[index * STORED_CHUNK_BYTES : (index + 1) * STORED_CHUNK_BYTES]
        try:
            parts.append(cipher.decrypt(_nonce(first + index, to_the_end and index == count - 1), chunk, None))
        except InvalidTag:
            problem = "a chunk of an encrypted object does not match its tag"
            raise CorruptionError(file, problem, offset=chunk_offset(first + index)) from None
    return b"".join(parts)


# Appended


def seal_frame(cipher: Any, number: int, content: memoryview) -> bytes:
    """Bytes of one frame."""
    length = _u32.pack(len(content))
    crc = _u32.pack(google_crc32c.value(length))
    return b"".join((length, crc, cipher.encrypt(_nonce(number, False), content, None)))


def open_frames(cipher: Any, data: bytes, file: str) -> Iterator[tuple[bytes, int]]:
    """Content of each whole frame of an appended object, and where the frame ends.

    Raises
    ------
    CorruptionError
        A frame is not what was written there.
    """
    from cryptography.exceptions import InvalidTag

    offset, number = HEADER_BYTES, 0
    while offset + FRAME_HEAD_BYTES <= len(data):
        length, crc = struct.unpack_from("<II", data, offset)
        if google_crc32c.value(data[offset : offset + _u32.size]) != crc:
            if ends_in_zeros(data, offset):
                return
            raise CorruptionError(file, "the head of an encrypted frame does not match its checksum", offset=offset)
        end = offset + FRAME_HEAD_BYTES + length + TAG_BYTES
        if end > len(data):
            return
        try:
            content = cipher.decrypt(_nonce(number, False), memoryview(data)[offset + FRAME_HEAD_BYTES : end], None)
        except InvalidTag:
            if ends_in_zeros(data, offset):
                return
            raise CorruptionError(file, "an encrypted frame does not match its tag", offset=offset) from None
        yield content, end
        offset, number = end, number + 1
