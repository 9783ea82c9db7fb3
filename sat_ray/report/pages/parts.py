"""What the pages share: their templates, pictures as data URIs, and the table of a card."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sat_ray.report.formatting import (
    attack_text,
    interval,
    points,
    seconds,
    setting_text,
    threat_text,
)
from sat_ray.report.table import NAME, NUMBER, REMARK, STRIP, WORDS, WRAP, Column, Table
from sat_ray.storage.uris import LOCAL_PAGES
from sat_ray.sweep.config.resources import money_text

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIZE_ON_PAGE = 0.72  # figures are drawn at 160 dots per inch and shown at 115
CHECKS = (
    Column("", lambda check: "✓" if check["passed"] else "FLAG", kind=WORDS),
    Column("demand", "name", kind=WORDS),
    Column("found", "found", kind=WRAP),
    Column("why it matters", "meaning", kind=REMARK, wide=True),
)


def check_table(card: Mapping[str, Any]) -> Table:
    """Return the table of the checks of a robustness card."""
    return Table(CHECKS, card["checks"])


def templates() -> Environment:
    """Return the templates of this folder, with the report's way to spell numbers."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {
        "local_pages": LOCAL_PAGES,
        "NAME": NAME,
        "NUMBER": NUMBER,
        "STRIP": STRIP,
        "check_table": check_table,
    }
    found.filters |= {
        "points": points,
        "interval": interval,
        "seconds": seconds,
        "money": money_text,
        "setting": setting_text,
        "threat": threat_text,
        "attack": attack_text,
    }
    return found


def image(name: str, data: bytes) -> dict[str, str | int]:
    """Return {"uri", "width", "height"}: a PNG as a data URI and its size in CSS pixels.

    data: of a PNG file. Raises ValueError for another kind of file.
    """
    if not data.startswith(_PNG_SIGNATURE):
        raise ValueError(
            f"figures[{name!r}] must be a PNG, got a file that starts with {data[:8]!r}"
        )
    # A PNG states its size in bytes 16 to 24.
    width, height = (
        round(int.from_bytes(data[start : start + 4]) * _SIZE_ON_PAGE) for start in (16, 20)
    )
    uri = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return {"uri": uri, "width": width, "height": height}
