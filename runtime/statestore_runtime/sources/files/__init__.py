"""Events from files: what is in a folder, how a file is unpacked, and the formats of its records."""

from statestore_runtime.sources.files.source import FileSource, Format

__all__ = ["FileSource", "Format"]
