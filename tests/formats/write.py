"""Writes the golden files of the present formats: `python -m tests.formats.write`, after a change of a format's version only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from statestore import load_config, open_store
from statestore.checkpoint.manifest import BaseEntry, LogDelta, NativeBase, PackedDelta
from statestore.io import EncryptedAppendStorage, Keyring, LocalStorage
from statestore.keys import EntryKeys, KeyCodec
from tests.store.stores import content, handles

FOLDER = Path(__file__).parent / "v1"
STORED_KEYS = [f"key-{n}" for n in range(40)]

KEYS = [
    (str, "user-1"), (str, ""), (str, "é\ud800"), (bytes, b"\x00\xff"), (bool, True), (int, 0), (int, -1), (int, 128), (int, 2**70),
    (tuple[str, int], ("a", 7)), (tuple[str, str], ("a", "b")), (tuple[str, str], ("ab", "")),
]  # fmt: skip


def encoded_keys():
    """Entry keys of state 3 with 128 key groups."""
    return [EntryKeys(3, 128).of(KeyCodec(key_type).encode(key), b"sub").hex() for key_type, key in KEYS]


def fill(store, start, stop):
    states = handles(store)
    for n in range(start, stop):
        store.set_current_key(STORED_KEYS[n])
        states["value"].update(n * n)
        states["list"].add_all(["x"] * (n * 5))
        states["map"].put_all({f"entry-{i}": i - n for i in range(n % 4)})
        states["sum"].add(n)


def write_checkpoint(folder, backend):
    """A checkpoint with a base, a packed delta and one in the manifest, and a savepoint of it; its manifest, and what it holds."""
    settings = ["num-retained=1", "base-ratio=1e9", "pack-deltas=1", "inline-threshold=1kb"]
    config = load_config(
        overrides=[
            f"state.backend={backend}",
            f"state.dir={folder / 'local'}",
            f"checkpointing.dir={folder / 'checkpoints'}",
            "state.max-parallelism=4",
            *[f"checkpointing.{setting}" for setting in settings],
        ]
    )
    store = open_store(config, "golden", restore=None, auto_complete=True)
    for position, (start, stop) in enumerate([(0, 20), (10, 30), (25, 40), (39, 40)], 1):
        fill(store, start, stop)
        info = store.checkpoint({"position": position}, base=position == 1)
        store._chain.wait()
    store.begin_savepoint(info, str(folder / "savepoint")).finish()
    expected = content(store, STORED_KEYS)
    store.release()
    (part,) = info.manifest.parts
    assert [type(delta) for delta in part.deltas] == [PackedDelta, LogDelta]
    assert {entry.data is None for entry in info.manifest.files()} == {True, False}
    return info.manifest, expected


def write(folder):
    """A log, and checkpoints with bases of both kinds, and what they hold."""
    manifest, expected = write_checkpoint(folder, "memory")
    shutil.copytree(folder / "local" / "golden" / "log", folder / "log")
    shutil.rmtree(folder / "local")
    native, same = write_checkpoint(folder / "native", "rocksdb")
    for beside in ("local", "savepoint"):
        shutil.rmtree(folder / "native" / beside)
    assert (type(manifest.parts[0].base), type(native.parts[0].base)) == (BaseEntry, NativeBase)
    assert (same, native.meta, native.checkpoint_id) == (expected, manifest.meta, manifest.checkpoint_id)
    document = {"checkpoint": manifest.checkpoint_id, "meta": manifest.meta, "state": expected, "keys": encoded_keys()}
    (folder / "expected.json").write_text(json.dumps(document, indent=None) + "\n")


ENCRYPTION_KEYS = Keyring([bytes(range(32))])
ENCRYPTED = {"empty": b"", "object": b"content " * 9_000}
APPENDED = [b"first", b"second", b"third " * 1000]


def write_encrypted(folder):
    """An empty object, one of several chunks, and one that was appended."""
    storage = EncryptedAppendStorage(LocalStorage(folder), ENCRYPTION_KEYS)
    for name, data in ENCRYPTED.items():
        storage.write(name, data)
    appender = storage.appender("appended")
    for data in APPENDED:
        appender.write(data)
    appender.sync()
    appender.close()


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    write(FOLDER)
    write_encrypted(FOLDER / "encrypted")
