"""Where a URL leads, and how it is shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def redacted(url: str) -> str:
    """`url` without the password and query that may hold secrets."""
    parts = urlsplit(url)
    if parts.password is None and not parts.query:
        return url
    host = parts.netloc.rsplit("@", 1)
    user = f"{parts.username or ''}:***@" if parts.password is not None else (f"{host[0]}@" if len(host) == 2 else "")
    return urlunsplit((parts.scheme, user + host[-1], parts.path, "", ""))


def local_path(url: str) -> str | None:
    """Path of a local URL or plain path, None for a remote URL."""
    if url.startswith("file://"):
        return url[len("file://") :] or "/"
    return None if "://" in url else url
