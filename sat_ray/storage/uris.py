"""Addresses: of pages to open, and with their secrets hidden."""

import re
from urllib.parse import urlsplit

LOCAL_PAGES = "http://127.0.0.1:5000"  # of `make ui`


def redacted(uri: str) -> str:
    """Return a URI without login and query, fit for messages."""
    return re.sub(r"//.*@", "//***@", uri, flags=re.DOTALL).partition("?")[0]


def pages_of(uri: str) -> str:
    """Return where a browser finds the tracker's pages, without any login: the server itself, or for a database that of `make ui`."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return LOCAL_PAGES
    return (
        parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
        .geturl()
        .rstrip("/")
    )
