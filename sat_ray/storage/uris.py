"""Addresses: the allowed ones, the page to open, and an address without its secrets."""

import re
from urllib.parse import urlsplit

SCHEME = "s3://"
# An address is found behind white space too, and that of S3 with any number of slashes: a mistyped
# one must not be shown or stored either.
_ADDRESS = re.compile(r"\s*(?:(s3):/+|([a-z][a-z0-9+.-]*)://)(.*)", re.IGNORECASE | re.DOTALL)
LOCAL_PAGES = "http://127.0.0.1:5000"  # of `make ui`


def check_address(text: str, *, field: str) -> None:
    """Raise ValueError, without showing the text, where an address holds a login or settings.

    Addresses are written into configs, records, reports and MLflow. A local path is not an address
    and may hold any character.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return
    bucket, _, rest = found.groups()
    authority, _, path = rest.partition("/")
    port = "" if bucket else r"(:\d{1,5})?"
    plain = re.fullmatch(rf"[^:@%\[]*{port}", authority) is not None
    # A login whose password has a slash lies on both sides of the first slash.
    split = ":" in authority and "@" in path
    if not plain or split or "?" in rest or "#" in rest:
        raise ValueError(
            f"{field} must be an address without login and settings, such as s3://bucket/prefix "
            "(what was given is not shown); put keys and endpoint into the AWS_* variables"
        )


def check_place(text: str, *, field: str) -> None:
    """Raise ValueError where files can not be read: neither here nor on S3, or with a login.

    See `check_address`.
    """
    check_address(text, field=field)
    found = _ADDRESS.fullmatch(text)
    if found is not None and (found[2] or "file").lower() != "file":
        raise ValueError(
            f"{field} must be a local path or begin with {SCHEME}, got {text}; download it first"
        )


def redacted(uri: str) -> str:
    """Return a URI without login and query, fit for messages."""
    return re.sub(r"//.*@", "//***@", uri, flags=re.DOTALL).partition("?")[0]


def pages_of(uri: str) -> str:
    """Return the address of the tracker's pages, without any login.

    A tracking server has its own pages; `make ui` serves those of a database.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return LOCAL_PAGES
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl().rstrip("/")


def leaves(path: str) -> bool:
    """Say whether a path inside a storage would lead out of its folder."""
    return path.startswith("/") or ".." in path.split("/")
