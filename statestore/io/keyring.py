"""The keys that objects are encrypted with.

Invariants:
- key material leaves this module only as a cipher: it is in no message, repr or file;
- a key is known by its id, the first bytes of a hash of it, so a wrong key is told from damage.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statestore.errors import ConfigError, EncryptionKeyError

KEY_BYTES = 32
ID_BYTES = 8


class Keyring:
    """Keys by their ids: the first encrypts what is written, all of them open what is read.

    Without keys, everything is written as it is, and what is encrypted can't be read.

    Parameters
    ----------
    keys
        32 bytes each, newest first.
    allow_plaintext
        Whether objects that are not encrypted may be read though there are keys.

    Raises
    ------
    ConfigError
        The package that encrypts is not installed.
    """

    def __init__(self, keys: Sequence[bytes] = (), *, allow_plaintext: bool = False):
        assert all(len(key) == KEY_BYTES for key in keys)
        self._keys = {_id_of(key): key for key in keys}
        self.ids: list[str] = list(self._keys)
        """Ids in hexadecimal, the writing key's first."""
        self.allow_plaintext = allow_plaintext or not keys
        if keys:
            try:
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: F401
            except ImportError as error:
                hint = "install the extra 'statestore[encryption]'"
                raise ConfigError(f"encryption can't be loaded: {error}", key="encryption", hint=hint) from error

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self.ids)})"

    def cipher(self, key_id: str, salt: bytes, info: bytes) -> Any:
        """AES-256-GCM with a key derived from key `key_id`, which is one of `ids`, for one object."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, info).derive(self._keys[key_id]))

    def missing(self, key_id: str, file: str) -> EncryptionKeyError:
        """The error that says which key an object needs."""
        if not self._keys:
            hint = "give its file in encryption.key-file, or the variable that holds it in encryption.key-env"
            return EncryptionKeyError(file, f"is encrypted with key {key_id}, and no key is configured", key_id, hint)
        hint = "give its file in encryption.previous-key-files"
        return EncryptionKeyError(file, f"is encrypted with key {key_id}, not with {', '.join(self.ids)}", key_id, hint)


NO_KEYS = Keyring()


def load_keyring(
    *,
    key_file: str | None,
    key_env: str | None,
    previous_key_files: Sequence[str],
    previous_key_envs: Sequence[str],
    allow_plaintext: bool,
    environ: Mapping[str, str],
) -> Keyring:
    """Keys as `[encryption]` in the configuration names them.

    Raises
    ------
    ConfigError
        A file or variable is missing, or holds no key; both kinds of writing key are given, or only previous keys.
    """
    if key_file is not None and key_env is not None:
        raise ConfigError("give key-file or key-env, not both", key="encryption.key-file")
    keys = [_from_file(key_file, "encryption.key-file")] if key_file is not None else []
    keys += [_from_variable(key_env, environ, "encryption.key-env")] if key_env is not None else []
    previous = [_from_file(file, "encryption.previous-key-files") for file in previous_key_files]
    previous += [_from_variable(name, environ, "encryption.previous-key-envs") for name in previous_key_envs]
    if (previous or allow_plaintext) and not keys:
        raise ConfigError("there is no key to write with", key="encryption.key-file", hint="or encryption.key-env")
    return Keyring([*keys, *previous], allow_plaintext=allow_plaintext)


def _id_of(key: bytes) -> str:
    return hashlib.sha256(b"statestore key id\0" + key).digest()[:ID_BYTES].hex()


def _from_file(file: str, setting: str) -> bytes:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"the key can't be read: {error.strerror}", key=setting, place=file) from None
    return _key_in(data, setting, file)


def _from_variable(name: str, environ: Mapping[str, str], setting: str) -> bytes:
    if name not in environ:
        raise ConfigError("there is no such environment variable", key=setting, place=name)
    return _key_in(environ[name].encode(), setting, name)


def _key_in(data: bytes, setting: str, place: str) -> bytes:
    """32 bytes: as they are, in hexadecimal or in base64."""
    if len(data) == KEY_BYTES:
        return data
    text = b"".join(data.split())
    if re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text.decode())
    if re.fullmatch(rb"[A-Za-z0-9+/_-]{43}=?", text):
        padded = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/")) + b"="
        try:
            return base64.b64decode(padded, validate=True)
        except binascii.Error:
            pass
    hint = "expected 32 bytes, or these in hexadecimal or base64"
    raise ConfigError(f"what is there ({len(data)} bytes) is no key", key=setting, place=place, hint=hint)
